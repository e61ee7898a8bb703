// Copies between pinned host memory and this device's by a kernel, for what is small and waited for. A copy engine goes on with one
// stream's copies for as long as that stream has any: beside the reading of queries, a list of some KB waited 10 ms until 256 MiB were
// through (H100). Where kernels fill the device, on the other hand, such a copy waits for them; so not for what is brought beside a step.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace longspan::kernels::cuda {

constexpr int64_t kMostSmallBytes = int64_t{16} << 20;  // more would hold multiprocessors for longer than a millisecond

// As cudaMemcpyAsync between memory of this device and memory that it reaches in kernels. In words of 4 bytes: `bytes` and both places are
// multiples of 4.
void copy_small(void* to, const void* from, int64_t bytes, cudaStream_t stream);

}  // namespace longspan::kernels::cuda
