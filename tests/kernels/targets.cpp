#include "targets.hpp"

#include <gtest/gtest.h>

#include "hwy/highway.h"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/exp2.hpp"

namespace longspan::kernels {

namespace {

void force(int64_t highway, bool bf16_dot) {
  hwy::SetSupportedTargetsForTest(highway);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  cpu::allow_avx512_bf16(bf16_dot);
}

}  // namespace

std::vector<Target> runnable_targets() {
  std::vector<Target> targets;
  for (int64_t highway : hwy::SupportedAndGeneratedTargets()) {
    force(highway, true);
    const std::string with_dot = cpu::target_name(ElementType::bfloat16), name = hwy::TargetName(highway);
    if (with_dot != name) targets.push_back({highway, true, with_dot});
    targets.push_back({highway, false, name});
  }
  force(0, true);
  return targets;
}

ForcedTarget::ForcedTarget(const Target& target) {
  force(target.highway, target.bf16_dot);
  EXPECT_STREQ(cpu::target_name(ElementType::float32), hwy::TargetName(target.highway));
  EXPECT_EQ(cpu::target_name(ElementType::bfloat16), target.name);
}

ForcedTarget::~ForcedTarget() { force(0, true); }

}  // namespace longspan::kernels
