// As runtime.hpp beside it.
#pragma once

#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {

inline void copy_small(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream);
}

}  // namespace longspan::kernels::cuda
