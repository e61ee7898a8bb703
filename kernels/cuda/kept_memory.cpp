#include "kernels/cuda/kept_memory.hpp"

#include <algorithm>

#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {

KeptMemory::~KeptMemory() { keep_at_most(0); }

std::byte* KeptMemory::take(int64_t bytes) {
  const CurrentDevice current(ordinal_);
  const std::lock_guard lock(mutex_);
  bytes = std::max<int64_t>(1, bytes);
  std::byte* memory = nullptr;
  if (const auto fits = kept_.lower_bound(bytes); fits != kept_.end() && fits->first <= 2 * bytes) {
    bytes = fits->first, memory = fits->second;
    kept_bytes_ -= bytes;
    kept_.erase(fits);
  } else {
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

void KeptMemory::give_back(void* memory) {
  const CurrentDevice current(ordinal_);
  cudaDeviceSynchronize();  // an error here shows in the next call that can say so
  const std::lock_guard lock(mutex_);
  const auto found = in_use_.find(memory);
  bytes_ -= found->second;
  kept_bytes_ += found->second;
  kept_.emplace(found->second, static_cast<std::byte*>(memory));
  in_use_.erase(found);
  keep_at_most(most_);
}

void KeptMemory::keep_at_most(int64_t bytes) {
  while (kept_bytes_ > bytes) {
    cudaFree(kept_.begin()->second);
    kept_bytes_ -= kept_.begin()->first;
    kept_.erase(kept_.begin());
  }
}

}  // namespace longspan::kernels::cuda
