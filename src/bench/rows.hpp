// Rows for measurements: where they come from and where results go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/data.hpp"
#include "io/corpus.hpp"
#include "longspan/shape.hpp"
#include "pattern/intervals.hpp"

namespace longspan::bench {

// Normal random numbers out of a table, whatever rows are asked for: takes no memory of the size of the sequence, and a read costs what a
// copy of a caller's rows costs. Equal rows have equal elements.
class SyntheticRows : public engine::Input {
 public:
  explicit SyntheticRows(const Shape& shape);
  void read_q(int64_t begin, int64_t count, std::byte* out) override { copy(0, begin, count, 0, shape_.heads, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override { copy(1, begin, count, head, heads, out); }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override { copy(2, begin, count, head, heads, out); }
  bool from_any_thread() const override { return true; }

 private:
  void copy(int64_t dataset, int64_t begin, int64_t count, int head, int heads, std::byte* out) const;

  Shape shape_;
  std::vector<std::byte> table_;
};

// Rows of a file, read once and kept: a measurement is not one of the disk.
class HeldRows : public engine::Input {
 public:
  // `tokens`: those that will be asked for, ascending. Throws Error(io).
  HeldRows(const io::CorpusReader& reader, Intervals tokens);
  void read_q(int64_t begin, int64_t count, std::byte* out) override { copy(q_, shape_.heads, begin, count, 0, shape_.heads, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(k_, shape_.kv_heads, begin, count, head, heads, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(v_, shape_.kv_heads, begin, count, head, heads, out);
  }
  bool from_any_thread() const override { return true; }

 private:
  void copy(const std::vector<std::byte>& from, int all_heads, int64_t begin, int64_t count, int head, int heads, std::byte* out) const;

  Shape shape_;
  Intervals tokens_;
  std::vector<std::byte> q_, k_, v_;
};

class Discard : public engine::Output {
 public:
  void write(int64_t, int64_t, const std::byte*, const float*) override {}
};

}  // namespace longspan::bench
