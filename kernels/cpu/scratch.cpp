#include "kernels/cpu/scratch.hpp"

#include <algorithm>
#include <new>

namespace longspan::kernels::cpu {

Scratch ScratchMemory::of(int head_dim, int heads) {
  Scratch scratch;
  scratch.tile_floats = int64_t{kTile} * head_dim;
  constexpr int64_t kScores = int64_t{kTile} * kMostPanel;
  const auto size =
      static_cast<size_t>(2 * scratch.tile_floats + kScores + std::min(heads, kHeadGroup) * (2 * scratch.tile_floats + 2 * kTile));
  if (size > size_) {
    floats_.reset();
    size_ = 0;
    floats_ = hwy::AllocateAligned<float>(size);
    if (!floats_) throw std::bad_alloc();
    size_ = size;
    std::fill_n(floats_.get(), size, 0.0f);  // also puts the pages on the memory of the thread that will use them
  }
  scratch.k = floats_.get();
  scratch.v = scratch.k + scratch.tile_floats;
  scratch.scores = scratch.v + scratch.tile_floats;
  scratch.heads = scratch.scores + kScores;
  scratch.tile = &tile_;
  scratch.map = &map_;
  return scratch;
}

}  // namespace longspan::kernels::cpu
