#include "kernels/cuda/kept_memory.hpp"

#include <algorithm>
#include <new>

#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {

KeptMemory::~KeptMemory() { keep_at_most(0); }

std::byte* KeptMemory::take(int64_t bytes) {
  const CurrentDevice current(ordinal_);
  const std::lock_guard lock(mutex_);
  bytes = std::max<int64_t>(1, bytes);
  std::byte* memory = nullptr;
  if (const auto fits = kept_.lower_bound(bytes); fits != kept_.end() && fits->first <= bytes + bytes / 4) {
    bytes = fits->first, memory = fits->second;
    kept_bytes_ -= bytes;
    kept_.erase(fits);
  } else {
    keep_at_most(std::max<int64_t>(0, most_ - bytes_ - bytes));
    try {
      memory = allocate_device(bytes);
    } catch (...) {  // too much for what lies between the kept pieces
      if (kept_.empty()) throw;
      keep_at_most(0);
      memory = allocate_device(bytes);
    }
  }
  in_use_[memory] = bytes;
  bytes_ += bytes;
  most_ = std::max(most_, bytes_);
  return memory;
}

void KeptMemory::give_back(void* memory) noexcept {
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(ordinal_);
  const bool in_order = cudaDeviceSynchronize() == cudaSuccess;  // else the next call that can say so will
  const std::lock_guard lock(mutex_);
  auto node = in_use_.extract(memory);
  bytes_ -= node.mapped();
  try {
    if (in_order) kept_.emplace(node.mapped(), static_cast<std::byte*>(memory)), kept_bytes_ += node.mapped(), memory = nullptr;
  } catch (const std::bad_alloc&) {  // it is not kept
  }
  if (memory != nullptr) cudaFree(memory);
  keep_at_most(in_order ? most_ - bytes_ : 0);
  cudaSetDevice(before);
}

void KeptMemory::keep_at_most(int64_t bytes) {
  while (kept_bytes_ > bytes) {
    cudaFree(kept_.begin()->second);
    kept_bytes_ -= kept_.begin()->first;
    kept_.erase(kept_.begin());
  }
}

}  // namespace longspan::kernels::cuda
