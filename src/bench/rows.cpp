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
      straight_(device.reach(q_.get()).straight) {}

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

namespace {

class SyntheticSource : public RowSource {
 public:
  SyntheticSource(const Shape& shape, ElementType output_type, int64_t rows, kernels::Device& device, RowsIn where)
      : output_(std::make_shared<Discard>()) {
    constexpr int64_t kMostBytes = int64_t{1} << 30;  // of queries
    const int64_t most = std::max<int64_t>(1, kMostBytes / (shape.heads * row_bytes(shape)));
    if (device.memory_is_host())
      input_ = std::make_shared<SyntheticRows>(shape);
    else
      input_ = std::make_shared<RepeatedRows>(shape, std::clamp<int64_t>(rows, 1, most), device);
    if (where == RowsIn::device) on_device_ = std::make_shared<DeviceRows>(shape, output_type, device);
  }
  JobRows of(const Intervals& tokens) override {
    if (!on_device_) return {input_, output_};
    const int64_t rows = size_of(tokens);
    if (rows > on_device_->rows()) on_device_->fill({{0, rows}}, *input_);
    return on_device_->as(tokens);
  }

 private:
  std::shared_ptr<engine::Input> input_;
  std::shared_ptr<engine::Output> output_;
  std::shared_ptr<DeviceRows> on_device_;
};

}  // namespace

std::unique_ptr<RowSource> synthetic_rows(const Shape& shape, ElementType output_type, int64_t rows, kernels::Device& device,
                                          RowsIn where) {
  return std::make_unique<SyntheticSource>(shape, output_type, rows, device, where);
}

HeldRows::HeldRows(const io::CorpusReader& reader, const Intervals& tokens, kernels::Device& device)
    : RowsInMemory(reader.layout().shape, size_of(tokens), device), rows_(tokens) {
  int64_t row = 0;
  for (const Interval& run : tokens) {
    const int64_t count = run.length();
    reader.read_q(run.begin, count, q_.get() + row * shape_.heads * row_bytes(shape_));
    reader.read_k(run.begin, count, 0, shape_.kv_heads, k_.get() + row * shape_.kv_heads * row_bytes(shape_));
    reader.read_v(run.begin, count, 0, shape_.kv_heads, v_.get() + row * shape_.kv_heads * row_bytes(shape_));
    row += count;
  }
}

int64_t HeldRows::first_of(int64_t begin, int64_t count) const {
  const int64_t first = rows_.of(begin), last = rows_.of(begin + count - 1);
  if (first < 0) internal_error("rows that are not held were asked for");
  return last - first == count - 1 ? first : -1;
}

class DeviceRows::View : public engine::Input, public engine::Output {
 public:
  View(std::shared_ptr<const DeviceRows> rows, const Intervals& tokens) : kept_(std::move(rows)), rows_(*kept_), tokens_(tokens) {
    if (tokens_.count() > rows_.rows_) internal_error("more rows are asked for than there are");
  }
  const std::byte* q_in_place(int64_t begin, int64_t) override { return place(rows_.q_, rows_.shape_.heads, begin); }
  const std::byte* k_in_place(int64_t begin, int64_t) override { return place(rows_.k_, rows_.shape_.kv_heads, begin); }
  const std::byte* v_in_place(int64_t begin, int64_t) override { return place(rows_.v_, rows_.shape_.kv_heads, begin); }
  kernels::Device::ResultRows in_place(int64_t begin, int64_t) override {
    const int64_t state = local(begin) * rows_.shape_.heads;
    const auto element = static_cast<int64_t>(size_of(rows_.output_type_));
    return {rows_.o_.get() + state * rows_.shape_.head_dim * element, reinterpret_cast<float*>(rows_.lse_.get()) + state};
  }
  void read_q(int64_t begin, int64_t count, std::byte* out) override {
    read(rows_.q_, rows_.shape_.heads, begin, count, 0, rows_.shape_.heads, out);
  }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    read(rows_.k_, rows_.shape_.kv_heads, begin, count, head, heads, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    read(rows_.v_, rows_.shape_.kv_heads, begin, count, head, heads, out);
  }
  void write(int64_t, int64_t, const std::byte*, const float*) override { internal_error("results are written that have a place"); }

 private:
  int64_t local(int64_t token) const {
    const int64_t row = tokens_.of(token);
    if (row < 0) internal_error("rows that are not held were asked for");
    return row;
  }
  std::byte* place(const kernels::Buffer& of, int heads, int64_t token) const {
    return of.get() + local(token) * heads * row_bytes(rows_.shape_);
  }
  void read(const kernels::Buffer& from, int all_heads, int64_t begin, int64_t count, int head, int heads, std::byte* out) const {
    const int64_t row = all_heads * row_bytes(rows_.shape_), part = heads * row_bytes(rows_.shape_);
    std::vector<std::byte> all(static_cast<size_t>(count * row));
    rows_.device_.download(place(from, all_heads, begin), count * row, all.data());
    for (int64_t r = 0; r < count; ++r, out += part)
      std::memcpy(out, all.data() + r * row + head * row_bytes(rows_.shape_), static_cast<size_t>(part));
  }

  std::shared_ptr<const DeviceRows> kept_;
  const DeviceRows& rows_;
  Numbering tokens_;
};

void DeviceRows::fill(const Intervals& tokens, engine::Input& from) {
  constexpr int64_t kAtOnce = 4096;  // rows
  rows_ = size_of(tokens);
  const int64_t q_row = shape_.heads * row_bytes(shape_), k_row = shape_.kv_heads * row_bytes(shape_);
  const int64_t o_row = shape_.heads * shape_.head_dim * static_cast<int64_t>(size_of(output_type_));
  for (auto [buffer, bytes] : {std::pair(&q_, q_row), std::pair(&k_, k_row), std::pair(&v_, k_row), std::pair(&o_, o_row),
                               std::pair(&lse_, int64_t{shape_.heads} * 4)}) {
    buffer->reset();
    *buffer = device_.allocate(rows_ * bytes);
  }
  const kernels::Buffer piece = device_.allocate_host(kAtOnce * std::max(q_row, k_row));
  int64_t row = 0;
  for (const Interval& run : tokens) {
    for (int64_t begin = run.begin; begin < run.end; begin += kAtOnce) {
      const int64_t count = std::min(kAtOnce, run.end - begin);
      from.read_q(begin, count, piece.get());
      device_.upload(piece.get(), count * q_row, q_.get() + row * q_row);
      from.read_k(begin, count, 0, shape_.kv_heads, piece.get());
      device_.upload(piece.get(), count * k_row, k_.get() + row * k_row);
      from.read_v(begin, count, 0, shape_.kv_heads, piece.get());
      device_.upload(piece.get(), count * k_row, v_.get() + row * k_row);
      row += count;
    }
  }
}

JobRows DeviceRows::as(const Intervals& tokens) const {
  const auto view = std::make_shared<View>(shared_from_this(), tokens);
  return {view, view};
}

}  // namespace longspan::bench
