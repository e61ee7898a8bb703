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

// Rows of that table in memory that `device` copies from straight, `rows` of them over and over: a GPU takes them as it does a caller's.
class StraightRows : public engine::Input {
 public:
  StraightRows(const Shape& shape, int64_t rows, kernels::Device& device);
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

 private:
  void copy(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count, int head, int heads, std::byte* out) const;
  const std::byte* place(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count) const;

  Shape shape_;
  int64_t rows_;
  kernels::Buffer q_, k_, v_;
};

// For measurements on `device`, which outlives them: rows as a caller may have them, the fastest way for the device. `rows`: how many a
// rank has (where they take memory, they repeat after 1 GiB of queries).
std::unique_ptr<engine::Input> synthetic_rows(const Shape& shape, int64_t rows, kernels::Device& device);

// Rows of a file, read once and kept, as the device takes them fastest: a measurement is not one of the disk.
class HeldRows : public engine::Input {
 public:
  // `tokens`: those that will be asked for, ascending. `device` outlives the rows. Throws Error(io).
  HeldRows(const io::CorpusReader& reader, Intervals tokens, kernels::Device& device);
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

 private:
  void copy(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count, int head, int heads, std::byte* out) const;
  const std::byte* place(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count) const;
  const std::byte* rows_of(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count) const;

  Shape shape_;
  Intervals tokens_;
  kernels::Buffer q_, k_, v_;
  bool straight_;
};

class Discard : public engine::Output {
 public:
  void write(int64_t, int64_t, const std::byte*, const float*) override {}
};

}  // namespace longspan::bench
