// A small attention problem that every rank knows whole: seeded tensors, and the double reference row by row.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "comm/communicator.hpp"
#include "engine/data.hpp"
#include "kernels/reference/reference.hpp"
#include "longspan/shape.hpp"
#include "pattern/pattern.hpp"

namespace longspan::testing {

class Problem {
 public:
  Problem(Shape shape, Documents documents, const std::string& text, unsigned seed = 1)
      : Problem(shape, documents, pattern::BoundPattern(pattern::Pattern::parse(text), shape.heads, shape.kv_heads, documents), seed) {}
  Problem(Shape shape, Documents documents, pattern::BoundPattern pattern, unsigned seed)
      : shape_(shape), documents_(std::move(documents)), pattern_(std::move(pattern)) {
    shape_.tokens = documents_.tokens();
    std::mt19937 random(seed);
    for (auto [tensor, heads] : {std::pair(&q_, shape.heads), std::pair(&k_, shape.kv_heads), std::pair(&v_, shape.kv_heads)}) {
      tensor->resize(static_cast<size_t>(shape_.tokens * heads * shape.head_dim) * size_of(shape.type));
      std::normal_distribution<float> normal;
      for (size_t e = 0; e < tensor->size() / size_of(shape.type); ++e) store_element(tensor->data(), shape.type, e, normal(random));
    }
  }

  const Shape& shape() const { return shape_; }
  const Documents& documents() const { return documents_; }
  const pattern::BoundPattern& pattern() const { return pattern_; }
  std::vector<std::byte>& q() { return q_; }
  std::vector<std::byte>& k() { return k_; }
  std::vector<std::byte>& v() { return v_; }
  size_t row_bytes(int heads) const { return static_cast<size_t>(heads) * static_cast<size_t>(shape_.head_dim) * size_of(shape_.type); }

  // Overwrites the keys and values that no row of any query head of their KV head looks at with NaN. Returns how many there were.
  int64_t poison_unreferenced() {
    int64_t poisoned = 0;
    for (int kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) {
      for (int64_t j = 0; j < shape_.tokens; ++j) {
        bool seen = false;
        const int64_t document = documents_.holding(j), begin = documents_.begin(document), end = begin + documents_.length(document);
        for (int head = 0; head < shape_.heads && !seen; ++head) {
          if (shape_.kv_head_of(head) != kv_head) continue;
          for (int64_t i = begin; i < end && !seen; ++i) seen = pattern_.allowed(pattern_.group_of(head), document, i - begin, j - begin);
        }
        if (seen) continue;
        ++poisoned;
        for (int d = 0; d < shape_.head_dim; ++d) {
          const auto at = static_cast<size_t>((j * shape_.kv_heads + kv_head) * shape_.head_dim + d);
          store_element(k_.data(), shape_.type, at, std::numeric_limits<float>::quiet_NaN());
          store_element(v_.data(), shape_.type, at, std::numeric_limits<float>::quiet_NaN());
        }
      }
    }
    return poisoned;
  }

  // The row as doubles, and as a straightforward float32 evaluation rounded to the output type (its weights too, to the input's type, where
  // `rounded_weights`). Returns the LSE.
  double reference(int64_t token, int head, ElementType output_type, bool rounded_weights, std::vector<double>& o,
                   std::vector<float>& plain) const {
    const int64_t document = documents_.holding(token), begin = documents_.begin(document);
    const int group = pattern_.group_of(head), kv_head = shape_.kv_head_of(head);
    const auto dim = static_cast<size_t>(shape_.head_dim);
    std::vector<float> q(dim), keys, values;
    for (size_t d = 0; d < dim; ++d)
      q[d] = load_element(q_.data(), shape_.type, static_cast<size_t>(token * shape_.heads + head) * dim + d);
    for (int64_t j = 0; j < documents_.length(document); ++j) {
      if (!pattern_.allowed(group, document, token - begin, j)) continue;
      for (size_t d = 0; d < dim; ++d) {
        const size_t at = static_cast<size_t>((begin + j) * shape_.kv_heads + kv_head) * dim + d;
        keys.push_back(load_element(k_.data(), shape_.type, at));
        values.push_back(load_element(v_.data(), shape_.type, at));
      }
    }
    const double scale = 1 / std::sqrt(static_cast<double>(dim));
    o.assign(dim, 0);
    plain.assign(dim, 0);
    if (rounded_weights)
      kernels::reference::attend_row_rounded(q, keys, values, static_cast<float>(scale), shape_.type, plain);
    else
      kernels::reference::attend_row<float>(q, keys, values, static_cast<float>(scale), plain);
    for (float& value : plain) {
      store_element(&value, output_type, 0, value);
      value = load_element(&value, output_type, 0);
    }
    return kernels::reference::attend_row<double>(q, keys, values, scale, o);
  }

