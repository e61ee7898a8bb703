#include "kernels/cpu/scratch.hpp"

#include <algorithm>
#include <new>

namespace longspan::kernels::cpu {

Scratch ScratchMemory::of(int head_dim, int heads) {
  constexpr int64_t kRows = kTile;
  const int64_t tile = kRows * padded_dim(head_dim);
  Scratch scratch;
  scratch.query_floats = tile;
  scratch.head_floats = 2 * tile + 2 * kRows;
  const auto size = static_cast<size_t>(2 * tile + kRows * kRows + std::min(heads, kHeadGroup) * scratch.head_floats);
  if (size > size_) {
    floats_.reset();
    size_ = 0;
    floats_ = hwy::AllocateAligned<float>(size);
    if (!floats_) throw std::bad_alloc();
    size_ = size;
    std::fill_n(floats_.get(), size, 0.0f);  // also puts the pages on the memory of the thread that will use them
  }
  scratch.k = floats_.get();
  scratch.v = scratch.k + tile;
  scratch.scores = scratch.v + tile;
  scratch.heads = scratch.scores + kRows * kRows;
  return scratch;
}

}  // namespace longspan::kernels::cpu
