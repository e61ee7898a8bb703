#include "longspan/attention.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <optional>

#include "comm/transport.hpp"
#include "engine/engine.hpp"
#include "kernels/cpu/device.hpp"
#include "launch/gpu_choice.hpp"
#include "launch/topology.hpp"
#include "longspan/error.hpp"
#include "plan/memory.hpp"

namespace longspan {

namespace {

// Local rows of a caller's tensors under global token numbers.
class Rows {
 public:
  explicit Rows(const Intervals& tokens) : tokens_(tokens) {
    for (const Interval& run : tokens_) {
      first_.push_back(count_);
      count_ += run.length();
    }
  }
  int64_t count() const { return count_; }
  int64_t local(int64_t token) const {
    for (size_t r = 0; r < tokens_.size(); ++r)
      if (tokens_[r].contains(token)) return first_[r] + token - tokens_[r].begin;
    internal_error("a row is asked for that this rank does not own");
  }

 private:
  const Intervals& tokens_;
  std::vector<int64_t> first_;
  int64_t count_ = 0;
};

struct Strides {
  int64_t row, head;  // bytes
  Strides(int64_t row_stride, int64_t head_stride, int heads, int head_dim, ElementType type) {
    const auto element = static_cast<int64_t>(size_of(type));
    head = (head_stride != 0 ? head_stride : head_dim) * element;
    row = (row_stride != 0 ? row_stride : int64_t{heads} * head_dim) * element;
    packed_head = head_dim * element;
  }
  bool lie_together(int heads) const { return head == packed_head && row == heads * packed_head; }

