#include "engine/row_copies.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace longspan::engine {

namespace {

constexpr int64_t kPartBytes = int64_t{1} << 20;  // of one thread at a time: 100 µs of copying, a wake-up takes some 10

}  // namespace

RowCopies::RowCopies(Input& input, Output& output, const Shape& shape, ElementType output_type, const kernels::Device& device)
    : input_(input), output_(output), shape_(shape), output_type_(output_type), device_(device) {}

namespace {

// Calls f(begin, rows, at) for rows [first, first + count) of `tokens`, of which `before` counts the rows before each interval: tokens
// [begin, begin + rows), the at-th row on.
template <typename F>
void for_each_run(const Intervals& tokens, const std::vector<int64_t>& before, int64_t first, int64_t count, F f) {
  auto run = static_cast<size_t>(std::upper_bound(before.begin(), before.end(), first) - before.begin()) - 1;
  for (int64_t at = 0; at < count; ++run) {
    const int64_t inside = first + at - before[run], here = std::min(count - at, tokens[run].length() - inside);
    if (here > 0) f(tokens[run].begin + inside, here, at), at += here;
  }
}

std::vector<int64_t> rows_before(const Intervals& tokens) {
  std::vector<int64_t> before;
  int64_t rows = 0;
  for (const Interval& run : tokens) before.push_back(std::exchange(rows, rows + run.length()));
  return before;
}

// The one piece in which the rows lie that `where(begin, rows)` tells run by run, or null. `row`: what a pointer moves by for a row.
template <typename Where>
auto one_piece(const Intervals& tokens, int64_t first, int64_t count, int64_t row, Where where) {
  decltype(where(0, 0)) piece = nullptr;
  if (count == 0) return piece;
  bool together = true;
  for_each_run(tokens, rows_before(tokens), first, count, [&](int64_t begin, int64_t rows, int64_t at) {
    if (!together) return;
    const auto here = where(begin, rows);
    if (at == 0) piece = here;
    together = here != nullptr && here == piece + at * row;
  });
  return together ? piece : nullptr;
}

}  // namespace

void RowCopies::share(bool threaded, const Intervals& tokens, int64_t first, int64_t count, int64_t row_bytes, const Copy& copy) {
  if (count == 0) return;
  const std::vector<int64_t> before = rows_before(tokens);
  const auto copy_part = [&](int64_t begin, int64_t end) {  // of [0, count)
    for_each_run(tokens, before, first + begin, end - begin,
                 [&](int64_t token, int64_t rows, int64_t at) { copy(token, rows, begin + at); });
  };
  const int64_t part = std::max<int64_t>(1, kPartBytes / row_bytes), parts = (count + part - 1) / part;
  if (!threaded || parts < 2 || device_.spare_threads() < 2) {
    copy_part(0, count);
    return;
  }
  const std::lock_guard lock(mutex_);
  if (!threads_) threads_.emplace(device_.spare_threads());
  threads_->for_each(parts, [&](int64_t item, int) { copy_part(item * part, std::min(count, (item + 1) * part)); });
}

bool RowCopies::in_kernels(const void* memory) const {
  constexpr uintptr_t kAligned = 16;
  return memory != nullptr && reinterpret_cast<uintptr_t>(memory) % kAligned == 0 && device_.reach(memory).in_kernels;
}

const std::byte* RowCopies::q_place(const Intervals& tokens, int64_t first, int64_t count) const {
  const int64_t row = int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
  return one_piece(tokens, first, count, row, [&](int64_t begin, int64_t rows) { return input_.q_in_place(begin, rows); });
}

