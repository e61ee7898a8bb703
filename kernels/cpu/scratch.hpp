// Working memory of one thread: one tile of K and V in float32, its scores, and queries and states of a few heads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hwy/aligned_allocator.h"
#include "kernels/kernel.hpp"

namespace longspan::kernels::cpu {

constexpr int kHeadGroup = 8;  // query heads that share a converted tile; bounds the scratch
constexpr int kWidest = 16;    // floats in the widest vector of any instruction set

// head_dim rounded up to whole vectors of every instruction set.
constexpr int64_t padded_dim(int64_t head_dim) { return (head_dim + kWidest - 1) / kWidest * kWidest; }

// Views into a ScratchMemory, each aligned for vectors.
struct Scratch {
  float* k = nullptr;       // [128/panel][head_dim][panel]
  float* v = nullptr;       // [head_dim/panel][128][panel]
  float* scores = nullptr;  // [128][128]
  float* heads = nullptr;   // kHeadGroup times: queries [16][head_dim][8], o [128][padded], m [128], l [128]
  int64_t head_floats = 0, query_floats = 0;

  float* q_of(int64_t h) const { return heads + h * head_floats; }
  float* o_of(int64_t h) const { return q_of(h) + query_floats; }
  float* m_of(int64_t h) const { return q_of(h + 1) - int64_t{2} * kTile; }
  float* l_of(int64_t h) const { return q_of(h + 1) - kTile; }
};

// Grows when a larger head_dim or group comes and is kept until its thread ends.
class ScratchMemory {
 public:
  // Room for `heads` (at most kHeadGroup) heads at a time. Throws std::bad_alloc.
  Scratch of(int head_dim, int heads);

 private:
  hwy::AlignedFreeUniquePtr<float[]> floats_;
  size_t size_ = 0;
};

}  // namespace longspan::kernels::cpu
