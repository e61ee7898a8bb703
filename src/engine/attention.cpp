#include "longspan/attention.hpp"

#include <fmt/format.h>

#include <algorithm>
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

// The row of a caller's tensors that holds the token.
int64_t local_row(const Numbering& tokens, int64_t token) {
  const int64_t row = tokens.of(token);
  if (row < 0) internal_error("a row is asked for that this rank does not own");
  return row;
}

// One of the caller's tensors, and how the device comes to it.
class CallersTensor {
 public:
  // Throws Error(usage) for a tensor in a GPU's memory that has gaps.
  CallersTensor(const char* name, const void* data, int64_t row_stride, int64_t head_stride, int heads, int head_dim, ElementType type,
                const Numbering& rows, const kernels::Device& device)
      : heads_(heads), head_bytes_(head_dim * static_cast<int64_t>(size_of(type))), data_(const_cast<void*>(data)) {
    const auto element = static_cast<int64_t>(size_of(type));
    head_ = head_stride != 0 ? head_stride * element : head_bytes_;
    row_ = row_stride != 0 ? row_stride * element : heads * head_bytes_;
    if (rows.count() == 0) return;
    const bool dense = head_ == head_bytes_ && row_ == heads * head_bytes_;
    const kernels::Reach first = device.reach(data),
                         last = device.reach(static_cast<const std::byte*>(data) + (dense ? rows.count() * row_ - 1 : 0));
    by_host_ = first.by_host;
    straight_ = dense && first.straight && last.straight;
    if (by_host_ || dense) return;
    throw Error({.code = ExitCode::usage,
                 .what = fmt::format("{} lies in a GPU's memory and has gaps between its rows or heads", name),
                 .seen = fmt::format("strides of {} and {} elements", row_ / element, head_ / element),
                 .expected = fmt::format("{} and {}, or 0 and 0", heads * head_dim, head_dim),
                 .from = "longspan::Attention::forward",
                 .mend = "make a copy without gaps, or hold it in pinned host memory"});
  }

  std::byte* row(int64_t local) const { return static_cast<std::byte*>(data_) + local * row_; }
  std::byte* row_if_straight(int64_t local) const { return straight_ ? row(local) : nullptr; }
  bool is_straight() const { return straight_; }
  bool by_host() const { return by_host_; }

  // Heads [head, head + heads) of rows [first, first + count) to out, without gaps.
  void read(int64_t first, int64_t count, int head, int heads, std::byte* out, kernels::Device& device) const {
    const std::byte* from = row(first);
    std::vector<std::byte> copy;
    if (!by_host_) {
      copy.resize(static_cast<size_t>(count * row_));
      device.download(from, count * row_, copy.data());
      from = copy.data();
    }
    from += head * head_;
    const auto together = static_cast<size_t>(heads * head_bytes_);
    for (int64_t r = 0; r < count; ++r, from += row_) {
      if (head_ == head_bytes_) {  // a row's heads lie side by side
        std::memcpy(out, from, together), out += together;
        continue;
      }
      for (int h = 0; h < heads; ++h, out += head_bytes_) std::memcpy(out, from + h * head_, static_cast<size_t>(head_bytes_));
    }
  }

  // All heads of rows [first, first + count) from `rows`, which has no gaps.
  void write(int64_t first, int64_t count, const std::byte* rows, kernels::Device& device) const {
    if (!by_host_) return device.upload(rows, count * row_, row(first));
    std::byte* to = row(first);
    const auto together = static_cast<size_t>(heads_ * head_bytes_);
    for (int64_t r = 0; r < count; ++r, to += row_) {
      if (head_ == head_bytes_) {
        std::memcpy(to, rows, together), rows += together;
        continue;
      }
      for (int h = 0; h < heads_; ++h, rows += head_bytes_) std::memcpy(to + h * head_, rows, static_cast<size_t>(head_bytes_));
    }
  }

 private:
  int heads_;
  int64_t head_bytes_, head_ = 0, row_ = 0;  // bytes of a head; from one to the next
  void* data_;
  bool by_host_ = true, straight_ = false;
};

