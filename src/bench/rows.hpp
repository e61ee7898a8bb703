// Rows for measurements: where they come from and where results go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/data.hpp"
#include "io/corpus.hpp"
#include "kernels/device.hpp"
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

// Rows that lie in memory of the device's choice (pinned, for a GPU, which then copies them by itself, as it does a caller's).
class RowsInMemory : public engine::Input {
 public:
  void read_q(int64_t begin, int64_t count, std::byte* out) override { copy(q_, shape_.heads, begin, count, 0, shape_.heads, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(k_, shape_.kv_heads, begin, count, head, heads, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(v_, shape_.kv_heads, begin, count, head, heads, out);
  }
  const std::byte* q_in_place(int64_t begin, int64_t count) override { return place(q_, shape_.heads, begin, count); }
  const std::byte* k_in_place(int64_t begin, int64_t count) override { return place(k_, shape_.kv_heads, begin, count); }
  const std::byte* v_in_place(int64_t begin, int64_t count) override { return place(v_, shape_.kv_heads, begin, count); }
  bool from_any_thread() const override { return true; }

 protected:
  // Room for `rows` of Q, K and V; `device` outlives them.
  RowsInMemory(const Shape& shape, int64_t rows, kernels::Device& device);
  // The row of token `begin` if those of `count` tokens from it on lie one after another, else -1. One token's row is always there.
  virtual int64_t first_of(int64_t begin, int64_t count) const = 0;

  Shape shape_;
  kernels::Buffer q_, k_, v_;  // [rows][heads][head_dim]

 private:
  void copy(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count, int head, int heads, std::byte* out) const;
  const std::byte* place(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count) const;
  bool straight_;
};

// `rows` rows of SyntheticRows' table, over and over.
class RepeatedRows : public RowsInMemory {
 public:
  RepeatedRows(const Shape& shape, int64_t rows, kernels::Device& device);

 private:
  int64_t first_of(int64_t begin, int64_t count) const override { return begin % rows_ + count <= rows_ ? begin % rows_ : -1; }
  int64_t rows_;
};

// For measurements on `device`, which outlives them: as a caller may have them, the fastest way for the device. `rows`: how many a rank has
// (where they take memory, they repeat after 1 GiB of queries).
std::unique_ptr<engine::Input> synthetic_rows(const Shape& shape, int64_t rows, kernels::Device& device);

// Rows of a file, read once and kept: a measurement is not one of the disk.
class HeldRows : public RowsInMemory {
 public:
  // `tokens`: those that will be asked for, ascending. Throws Error(io), and Error(environment) where so much memory cannot be had.
  HeldRows(const io::CorpusReader& reader, Intervals tokens, kernels::Device& device);

 private:
  int64_t first_of(int64_t begin, int64_t count) const override;
  Intervals tokens_;
};

class Discard : public engine::Output {
 public:
  void write(int64_t, int64_t, const std::byte*, const float*) override {}
};

}  // namespace longspan::bench
