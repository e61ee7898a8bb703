// As runtime.hpp beside it.
#pragma once

#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {

struct BlockCopy {
  const std::byte* from;
  std::byte* to;
};

inline void copy_blocks(const BlockCopy* copies, int64_t count, int64_t block_bytes, int, volatile uint32_t* begun, cudaStream_t stream) {
  stream->ask([begun] { *begun = 1; });
  constexpr int64_t kPiece = 16;  // blocks at a time
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    stream->ask([copies, begin, end = std::min(count, begin + kPiece), block_bytes] {
      for (int64_t i = begin; i < end; ++i) std::memcpy(copies[i].to, copies[i].from, static_cast<size_t>(block_bytes));
    });
  }
}

}  // namespace longspan::kernels::cuda
