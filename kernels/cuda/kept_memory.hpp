// Device memory that is kept when it is given back, for the next one who asks for as much: cudaMalloc and cudaFree of gigabytes take
// milliseconds, and a caller who attends layer after layer asks for the same every time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>

namespace longspan::kernels::cuda {

class KeptMemory {
 public:
  explicit KeptMemory(int ordinal) : ordinal_(ordinal) {}
  ~KeptMemory();  // everything is given back by then
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;

  // Any thread. Error(device) when there is too little. What is kept and in use together is never more than was in use at once.
  std::byte* take(int64_t bytes);
  // Waits for all that the device does, as cudaFree would: whoever gets the memory next uses other streams. After a failure of the device
  // nothing is kept.
  void give_back(void* memory) noexcept;

 private:
  // Frees kept memory, the smallest first, until at most so much is left.
  void keep_at_most(int64_t bytes);

  int ordinal_;
  std::mutex mutex_;
  std::multimap<int64_t, std::byte*> kept_;        // by size
  std::unordered_map<void*, int64_t> in_use_;      // its size
  int64_t kept_bytes_ = 0, bytes_ = 0, most_ = 0;  // in use: now, and at most until now
};

}  // namespace longspan::kernels::cuda
