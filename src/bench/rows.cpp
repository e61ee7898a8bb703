#include "bench/rows.hpp"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "kernels/cpu/thread_pool.hpp"
#include "longspan/element_type.hpp"
#include "longspan/error.hpp"

namespace longspan::bench {

namespace {

constexpr int64_t kTableElements = int64_t{1} << 20;

int64_t row_bytes(const Shape& shape) { return int64_t{shape.head_dim} * static_cast<int64_t>(size_of(shape.type)); }

}  // namespace

SyntheticRows::SyntheticRows(const Shape& shape) : shape_(shape) {
  const int64_t elements = kTableElements + int64_t{std::max(shape.heads, shape.kv_heads)} * shape.head_dim;
  table_.resize(static_cast<size_t>(elements) * size_of(shape.type));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int64_t e = 0; e < elements; ++e) store_element(table_.data(), shape.type, static_cast<size_t>(e), normal(random));
}

void SyntheticRows::copy(int64_t dataset, int64_t begin, int64_t count, int head, int heads, std::byte* out) const {
  const auto bytes = static_cast<size_t>(heads * row_bytes(shape_));
  for (int64_t token = begin; token < begin + count; ++token, out += bytes) {
    // Any place in the table will do, as long as near tokens have far ones: Knuth's multiplicative hash.
    const auto place = static_cast<uint64_t>(token * 3 + dataset) * 0x9e3779b97f4a7c15 >> 44;  // 20 bits: an element of the table
    const size_t at = place * size_of(shape_.type) + static_cast<size_t>(head * row_bytes(shape_));
    std::memcpy(out, table_.data() + at, bytes);
  }
}

RowsInMemory::RowsInMemory(const Shape& shape, int64_t rows, kernels::Device& device)
    : shape_(shape),
      q_(device.allocate_host(rows * shape.heads * row_bytes(shape))),
      k_(device.allocate_host(rows * shape.kv_heads * row_bytes(shape))),
      v_(device.allocate_host(rows * shape.kv_heads * row_bytes(shape))),
      straight_(device.copies_straight(q_.get())) {}

void RowsInMemory::copy(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count, int head, int heads,
                        std::byte* out) const {
  const auto bytes = static_cast<size_t>(heads * row_bytes(shape_));
  for (int64_t token = begin; token < begin + count; ++token, out += bytes)
    std::memcpy(out, from.get() + (first_of(token, 1) * all_heads + head) * row_bytes(shape_), bytes);
}

const std::byte* RowsInMemory::place(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count) const {
  const int64_t first = straight_ ? first_of(begin, count) : -1;
  return first < 0 ? nullptr : from.get() + first * all_heads * row_bytes(shape_);
}

RepeatedRows::RepeatedRows(const Shape& shape, int64_t rows, kernels::Device& device) : RowsInMemory(shape, rows, device), rows_(rows) {
  SyntheticRows table(shape);
  constexpr int64_t kAtOnce = 256;
  kernels::cpu::ThreadPool threads(std::max(1, device.spare_threads()));
  threads.for_each((rows + kAtOnce - 1) / kAtOnce, [&](int64_t part, int) {
    const int64_t begin = part * kAtOnce, count = std::min(kAtOnce, rows - begin);
    table.read_q(begin, count, q_.get() + begin * shape.heads * row_bytes(shape));
    table.read_k(begin, count, 0, shape.kv_heads, k_.get() + begin * shape.kv_heads * row_bytes(shape));
    table.read_v(begin, count, 0, shape.kv_heads, v_.get() + begin * shape.kv_heads * row_bytes(shape));
  });
}

std::unique_ptr<engine::Input> synthetic_rows(const Shape& shape, int64_t rows, kernels::Device& device) {
  constexpr int64_t kMostBytes = int64_t{1} << 30;  // of queries
  if (device.memory_is_host()) return std::make_unique<SyntheticRows>(shape);
  const int64_t most = std::max<int64_t>(1, kMostBytes / (shape.heads * row_bytes(shape)));
  return std::make_unique<RepeatedRows>(shape, std::clamp<int64_t>(rows, 1, most), device);
}

HeldRows::HeldRows(const io::CorpusReader& reader, Intervals tokens, kernels::Device& device)
    : RowsInMemory(reader.layout().shape, size_of(tokens), device), tokens_(std::move(tokens)) {
  int64_t row = 0;
  for (const Interval& run : tokens_) {
    const int64_t count = run.length();
    reader.read_q(run.begin, count, q_.get() + row * shape_.heads * row_bytes(shape_));
    reader.read_k(run.begin, count, 0, shape_.kv_heads, k_.get() + row * shape_.kv_heads * row_bytes(shape_));
    reader.read_v(run.begin, count, 0, shape_.kv_heads, v_.get() + row * shape_.kv_heads * row_bytes(shape_));
    row += count;
  }
}

int64_t HeldRows::first_of(int64_t begin, int64_t count) const {
  int64_t before = 0;
  for (const Interval& run : tokens_) {
    if (run.contains(begin)) return begin + count <= run.end ? before + begin - run.begin : -1;
    before += run.length();
  }
  internal_error("rows that are not held were asked for");
}

}  // namespace longspan::bench
