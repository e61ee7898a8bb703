// Attention on NVIDIA GPUs: every function puts its work into a stream and returns. Pointers are device memory of the current device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "kernels/cuda/step.hpp"
#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda {

// Takes every item of the step one tile after another, in list order. Bits depend neither on how a list is split over steps nor on the
// order in which the device runs the items; they do depend on the kernel (portable or Hopper's) and its tile shape.
void forward(const DeviceStep& step, cudaStream_t stream);

// Whether forward() takes Hopper's kernel on the current device.
bool takes_hopper(const Step& step);

// mma.sync and cp.async, sm_80 and later: float16 and bfloat16, every head_dim (FlashAttention-2's shape); float32 by FMA.
void forward_portable(const DeviceStep& step, cudaStream_t stream);

// Which kernel forward() takes: "Hopper (WGMMA)", "portable (mma.sync)", "portable (FMA)".
const char* forward_kernel(ElementType type, int head_dim, float scale, int device_major);

// Only forward_portable, whatever the device: tests and comparisons.
void force_portable(bool portable);

// `finish.head_list` and `block.head_list` too lie in device memory.
void finish(const Finish& finish, cudaStream_t stream);
void merge(const Merge& merge, cudaStream_t stream);
// States of rows that have seen nothing: m = −∞, l = 0, o = 0.
void clear_states(int64_t count, int head_dim, float* m, float* l, float* o, cudaStream_t stream);

// MergeBlocks: `count` of `blocks` from the first-th on. All arrays lie in device memory; no block has more than `most_states`.
struct BlocksToMerge {
  int64_t first = 0, count = 0;
  float* packed = nullptr;
};
void merge_blocks(const StateBlock* blocks, std::span<const BlocksToMerge> merges, int64_t most_states, cudaStream_t stream);

}  // namespace longspan::kernels::cuda
