// Forces the kernels onto one instruction set, as long as the object lives.
#pragma once

#include <cstdint>
#include <vector>

namespace longspan::kernels {

// Highway's numbers of the instruction sets that this build has code for and this CPU can run.
std::vector<int64_t> runnable_targets();

class ForcedTarget {
 public:
  explicit ForcedTarget(int64_t target);
  ~ForcedTarget();
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;
};

}  // namespace longspan::kernels