kernels::KeyRows RowCopies::keys_place(const Intervals& tokens, int64_t first, int64_t count) const {
  const int64_t row = int64_t{shape_.kv_heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
  const auto of_k = [&](int64_t begin, int64_t rows) { return input_.k_in_place(begin, rows); };
  const auto of_v = [&](int64_t begin, int64_t rows) { return input_.v_in_place(begin, rows); };
  const kernels::KeyRows there{one_piece(tokens, first, count, row, of_k), one_piece(tokens, first, count, row, of_v)};
  return there.k != nullptr && there.v != nullptr ? there : kernels::KeyRows{};
}

const std::byte* RowCopies::q_in_kernels(const Intervals& tokens) const {
  const std::byte* q = q_place(tokens, 0, size_of(tokens));
  return in_kernels(q) ? q : nullptr;
}

kernels::Device::ResultRows RowCopies::results_in_kernels(const Intervals& tokens) const {
  const kernels::Device::ResultRows to = place(tokens, 0, size_of(tokens));
  if (!in_kernels(to.o) || (to.lse != nullptr && !in_kernels(to.lse))) return {};
  return to;
}

kernels::KeyRows RowCopies::keys_from(int64_t begin, int64_t rows) const {
  const kernels::KeyRows keys{input_.k_in_place(begin, rows), input_.v_in_place(begin, rows)};
  return keys.k != nullptr && keys.v != nullptr ? keys : kernels::KeyRows{};
}

std::vector<kernels::KeyRows> RowCopies::keys_in_kernels(const plan::Blocks& table, const Intervals& blocks) const {
  const int64_t row = int64_t{shape_.kv_heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
  std::vector<kernels::KeyRows> keys;
  keys.reserve(static_cast<size_t>(size_of(blocks)));
  for (const Interval& run : blocks) {
    const int64_t first = table.tokens(run.begin).begin;
    const kernels::KeyRows all = keys_from(first, table.tokens(run.end - 1).end - first);  // if they lie one after another
    int64_t token = first;
    for (int64_t block = run.begin; block < run.end; ++block) {
      const int64_t rows = table.rows(block), at = (token - first) * row;
      const kernels::KeyRows here = all.k != nullptr ? kernels::KeyRows{all.k + at, all.v + at} : keys_from(token, rows);
      if (here.k == nullptr) return {};
      if (keys.empty() && (!in_kernels(here.k) || !in_kernels(here.v))) return {};  // all of them are alike
      keys.push_back(here), token += rows;
    }
  }
  return keys;
}

bool RowCopies::keys_are_in_kernels(const plan::Blocks& table, const Intervals& blocks) const {
  if (blocks.empty()) return false;
  for (const Interval& run : blocks) {
    const int64_t first = table.tokens(run.begin).begin;
    if (keys_from(first, table.tokens(run.end - 1).end - first).k != nullptr) continue;
    for (int64_t block = run.begin; block < run.end; ++block)
      if (keys_from(table.tokens(block).begin, table.rows(block)).k == nullptr) return false;
  }
  const kernels::KeyRows one = keys_from(table.tokens(blocks.front().begin).begin, table.rows(blocks.front().begin));
  return one.k != nullptr && in_kernels(one.k) && in_kernels(one.v);
}

const std::byte* RowCopies::read_q(const Intervals& tokens, int64_t first, int64_t count, std::byte* out) {
  if (const std::byte* there = q_place(tokens, first, count)) return there;
  const int64_t row = int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
  share(input_.from_any_thread(), tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { input_.read_q(begin, rows, out + at * row); });
  return out;
}

kernels::KeyRows RowCopies::read_keys(const Intervals& tokens, int64_t first, int64_t count, int head, int heads, std::byte* k,
                                      std::byte* v) {
  if (heads == shape_.kv_heads)
    if (const kernels::KeyRows there = keys_place(tokens, first, count); there.k != nullptr) return there;
  const int64_t row = int64_t{heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
  const bool threaded = input_.from_any_thread();
  share(threaded, tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { input_.read_k(begin, rows, head, heads, k + at * row); });
  share(threaded, tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { input_.read_v(begin, rows, head, heads, v + at * row); });
  return {k, v};
}

kernels::Device::ResultRows RowCopies::place(const Intervals& tokens, int64_t first, int64_t count) const {
  const int64_t row = int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(output_type_));
  kernels::Device::ResultRows there;
  there.o = one_piece(tokens, first, count, row, [&](int64_t begin, int64_t rows) { return output_.in_place(begin, rows).o; });
  if (there.o == nullptr) return {};
  bool wanted = false;
  there.lse = one_piece(tokens, first, count, shape_.heads, [&](int64_t begin, int64_t rows) {
    float* const here = output_.in_place(begin, rows).lse;
    wanted = wanted || here != nullptr;
    return here;
  });
  if (wanted && there.lse == nullptr) return {};
  return there;
}

void RowCopies::write(const Intervals& tokens, int64_t first, int64_t count, const std::byte* o, const float* lse) {
  const int64_t row = int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(output_type_));
  share(output_.from_any_thread(), tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { output_.write(begin, rows, o + at * row, lse + at * shape_.heads); });
}

}  // namespace longspan::engine
