// Forces the kernels onto one instruction set, as long as the object lives.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspan::kernels {

struct Target {
  int64_t highway = 0;    // Highway's number
  bool bf16_dot = false;  // bfloat16 by AVX-512 BF16 on top
  std::string name;
};

// The instruction sets that this build has code for and this CPU can run.
std::vector<Target> runnable_targets();

class ForcedTarget {
 public:
  explicit ForcedTarget(const Target& target);
  ~ForcedTarget();
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;
};

}  // namespace longspan::kernels
