#include "targets.hpp"

#include <gtest/gtest.h>

#include "hwy/highway.h"
#include "kernels/cpu/attention.hpp"

namespace longspan::kernels {

std::vector<int64_t> runnable_targets() { return hwy::SupportedAndGeneratedTargets(); }

ForcedTarget::ForcedTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_STREQ(cpu::target_name(), hwy::TargetName(target));
}

ForcedTarget::~ForcedTarget() {
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace longspan::kernels