 private:
  Shape shape_;
  Documents documents_;
  pattern::BoundPattern pattern_;
  std::vector<std::byte> q_, k_, v_;
};

inline double unit_in_last_place(ElementType type, double value) {
  const int bits = type == ElementType::float32 ? 23 : type == ElementType::float16 ? 10 : 7;
  const int least = type == ElementType::float16 ? -24 : -149;
  if (value == 0) return std::ldexp(1.0, least);
  return std::ldexp(1.0, std::max(least, std::ilogb(std::abs(value)) - bits));
}

// DESIGN section 6: the error of O at most twice that of the straightforward evaluation (over all rows looked at) plus one unit in the last
// place; of LSE 1e-5·(1 + |LSE|). Looks at every `every`-th of the given rows; collective: the straightforward error is over all ranks'
// rows.
inline void expect_exact(const comm::Communicator& ranks, const Problem& problem, const Intervals& tokens, ElementType output_type,
                         const std::vector<std::byte>& o, const std::vector<float>& lse, int64_t every = 1, bool rounded_weights = false) {
  struct Row {
    int64_t token;
    int head;
    std::vector<double> exact;
  };
  std::vector<Row> rows;
  double plain_error = 0;
  const Shape& shape = problem.shape();
  std::vector<float> plain;
  for (const Interval& run : tokens) {
    for (int64_t token = run.begin; token < run.end; ++token) {
      if (token % every != 0 && token != run.begin && token + 1 != run.end) continue;
      for (int head = 0; head < shape.heads; ++head) {
        Row row{token, head, {}};
        const double exact_lse = problem.reference(token, head, output_type, rounded_weights, row.exact, plain);
        const float seen = lse[static_cast<size_t>(token * shape.heads + head)];
        if (std::isinf(exact_lse)) {
          EXPECT_EQ(seen, -std::numeric_limits<float>::infinity()) << "token " << token << " head " << head;
        } else {
          EXPECT_NEAR(seen, exact_lse, 1e-5 * (1 + std::abs(exact_lse))) << "token " << token << " head " << head;
        }
        for (size_t d = 0; d < plain.size(); ++d) plain_error = std::max(plain_error, std::abs(plain[d] - row.exact[d]));
        rows.push_back(std::move(row));
      }
    }
  }
  for (double other : ranks.all_gather(plain_error)) plain_error = std::max(plain_error, other);
  for (const Row& row : rows) {
    for (size_t d = 0; d < row.exact.size(); ++d) {
      const float seen =
          load_element(o.data(), output_type, static_cast<size_t>(row.token * shape.heads + row.head) * row.exact.size() + d);
      ASSERT_NEAR(seen, row.exact[d], 2 * plain_error + unit_in_last_place(output_type, row.exact[d]))
          << "token " << row.token << " head " << row.head << " element " << d;
    }
  }
}

class WholeInput : public engine::Input {
 public:
  explicit WholeInput(Problem& problem) : problem_(problem) {}
  void read_q(int64_t begin, int64_t count, std::byte* out) override {
    copy(problem_.q(), problem_.shape().heads, begin, count, 0, problem_.shape().heads, out);
  }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(problem_.k(), problem_.shape().kv_heads, begin, count, head, heads, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(problem_.v(), problem_.shape().kv_heads, begin, count, head, heads, out);
  }

 private:
  void copy(const std::vector<std::byte>& from, int all, int64_t begin, int64_t count, int head, int heads, std::byte* out) const {
    const size_t one = problem_.row_bytes(1);
    for (int64_t r = begin; r < begin + count; ++r, out += one * static_cast<size_t>(heads))
      std::memcpy(out, from.data() + static_cast<size_t>(r * all + head) * one, one * static_cast<size_t>(heads));
  }
  Problem& problem_;
};

// All rows of the sequence, those of other ranks untouched (poisoned).
class WholeOutput : public engine::Output {
 public:
  WholeOutput(const Shape& shape, ElementType type)
      : shape_(shape),
        row_(static_cast<size_t>(shape.heads * shape.head_dim) * size_of(type)),
        o(static_cast<size_t>(shape.tokens) * row_, std::byte{0xff}),
        lse(static_cast<size_t>(shape.tokens * shape.heads), std::numeric_limits<float>::quiet_NaN()) {}
  void write(int64_t begin, int64_t count, const std::byte* rows, const float* row_lse) override {
    if (before_write) before_write(begin);
    std::memcpy(o.data() + static_cast<size_t>(begin) * row_, rows, static_cast<size_t>(count) * row_);
    std::memcpy(lse.data() + begin * shape_.heads, row_lse, static_cast<size_t>(count * shape_.heads) * sizeof(float));
  }
  void stripe_written(int64_t stripe) override { stripes.push_back(stripe); }
  bool from_any_thread() const override { return any_thread; }
  std::vector<uint32_t> lse_bits(Interval tokens) const {
    std::vector<uint32_t> bits;
    for (int64_t at = tokens.begin * shape_.heads; at < tokens.end * shape_.heads; ++at)
      bits.push_back(std::bit_cast<uint32_t>(lse[static_cast<size_t>(at)]));
    return bits;
  }
  std::vector<std::byte> rows(Interval tokens) const {
    return {o.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(tokens.begin) * row_),
            o.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(tokens.end) * row_)};
  }

 private:
  Shape shape_;
  size_t row_;

 public:
  std::vector<std::byte> o;
  std::vector<float> lse;
  std::vector<int64_t> stripes;
  bool any_thread = false;
  std::function<void(int64_t begin)> before_write;
};

}  // namespace longspan::testing