 private:
  int64_t packed_head;
};

// Whether the device copies all of the memory straight.
bool reaches(const kernels::Device& device, const void* begin, int64_t bytes) {
  return bytes > 0 && device.copies_straight(begin) && device.copies_straight(static_cast<const std::byte*>(begin) + bytes - 1);
}

class MemoryInput : public engine::Input {
 public:
  MemoryInput(const Shape& shape, const Rows& rows, ConstTensor q, ConstTensor k, ConstTensor v, const kernels::Device& device)
      : shape_(shape),
        rows_(rows),
        q_(q),
        k_(k),
        v_(v),
        straight_{is_straight(q, shape.heads, device), is_straight(k, shape.kv_heads, device), is_straight(v, shape.kv_heads, device)} {}
  void read_q(int64_t begin, int64_t count, std::byte* out) override { copy(q_, shape_.heads, begin, count, 0, shape_.heads, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(k_, shape_.kv_heads, begin, count, head, heads, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    copy(v_, shape_.kv_heads, begin, count, head, heads, out);
  }
  const std::byte* q_in_place(int64_t begin, int64_t) override { return straight_[0] ? rows_of(q_, shape_.heads, begin) : nullptr; }
  const std::byte* k_in_place(int64_t begin, int64_t) override { return straight_[1] ? rows_of(k_, shape_.kv_heads, begin) : nullptr; }
  const std::byte* v_in_place(int64_t begin, int64_t) override { return straight_[2] ? rows_of(v_, shape_.kv_heads, begin) : nullptr; }
  bool from_any_thread() const override { return true; }

 private:
  bool is_straight(const ConstTensor& of, int heads, const kernels::Device& device) const {
    const Strides strides(of.row_stride, of.head_stride, heads, shape_.head_dim, shape_.type);
    return strides.lie_together(heads) && reaches(device, of.data, rows_.count() * strides.row);
  }
  const std::byte* rows_of(const ConstTensor& of, int heads, int64_t token) const {
    const Strides strides(of.row_stride, of.head_stride, heads, shape_.head_dim, shape_.type);
    return static_cast<const std::byte*>(of.data) + rows_.local(token) * strides.row;
  }
  void copy(const ConstTensor& from, int all_heads, int64_t begin, int64_t count, int head, int heads, std::byte* out) const {
    const Strides strides(from.row_stride, from.head_stride, all_heads, shape_.head_dim, shape_.type);
    const auto bytes = size_of(shape_.type) * static_cast<size_t>(shape_.head_dim);
    const auto* base = static_cast<const std::byte*>(from.data) + rows_.local(begin) * strides.row;
    if (strides.head == static_cast<int64_t>(bytes)) {  // a row's heads lie side by side
      const size_t row = bytes * static_cast<size_t>(heads);
      base += head * strides.head;
      for (int64_t r = 0; r < count; ++r, out += row) std::memcpy(out, base + r * strides.row, row);
      return;
    }
    for (int64_t r = 0; r < count; ++r)
      for (int h = head; h < head + heads; ++h, out += bytes) std::memcpy(out, base + r * strides.row + h * strides.head, bytes);
  }

  const Shape& shape_;
  const Rows& rows_;
  ConstTensor q_, k_, v_;
  std::array<bool, 3> straight_;
};

class MemoryOutput : public engine::Output {
 public:
  MemoryOutput(const Shape& shape, ElementType type, const Rows& rows, Tensor o, float* lse, const kernels::Device& device)
      : shape_(shape), type_(type), rows_(rows), o_(o), lse_(lse) {
    const Strides strides(o.row_stride, o.head_stride, shape.heads, shape.head_dim, type);
    straight_ = strides.lie_together(shape.heads) && reaches(device, o.data, rows.count() * strides.row) &&
                (lse == nullptr || reaches(device, lse, rows.count() * shape.heads * static_cast<int64_t>(sizeof(float))));
  }
  kernels::Device::ResultRows in_place(int64_t begin, int64_t) override {
    if (!straight_) return {};
    const int64_t first = rows_.local(begin);
    const Strides strides(o_.row_stride, o_.head_stride, shape_.heads, shape_.head_dim, type_);
    return {static_cast<std::byte*>(o_.data) + first * strides.row, lse_ != nullptr ? lse_ + first * shape_.heads : nullptr};
  }
  void write(int64_t begin, int64_t count, const std::byte* o, const float* lse) override {
    const Strides strides(o_.row_stride, o_.head_stride, shape_.heads, shape_.head_dim, type_);
    const auto bytes = size_of(type_) * static_cast<size_t>(shape_.head_dim);
    const int64_t first = rows_.local(begin);
    auto* base = static_cast<std::byte*>(o_.data) + first * strides.row;
    if (strides.head == static_cast<int64_t>(bytes)) {
      const size_t row = bytes * static_cast<size_t>(shape_.heads);
      for (int64_t r = 0; r < count; ++r, o += row) std::memcpy(base + r * strides.row, o, row);
    } else {
      for (int64_t r = 0; r < count; ++r)
        for (int h = 0; h < shape_.heads; ++h, o += bytes) std::memcpy(base + r * strides.row + h * strides.head, o, bytes);
    }
    if (lse_ != nullptr) std::memcpy(lse_ + first * shape_.heads, lse, static_cast<size_t>(count * shape_.heads) * sizeof(float));
  }
  bool from_any_thread() const override { return true; }

 private:
  const Shape& shape_;
  ElementType type_;
  const Rows& rows_;
  Tensor o_;
  float* lse_;
  bool straight_;
};

void check_shape(const Shape& shape, const Documents& documents) {
  const auto refuse = [](const std::string& what, int64_t seen, const std::string& expected) {
    throw Error({.code = ExitCode::usage,
                 .what = what,
                 .seen = std::to_string(seen),
                 .expected = expected,
                 .from = "shape of longspan::Attention"});
  };
  if (shape.tokens < 1) refuse("too few tokens", shape.tokens, "at least 1");
  if (shape.kv_heads < 1 || shape.heads < 1 || shape.heads % shape.kv_heads != 0)
    refuse("heads is not a multiple of kv_heads", shape.heads, "a multiple of kv_heads");
  if (shape.head_dim < 8 || shape.head_dim > 256 || shape.head_dim % 8 != 0)
    refuse("head_dim is not supported", shape.head_dim, "8, 16, … 256");
  if (documents.tokens() != shape.tokens)
    refuse("the documents do not end at the last token", documents.tokens(), std::to_string(shape.tokens));
}

// Everything that must be the same on all ranks, as text.
std::string fingerprint(const Shape& shape, const std::string& pattern, const Documents& documents, const AttentionOptions& options) {
  uint64_t offsets = 1469598103934665603u;
  for (int64_t offset : documents.offsets()) offsets = (offsets ^ static_cast<uint64_t>(offset)) * 1099511628211u;
  return fmt::format(
      "tokens {}, heads {}, kv_heads {}, head_dim {}, {}, documents {} ({:x}), pattern {}, partition {}, output {}, reproducible {}, scale "
      "{}, device {}",
      shape.tokens, shape.heads, shape.kv_heads, shape.head_dim, name_of(shape.type), documents.count(), offsets, pattern,
      plan::name_of(options.partition), name_of(options.output_type), options.reproducible, options.scale, name_of(options.device));
}

}  // namespace

struct Attention::State {
  State(MPI_Comm communicator, const Shape& shape_, const std::string& pattern_text, const Documents& documents, AttentionOptions options_)
      : ranks(communicator), shape(shape_), options(std::move(options_)) {
    ranks.agreed([&] {
      check_shape(shape, documents);
      pattern.emplace(pattern::Pattern::parse(pattern_text), shape.heads, shape.kv_heads, documents, options.block_masks);
    });
    const std::string mine = fingerprint(shape, pattern_text, documents, options);
    const std::string first = ranks.broadcast(mine);
    std::vector<Problem> problems;
    if (mine != first) {
      problems.push_back({.code = ExitCode::usage,
                          .what = "the ranks were given different arguments",
                          .seen = mine,
                          .expected = first + " (rank 0)",
                          .from = "longspan::Attention"});
    }
    ranks.agree(problems);
    blocks.emplace(documents);
    gpu = launch::choose_gpu(ranks, options.device, options.share_gpu);
    plan_all();
    ranks.agreed([&] {
      if (gpu.gpu)
        device = kernels::open_gpu(*gpu.gpu);
      else
        device = std::make_unique<kernels::cpu::CpuDevice>(options.threads > 0 ? options.threads : kernels::cpu::available_cpus());
    });
    transport = comm::make_transport(ranks, comm::TransportKind::automatic, gpu.gpu ? std::optional(gpu.gpu->ordinal) : std::nullopt,
                                     gpu.sharers > 1, options.timeout);
  }

