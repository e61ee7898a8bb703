#include "doctor/memory_rate.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "doctor/typical_seconds.hpp"

namespace longspan::doctor {

namespace {

constexpr int kRepeats = 4;

template <typename Body>
double rate_of(double bytes, kernels::cpu::ThreadPool& threads, Body body) {
  return bytes / typical_seconds(kRepeats, [&] { threads.for_each(threads.threads(), [&](int64_t part, int) { body(part); }); });
}

}  // namespace

MemoryRate memory_rate(int64_t bytes, kernels::cpu::ThreadPool& threads) {
  const auto count = static_cast<size_t>(threads.threads());
  const size_t part_bytes = std::max<size_t>(4096, static_cast<size_t>(bytes) / count / 4096 * 4096);
  const std::unique_ptr<char[]> memory(new char[part_bytes * count]);  // not touched yet: pages come to the threads' own NUMA nodes
  const auto part_of = [&](int64_t part) { return memory.get() + static_cast<size_t>(part) * part_bytes; };
  threads.for_each(static_cast<int64_t>(count), [&](int64_t part, int) { std::memset(part_of(part), 1, part_bytes); });
  const auto total = static_cast<double>(part_bytes * count);
  MemoryRate rate;
  // The C library has both in the vector instructions at hand. A search that finds nothing reads everything.
  std::atomic<int> found{0};
  rate.read = rate_of(total, threads, [&](int64_t part) { found += std::memchr(part_of(part), 2, part_bytes) != nullptr; });
  rate.copy = rate_of(total, threads, [&](int64_t part) { std::memcpy(part_of(part), part_of(part) + part_bytes / 2, part_bytes / 2); });
  if (found > 0) rate.read = 0;  // memory that does not keep its contents
  return rate;
}

}  // namespace longspan::doctor
