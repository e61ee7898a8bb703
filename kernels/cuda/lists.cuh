// How a block of threads walks along its tile list, and which keys of a tile a row may look at. Read by all threads alike.
#pragma once

#include <cstdint>

#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda {

// kKeys keys of one unit under one tile.
struct Chunk {
  Tile tile;
  int32_t slot;  // of the unit
  int begin;     // first key, in the block
  int end;       // keys in the block (1…128): from here on there are none
};

// The chunks that the rows [first_row, first_row + rows) of an item need, in list order; those in which no 64-row half of them has an
// allowed pair are left out.
template <int kKeys>
class Walk {
 public:
  __device__ Walk(const Step& step, const Work& work, int first_row, int rows)
      : tile_(step.tiles.data() + work.first_tile),
        end_(tile_ + work.tile_count),
        slots_(step.slots + work.kv_head * step.resident),
        key_rows_(step.key_rows),
        halves_((first_row < 64 ? 1 : 0) | (first_row + rows > 64 ? 4 : 0)) {
    chunk_.begin = 0;
    if (!done()) settle();
  }
  __device__ bool done() const { return tile_ == end_; }
  __device__ const Chunk& chunk() const { return chunk_; }
  __device__ void advance() {
    chunk_.begin += kKeys;
    settle();
  }

 private:
  // At a chunk that is needed, from chunk_.begin of the present block on.
  __device__ void settle() {
    for (; tile_ != end_; next_block()) {
      const Tile tile = *tile_;
      const int64_t block = tile.key + block_;
      const int keys = key_rows_[block];
      for (; chunk_.begin < keys; chunk_.begin += kKeys) {
        if (tile.form != Tile::Form::full && (tile.quarters >> (chunk_.begin / 64) & halves_) == 0) continue;
        chunk_.tile = tile;
        chunk_.slot = slots_[block];
        chunk_.end = keys;
        return;
      }
    }
  }
  __device__ void next_block() {
    chunk_.begin = 0;
    ++block_;
    if (tile_->form == Tile::Form::full && block_ < tile_->count) return;
    block_ = 0;
    ++tile_;
  }

  const Tile* tile_;
  const Tile* end_;
  const int32_t* slots_;
  const int32_t* key_rows_;
  int halves_;  // bit 2·h: the rows reach into half h
  int64_t block_ = 0;
  Chunk chunk_;
};

__device__ inline uint64_t first_keys(int64_t count) { return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

// Bit k: the row (of the query block) may look at key chunk.begin + k, up to the end of the 64 keys that chunk.begin lies in.
__device__ inline uint64_t allowed_keys(const Chunk& chunk, const MaskBits* masks, int row) {
  const int half = chunk.begin / 64;
  uint64_t allowed = first_keys(chunk.end - 64 * half);
  switch (chunk.tile.form) {
    case Tile::Form::full:
      break;
    case Tile::Form::band:  // in 64 bits: a side without a bound may be the extreme int32
      allowed &= first_keys(int64_t{row} - chunk.tile.band.lo + 1 - 64 * half) & ~first_keys(int64_t{row} - chunk.tile.band.hi - 64 * half);
      break;
    case Tile::Form::subtiles: {
      const auto bits = static_cast<uint32_t>(chunk.tile.subtiles >> (8 * (row / 16) + 4 * half));
      uint64_t wide = 0;
      for (int c = 0; c < 4; ++c) wide |= bits >> c & 1 ? uint64_t{0xffff} << (16 * c) : 0;
      allowed &= wide;
      break;
    }
    case Tile::Form::bits:
      allowed &= reinterpret_cast<const uint64_t*>(masks + chunk.tile.mask)[2 * row + half];
      break;
  }
  return allowed >> (chunk.begin % 64);
}

// Whether a chunk's scores need looking at one by one.
template <int kKeys>
__device__ bool is_masked(const Chunk& chunk) {
  return chunk.tile.form != Tile::Form::full || chunk.end - chunk.begin < kKeys;
}

}  // namespace longspan::kernels::cuda
