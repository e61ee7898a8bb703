#include "kernels/cuda/small_copies.hpp"

#include <algorithm>

#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 64;  // 64 KiB under way for each word that a thread has asked for: enough for a link with 1 us and 50 GB/s

__global__ void __launch_bounds__(kThreads) copy_words(uint32_t* to, const uint32_t* from, int64_t words) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < words; i += stride) to[i] = from[i];
}

}  // namespace

void copy_small(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  const int64_t words = bytes / 4, blocks = std::min((words + kThreads - 1) / kThreads, kMostBlocks);
  copy_words<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(static_cast<uint32_t*>(to), static_cast<const uint32_t*>(from), words);
  check(cudaGetLastError(), "launch of copy_words");
}

}  // namespace longspan::kernels::cuda
