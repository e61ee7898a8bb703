// Copies of rows between the caller's side and a device's buffers. Rows in memory are copied by several threads where the device is a GPU:
// one thread copies 5 to 10 GB/s, the link to a GPU several times as much. Rows that only one thread may touch are copied by the caller,
// and rows that the device reaches straight by nobody. Rows that its kernels reach stay where they are.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/data.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/device.hpp"
#include "longspan/shape.hpp"
#include "pattern/intervals.hpp"
#include "plan/blocks.hpp"

namespace longspan::engine {

// Rows [first, first + count) are counted along `tokens`: with tokens {[10, 12), [20, 30)}, rows 1 and 2 are tokens 11 and 20.
class RowCopies {
 public:
  // All are the caller's and outlive this. Copies with Device::spare_threads(); no thread is started for one.
  RowCopies(Input& input, Output& output, const Shape& shape, ElementType output_type, const kernels::Device& device);

  // Where kernels find all rows of `tokens` in one piece, and where they may put the results: null where they cannot. Without LSE nobody
  // wants it.
  const std::byte* q_in_kernels(const Intervals& tokens) const;
  kernels::Device::ResultRows results_in_kernels(const Intervals& tokens) const;
  // Where they find the keys of each of the key blocks, which need not lie together: none if they cannot. And whether they can, which takes
  // less where blocks lie together.
  std::vector<kernels::KeyRows> keys_in_kernels(const plan::Blocks& table, const Intervals& blocks) const;
  bool keys_are_in_kernels(const plan::Blocks& table, const Intervals& blocks) const;
  // Where those of all of `tokens` lie, one row after another; null: they do not.
  kernels::KeyRows keys_in_one_piece(const Intervals& tokens) const { return keys_place(tokens, 0, size_of(tokens)); }

  // Read into `out` or `k` and `v`, and those returned, or where the rows lie anyway (Input::q_in_place).
  const std::byte* read_q(const Intervals& tokens, int64_t first, int64_t count, std::byte* out);
  kernels::KeyRows read_keys(const Intervals& tokens, int64_t first, int64_t count, int head, int heads, std::byte* k, std::byte* v);
  kernels::Device::ResultRows place(const Intervals& tokens, int64_t first, int64_t count) const;  // as Output::in_place
  void write(const Intervals& tokens, int64_t first, int64_t count, const std::byte* o, const float* lse);

 private:
  kernels::KeyRows keys_from(int64_t begin, int64_t rows) const;  // of `rows` tokens that lie together; null: they do not, or not there
  // Calls copy(begin, rows, at) for all of the rows: tokens [begin, begin + rows), the at-th of `count` on.
  using Copy = std::function<void(int64_t begin, int64_t rows, int64_t at)>;
  bool in_kernels(const void* memory) const;
  const std::byte* q_place(const Intervals& tokens, int64_t first, int64_t count) const;
  kernels::KeyRows keys_place(const Intervals& tokens, int64_t first, int64_t count) const;
  void share(bool threaded, const Intervals& tokens, int64_t first, int64_t count, int64_t row_bytes, const Copy& copy);

  Input& input_;
  Output& output_;
  Shape shape_;
  ElementType output_type_;
  const kernels::Device& device_;
  std::mutex mutex_;                                 // the engine's two threads may both ask; the pool does one loop at a time
  std::optional<kernels::cpu::ThreadPool> threads_;  // from when they are wanted: rows that stay in place need none
};

}  // namespace longspan::engine
