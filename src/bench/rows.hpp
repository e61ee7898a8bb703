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

// Rows that lie in host memory of the device's choice (pinned, for a GPU, which then copies them straight, as it does a caller's).
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

// Where rows lie that a caller holds in memory.
enum class RowsIn { host, device };

// What a job reads and writes.
struct JobRows {
  std::shared_ptr<engine::Input> input;
  std::shared_ptr<engine::Output> output;
};

// Rows of one job after another: one job's are done with when the next one's are asked for. The device outlives them.
class RowSource {
 public:
  virtual ~RowSource() = default;
  virtual JobRows of(const Intervals& tokens) = 0;  // a rank's, ascending
};

// As a caller may have them, the fastest way for the device. In host memory: normal random numbers out of a table for CPUs, for a GPU
// repeated in pinned memory after `rows` rows or 1 GiB of queries; results are dropped. On the device: as many as the largest job has.
std::unique_ptr<RowSource> synthetic_rows(const Shape& shape, ElementType output_type, int64_t rows, kernels::Device& device, RowsIn where);

// Rows of a file, read once and kept: a measurement is not one of the disk.
class HeldRows : public RowsInMemory {
 public:
  // `tokens`: those that will be asked for, ascending. Throws Error(io), and Error(environment) where so much memory cannot be had.
  HeldRows(const io::CorpusReader& reader, const Intervals& tokens, kernels::Device& device);

 private:
  int64_t first_of(int64_t begin, int64_t count) const override;
  Numbering rows_;  // of tokens
};

class Discard : public engine::Output {
 public:
  void write(int64_t, int64_t, const std::byte*, const float*) override {}
  bool from_any_thread() const override { return true; }
};

// Rows in memory of the device's own (Device::allocate), where kernels use them in place, and room for their results.
class DeviceRows : public std::enable_shared_from_this<DeviceRows> {
 public:
  DeviceRows(const Shape& shape, ElementType output_type, kernels::Device& device)
      : shape_(shape), output_type_(output_type), device_(device) {}
  // Makes room for `tokens` and copies their rows there, one after another.
  void fill(const Intervals& tokens, engine::Input& from);
  int64_t rows() const { return rows_; }
  // The first rows under the numbers of these tokens, no more than there are; until the next fill(). Keeps this object.
  JobRows as(const Intervals& tokens) const;

 private:
  class View;

  Shape shape_;
  ElementType output_type_;
  kernels::Device& device_;
  int64_t rows_ = 0;
  kernels::Buffer q_, k_, v_, o_, lse_;
};

}  // namespace longspan::bench
