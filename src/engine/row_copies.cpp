#include "engine/row_copies.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace longspan::engine {

namespace {

constexpr int64_t kPartBytes = int64_t{1} << 20;  // of one thread at a time: 100 µs of copying, a wake-up takes some 10

}  // namespace

RowCopies::RowCopies(Input& input, Output& output, const Shape& shape, ElementType output_type, int threads)
    : input_(input), output_(output), shape_(shape), output_type_(output_type) {
  if (threads > 1 && (input.from_any_thread() || output.from_any_thread())) threads_.emplace(threads);
}

void RowCopies::share(bool threaded, const Intervals& tokens, int64_t first, int64_t count, int64_t row_bytes, const Copy& copy) {
  std::vector<int64_t> before;  // rows before each interval
  int64_t rows = 0;
  for (const Interval& run : tokens) before.push_back(std::exchange(rows, rows + run.length()));
  const auto copy_part = [&](int64_t begin, int64_t end) {  // of [0, count)
    auto run = static_cast<size_t>(std::upper_bound(before.begin(), before.end(), first + begin) - before.begin()) - 1;
    for (int64_t at = begin; at < end; ++run) {
      const int64_t inside = first + at - before[run], here = std::min(end - at, tokens[run].length() - inside);
      if (here > 0) copy(tokens[run].begin + inside, here, at), at += here;
    }
  };
  if (count == 0) return;
  const int64_t part = std::max<int64_t>(1, kPartBytes / row_bytes), parts = (count + part - 1) / part;
  if (!threaded || !threads_ || parts < 2) {
    copy_part(0, count);
    return;
  }
  const std::lock_guard lock(mutex_);
  threads_->for_each(parts, [&](int64_t item, int) { copy_part(item * part, std::min(count, (item + 1) * part)); });
}

void RowCopies::read_q(const Intervals& tokens, int64_t first, int64_t count, std::byte* out) {
  const int64_t row = int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
  share(input_.from_any_thread(), tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { input_.read_q(begin, rows, out + at * row); });
}

void RowCopies::read_keys(const Intervals& tokens, int64_t first, int64_t count, int head, int heads, std::byte* k, std::byte* v) {
  const int64_t row = int64_t{heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type));
  const bool threaded = input_.from_any_thread();
  share(threaded, tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { input_.read_k(begin, rows, head, heads, k + at * row); });
  share(threaded, tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { input_.read_v(begin, rows, head, heads, v + at * row); });
}

void RowCopies::write(const Intervals& tokens, int64_t first, int64_t count, const std::byte* o, const float* lse) {
  const int64_t row = int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(output_type_));
  share(output_.from_any_thread(), tokens, first, count, row,
        [&](int64_t begin, int64_t rows, int64_t at) { output_.write(begin, rows, o + at * row, lse + at * shape_.heads); });
}

}  // namespace longspan::engine
