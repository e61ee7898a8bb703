// As runtime.hpp beside it.
#pragma once

#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {

struct BlockCopy {
  const std::byte* from;
  std::byte* to;
};

inline void copy_blocks(const BlockCopy* copies, int64_t count, int64_t block_bytes, volatile uint32_t* begun, cudaStream_t stream) {
  stream->ask([begun] { *begun = 1; });
  for (int64_t i = 0; i < count; ++i)
    stream->ask([copies, i, block_bytes] { std::memcpy(copies[i].to, copies[i].from, static_cast<size_t>(block_bytes)); });
}

}  // namespace longspan::kernels::cuda
