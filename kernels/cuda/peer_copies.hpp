// Copies of blocks from the memory of other GPUs of this host into this one's, over NVLink or PCIe, by few multiprocessors: nothing is
// gathered there or scattered here.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace longspan::kernels::cuda {

struct BlockCopy {
  const std::byte* from;
  std::byte* to;
};

// `copies[count]` (device memory), each of `block_bytes`, on Hopper by `multiprocessors` at most, twice as many where blocks have 8 KiB or
// less. Sets *begun (pinned host memory) to 1 once the copies have multiprocessors: of those that compute, which are started after that,
// they leave the rest.
void copy_blocks(const BlockCopy* copies, int64_t count, int64_t block_bytes, int multiprocessors, volatile uint32_t* begun,
                 cudaStream_t stream);

}  // namespace longspan::kernels::cuda
