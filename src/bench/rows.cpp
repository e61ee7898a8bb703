#include "bench/rows.hpp"

#include <cstring>
#include <random>

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

HeldRows::HeldRows(const io::CorpusReader& reader, Intervals tokens) : shape_(reader.layout().shape), tokens_(std::move(tokens)) {
  const int64_t rows = size_of(tokens_);
  q_.resize(static_cast<size_t>(rows * shape_.heads * row_bytes(shape_)));
  k_.resize(static_cast<size_t>(rows * shape_.kv_heads * row_bytes(shape_)));
  v_.resize(k_.size());
  int64_t row = 0;
  for (const Interval& run : tokens_) {
    const int64_t count = run.length();
    reader.read_q(run.begin, count, q_.data() + row * shape_.heads * row_bytes(shape_));
    reader.read_k(run.begin, count, 0, shape_.kv_heads, k_.data() + row * shape_.kv_heads * row_bytes(shape_));
    reader.read_v(run.begin, count, 0, shape_.kv_heads, v_.data() + row * shape_.kv_heads * row_bytes(shape_));
    row += count;
  }
}

void HeldRows::copy(const std::vector<std::byte>& from, int all_heads, int64_t begin, int64_t count, int head, int heads,
                    std::byte* out) const {
  int64_t before = 0;
  for (const Interval& run : tokens_) {
    if (begin >= run.begin && begin + count <= run.end) {
      const std::byte* rows = from.data() + (before + begin - run.begin) * all_heads * row_bytes(shape_);
      const auto bytes = static_cast<size_t>(heads * row_bytes(shape_));
      for (int64_t r = 0; r < count; ++r, out += bytes) std::memcpy(out, rows + (r * all_heads + head) * row_bytes(shape_), bytes);
      return;
    }
    before += run.length();
  }
  internal_error("rows that are not held were asked for");
}

}  // namespace longspan::bench