class MemoryInput : public engine::Input {
 public:
  MemoryInput(const Shape& shape, const Numbering& rows, ConstTensor q, ConstTensor k, ConstTensor v, kernels::Device& device)
      : shape_(shape),
        rows_(rows),
        device_(device),
        q_("q", q.data, q.row_stride, q.head_stride, shape.heads, shape.head_dim, shape.type, rows, device),
        k_("k", k.data, k.row_stride, k.head_stride, shape.kv_heads, shape.head_dim, shape.type, rows, device),
        v_("v", v.data, v.row_stride, v.head_stride, shape.kv_heads, shape.head_dim, shape.type, rows, device) {}
  void read_q(int64_t begin, int64_t count, std::byte* out) override { read(q_, begin, count, 0, shape_.heads, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override { read(k_, begin, count, head, heads, out); }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override { read(v_, begin, count, head, heads, out); }
  const std::byte* q_in_place(int64_t begin, int64_t) override { return q_.row_if_straight(local_row(rows_, begin)); }
  const std::byte* k_in_place(int64_t begin, int64_t) override { return k_.row_if_straight(local_row(rows_, begin)); }
  const std::byte* v_in_place(int64_t begin, int64_t) override { return v_.row_if_straight(local_row(rows_, begin)); }
  bool from_any_thread() const override { return q_.by_host() && k_.by_host() && v_.by_host(); }

 private:
  void read(const CallersTensor& from, int64_t begin, int64_t count, int head, int heads, std::byte* out) {
    from.read(local_row(rows_, begin), count, head, heads, out, device_);
  }

  const Shape& shape_;
  const Numbering& rows_;
  kernels::Device& device_;
  CallersTensor q_, k_, v_;
};

class MemoryOutput : public engine::Output {
 public:
  MemoryOutput(const Shape& shape, ElementType type, const Numbering& rows, Tensor o, float* lse, kernels::Device& device)
      : rows_(rows),
        device_(device),
        o_("o", o.data, o.row_stride, o.head_stride, shape.heads, shape.head_dim, type, rows, device),
        lse_("lse", lse, 0, 0, 1, shape.heads, ElementType::float32, rows, device),
        wants_lse_(lse != nullptr) {}
  kernels::Device::ResultRows in_place(int64_t begin, int64_t) override {
    if (!o_.is_straight() || (wants_lse_ && !lse_.is_straight())) return {};
    const int64_t first = local_row(rows_, begin);
    return {o_.row(first), wants_lse_ ? reinterpret_cast<float*>(lse_.row(first)) : nullptr};
  }
  void write(int64_t begin, int64_t count, const std::byte* o, const float* lse) override {
    const int64_t first = local_row(rows_, begin);
    o_.write(first, count, o, device_);
    if (wants_lse_) lse_.write(first, count, reinterpret_cast<const std::byte*>(lse), device_);
  }
  bool from_any_thread() const override { return o_.by_host() && (!wants_lse_ || lse_.by_host()); }

 private:
  const Numbering& rows_;
  kernels::Device& device_;
  CallersTensor o_, lse_;
  bool wants_lse_;
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
      "{}, device {}, rows_on_gpu {}, share_keys {}",
      shape.tokens, shape.heads, shape.kv_heads, shape.head_dim, name_of(shape.type), documents.count(), offsets, pattern,
      plan::name_of(options.partition), name_of(options.output_type), options.reproducible, options.scale, name_of(options.device),
      options.rows_on_gpu, options.share_keys);
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
    plan_options.on_gpu = gpu.gpu.has_value();
    plan_options.rows_are_copied = gpu.gpu && !options.rows_on_gpu;
    plan_options.share_keys = options.share_keys;
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
  launch::GpuChoice gpu;
  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<comm::Transport> transport;
  std::optional<engine::Engine> engine;  // keeps memory of these
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
  const Numbering rows(state_->tokens);
  std::optional<MemoryInput> input;
  std::optional<MemoryOutput> output;
  const auto look = [&] {
    input.emplace(state_->shape, rows, q, k, v, *state_->device);
    output.emplace(state_->shape, state_->options.output_type, rows, o, lse, *state_->device);
  };
  state_->gpu.gpu ? state_->ranks.agreed(look) : look();  // CPUs take any tensor
  engine::RunOptions run;
  run.scale =
      static_cast<float>(state_->options.scale != 0 ? state_->options.scale : 1 / std::sqrt(static_cast<double>(state_->shape.head_dim)));
  run.timeout = state_->options.timeout;
  run.keep = true;
  run.share_keys = state_->options.share_keys;
  try {
    state_->record = state_->engine->forward(*input, *output, *state_->device, *state_->transport, run);
  } catch (const Error& error) {
    state_->ranks.abort(error.problems().front());
  } catch (const std::bad_alloc&) {
    state_->ranks.abort({.code = ExitCode::environment, .what = "out of memory", .mend = "use more hosts, or fewer ranks per host"});
  }
}

int64_t Attention::bytes_received() const { return state_->record.bytes_received; }
int64_t Attention::bytes_needed() const { return state_->engine->plan().bytes_lower_bound(); }

}  // namespace longspan
