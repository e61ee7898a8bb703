#include "kernels/cpu/exp2.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/attention.hpp"
#include "targets.hpp"

namespace longspan::kernels {
namespace {

TEST(Exp2, RelativeErrorIsAsDocumented) {
  std::vector<float> in;
  for (int n = -126; n < 2; ++n)
    for (int i = 0; i < 2000; ++i) in.push_back(static_cast<float>(n + i / 2000.0));
  for (int i = 1; i < 130; ++i) in.push_back(-std::ldexp(1.3f, -i));
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    std::vector<float> out(in.size());
    cpu::exp2_array(in.data(), out.data(), static_cast<int64_t>(in.size()));
    double worst = 0;
    for (size_t i = 0; i < in.size(); ++i) worst = std::max(worst, std::abs(out[i] / std::exp2(double{in[i]}) - 1));
    EXPECT_LE(worst, 1.5e-7) << cpu::target_name();
    EXPECT_GT(worst, 0);
  }
}

TEST(Exp2, SpecialValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> in{0, -0.0f, -1, -126, -126.00001f, -127.5f, -1e4f, -1e30f, -kInfinity, 1, 64};
  const std::vector<float> expected{1, 1, 0.5f, 0x1p-126f, 0, 0, 0, 0, 0, 2, 0x1p64f};
  std::vector<float> nan;
  for (uint32_t payload : {0x7fc00000u, 0x7fc00001u, 0xffc00001u, 0x7f800001u, 0xffffffffu, 0x7fc001ffu})
    nan.push_back(std::bit_cast<float>(payload));
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    std::vector<float> out(in.size());
    cpu::exp2_array(in.data(), out.data(), static_cast<int64_t>(in.size()));
    for (size_t i = 0; i < in.size(); ++i) EXPECT_EQ(out[i], expected[i]) << in[i] << " " << cpu::target_name();
    out.assign(nan.size(), 0);
    cpu::exp2_array(nan.data(), out.data(), static_cast<int64_t>(nan.size()));
    for (size_t i = 0; i < nan.size(); ++i) EXPECT_TRUE(std::isnan(out[i])) << i << " " << cpu::target_name();
  }
}

}  // namespace
}  // namespace longspan::kernels
