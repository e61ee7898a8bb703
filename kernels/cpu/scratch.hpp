// Working memory of one thread: one tile of K and V, its scores, and queries and states of a few heads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hwy/aligned_allocator.h"
#include "kernels/cpu/panel.hpp"

namespace longspan::kernels::cpu {

constexpr int kHeadGroup = 8;  // query heads that share a tile made ready; bounds the scratch

// Views into a ScratchMemory, each aligned for vectors.
struct Scratch {
  float *k = nullptr, *v = nullptr;  // [128][head_dim]
  float* scores = nullptr;           // [128][panel]
  float* heads = nullptr;            // kHeadGroup times: queries and o, each [128/panel][head_dim][panel], m [128], l [128]
  PackedTile* tile = nullptr;
  TileMap* map = nullptr;
  int64_t tile_floats = 0;

  float* q_of(int64_t h) const { return heads + h * (2 * tile_floats + 2 * kTile); }
  float* o_of(int64_t h) const { return q_of(h) + tile_floats; }
  float* m_of(int64_t h) const { return o_of(h) + tile_floats; }
  float* l_of(int64_t h) const { return m_of(h) + kTile; }
};

// Grows when a larger head_dim or group comes and is kept until its thread ends.
class ScratchMemory {
 public:
  // Room for `heads` (at most kHeadGroup) heads at a time. Throws std::bad_alloc.
  Scratch of(int head_dim, int heads);

 private:
  hwy::AlignedFreeUniquePtr<float[]> floats_;
  size_t size_ = 0;
  PackedTile tile_;
  TileMap map_;
};

}  // namespace longspan::kernels::cpu