  void plan_all() {
    plan::Options plan_options;
    plan_options.partition = options.partition;
    plan_options.output_type = options.output_type;
    plan_options.reproducible = options.reproducible;
    plan_options.keys_can_be_read_again = false;
    plan_options.stripes = 1;
    plan_options.rows_are_copied = gpu.gpu.has_value();
    plan_options.exact_tiles = std::numeric_limits<int64_t>::max();
    constexpr int64_t kNotGiven = std::numeric_limits<int64_t>::max();
    int64_t memory = ranks.min(options.memory > 0 ? options.memory : kNotGiven);
    if (memory == kNotGiven) {
      // All keys of the sequence and all rows of a rank twice over are more than any plan uses; pages that are not touched cost nothing.
      const int64_t keys = blocks->count() * shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
      const int64_t rows = (blocks->count() + 1) * plan::block_row_bytes(shape, options.output_type);
      memory = 4 * (keys + rows) + (int64_t{1} << 30);
      if (gpu.gpu) memory = ranks.min(std::min(memory, launch::memory_share(gpu.free_memory, gpu.sharers)));
    }
    plan_options.memory = memory;
    plan::RankPlan plan;
    ranks.agreed([&] {
      shared.emplace(plan::make_shared(*pattern, *blocks, shape, ranks.size(), plan_options));
      plan = plan::make_rank_plan(*shared, *pattern, *blocks, ranks.rank());
    });
    engine.emplace(ranks, *pattern, *blocks, *shared, std::move(plan));
    for (const Interval& run : engine->plan().own) append(tokens, {blocks->tokens(run.begin).begin, blocks->tokens(run.end - 1).end});
  }

  comm::Communicator ranks;
  Shape shape;
  AttentionOptions options;
  std::optional<pattern::BoundPattern> pattern;
  std::optional<plan::Blocks> blocks;
  std::optional<plan::Shared> shared;
  std::optional<engine::Engine> engine;
  launch::GpuChoice gpu;
  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<comm::Transport> transport;
  Intervals tokens;
  engine::Record record;
};

Attention::Attention(MPI_Comm communicator, const Shape& shape, const std::string& pattern, AttentionOptions options)
    : Attention(communicator, shape, pattern, Documents::single(shape.tokens), std::move(options)) {}
Attention::Attention(MPI_Comm communicator, const Shape& shape, const std::string& pattern, const Documents& documents,
                     AttentionOptions options)
    : state_(std::make_unique<State>(communicator, shape, pattern, documents, std::move(options))) {}
Attention::~Attention() = default;
Attention::Attention(Attention&&) noexcept = default;

const Intervals& Attention::tokens() const { return state_->tokens; }
int64_t Attention::local_rows() const { return size_of(state_->tokens); }

void Attention::forward(ConstTensor q, ConstTensor k, ConstTensor v, Tensor o, float* lse) {
  const Rows rows(state_->tokens);
  MemoryInput input(state_->shape, rows, q, k, v, *state_->device);
  MemoryOutput output(state_->shape, state_->options.output_type, rows, o, lse, *state_->device);
  engine::RunOptions run;
  run.scale =
      static_cast<float>(state_->options.scale != 0 ? state_->options.scale : 1 / std::sqrt(static_cast<double>(state_->shape.head_dim)));
  run.timeout = state_->options.timeout;
  try {
    state_->record = state_->engine->forward(input, output, *state_->device, *state_->transport, run);
  } catch (const Error& error) {
    state_->ranks.abort(error.problems().front());
  } catch (const std::bad_alloc&) {
    state_->ranks.abort({.code = ExitCode::environment, .what = "out of memory", .mend = "use more hosts, or fewer ranks per host"});
  }
}

int64_t Attention::bytes_received() const { return state_->record.bytes_received; }
int64_t Attention::bytes_needed() const { return state_->engine->plan().units_lower_bound() * state_->engine->plan().unit_bytes; }

}  // namespace longspan
