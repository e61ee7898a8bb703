// How fast this rank's threads read and copy memory together.
#pragma once

#include <cstdint>

#include "kernels/cpu/thread_pool.hpp"

namespace longspan::doctor {

struct MemoryRate {
  double read = 0;  // bytes/s
  double copy = 0;  // bytes/s, read and written ones together
};
// Uses `bytes` of memory, at least 4 KiB a thread; more than the caches hold, or it is their speed that is measured.
MemoryRate memory_rate(int64_t bytes, kernels::cpu::ThreadPool& threads);

}  // namespace longspan::doctor
