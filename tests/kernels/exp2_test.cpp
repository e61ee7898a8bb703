#include "kernels/cpu/exp2.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/attention.hpp"
#include "targets.hpp"

namespace longspan::kernels {
namespace {

constexpr ElementType kTypes[] = {ElementType::float32, ElementType::bfloat16};  // whose exponentials may differ

// Every 61st float32 from −126 to −2^-60, and every 4,096th one up to 64: more than softmax asks for.
TEST(Exp2, RelativeErrorIsAsDocumented) {
  std::vector<float> in;
  for (uint32_t bits = std::bit_cast<uint32_t>(0x1p-60f); bits <= std::bit_cast<uint32_t>(126.0f); bits += 61)
    in.push_back(-std::bit_cast<float>(bits));
  for (uint32_t bits = 0; bits <= std::bit_cast<uint32_t>(64.0f); bits += 4096) in.push_back(std::bit_cast<float>(bits));
  std::vector<double> exact;
  for (float x : in) exact.push_back(std::exp2(double{x}));
  for (const Target& target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (ElementType type : kTypes) {
      std::vector<float> out(in.size());
      cpu::exp2_array(type, in.data(), out.data(), static_cast<int64_t>(in.size()));
      double worst = 0;
      for (size_t i = 0; i < in.size(); ++i) worst = std::max(worst, std::abs(out[i] / exact[i] - 1));
      EXPECT_LE(worst, 1.5e-7) << target.name;
      EXPECT_GT(worst, 0);
      RecordProperty(target.name + (type == ElementType::float32 ? "" : "_bfloat16"), std::to_string(worst * 1e7) + "e-7");
    }
  }
}

TEST(Exp2, SpecialValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> in{0, -0.0f, -1, -126, -126.00001f, -127.5f, -1e4f, -1e30f, -kInfinity, 1, 64};
  const std::vector<float> expected{1, 1, 0.5f, 0x1p-126f, 0, 0, 0, 0, 0, 2, 0x1p64f};
  std::vector<float> nan;
  for (uint32_t payload : {0x7fc00000u, 0x7fc00001u, 0xffc00001u, 0x7f800001u, 0xffffffffu, 0x7fc001ffu})
    nan.push_back(std::bit_cast<float>(payload));
  for (const Target& target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (ElementType type : kTypes) {
      std::vector<float> out(in.size());
      cpu::exp2_array(type, in.data(), out.data(), static_cast<int64_t>(in.size()));
      for (size_t i = 0; i < in.size(); ++i) EXPECT_EQ(out[i], expected[i]) << in[i] << " " << target.name;
      out.assign(nan.size(), 0);
      cpu::exp2_array(type, nan.data(), out.data(), static_cast<int64_t>(nan.size()));
      for (size_t i = 0; i < nan.size(); ++i) EXPECT_TRUE(std::isnan(out[i])) << i << " " << target.name;
    }
  }
}

}  // namespace
}  // namespace longspan::kernels
