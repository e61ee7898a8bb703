// A run of the engine on a small problem, set as a test wants it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "longspan/error.hpp"
#include "plan/memory.hpp"
#include "problem.hpp"
#include "tests/support/host_cuda/shared_memory.hpp"

namespace longspan::testing {

struct Setting {
  plan::PartitionKind partition = plan::PartitionKind::automatic;
  bool reproducible = false;
  bool keys_read_again = false;
  int64_t blocks_of_room = 0;  // beside the rank's own keys: 0 is plenty
  int stripes = 1;
  int threads = 0;          // CPU threads, instead of the device under test
  bool twice = false;       // the second time with what was kept of the first
  int times_before = 1;     // so many first times
  bool any_thread = false;  // results may be written by any
  int ranks_per_host = 0;   // as if the ranks were on several hosts; 0: they are where they are
  plan::ExchangeKind exchange = plan::ExchangeKind::automatic;
  bool as_on_gpu = false;        // planned so, whatever computes: few steps, and long rows in parts
  bool in_place_before = false;  // the first time keys lie in memory that the device reaches
  bool keys_into_pool = false;   // engine::RunOptions
  bool share_keys = false;       // likewise
};

// Rows that other ranks can open.
class SharedRows {
 public:
  explicit SharedRows(int64_t bytes) : memory_(allocate_shared(bytes)) {}
  std::byte* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { free_shared(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
};

struct Outcome {
  Intervals tokens;
  WholeOutput output;
  engine::Record record;
  plan::RankPlan plan;
  engine::Schedule schedule;
};

// NaN for every V, and other keys.
class NoValues : public engine::Input {
 public:
  NoValues(engine::Input& rows, const Shape& shape, bool in_place)
      : rows_(rows),
        head_bytes_(shape.head_dim * static_cast<int64_t>(size_of(shape.type))),
        row_bytes_(shape.kv_heads * head_bytes_),
        keys_(shape.tokens * row_bytes_),
        values_(shape.tokens * row_bytes_),
        in_place_(in_place) {
    std::fill_n(values_.get(), shape.tokens * row_bytes_, std::byte{0xff});
  }
  void read_q(int64_t begin, int64_t count, std::byte* out) override { rows_.read_q(begin, count, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override { rows_.read_v(begin, count, head, heads, out); }
  void read_v(int64_t, int64_t count, int, int heads, std::byte* out) override {
    std::fill_n(out, count * heads * head_bytes_, std::byte{0xff});
  }
  const std::byte* k_in_place(int64_t begin, int64_t) override { return in_place_ ? keys_.get() + begin * row_bytes_ : nullptr; }
  const std::byte* v_in_place(int64_t begin, int64_t) override { return in_place_ ? values_.get() + begin * row_bytes_ : nullptr; }

 private:
  engine::Input& rows_;
  int64_t head_bytes_, row_bytes_;
  SharedRows keys_, values_;
  bool in_place_;
};

inline Outcome attend_on(kernels::Device& device, comm::Transport& transport, const comm::Communicator& ranks, Problem& problem,
                         const Setting& setting, const std::vector<bool>& done = {}, engine::Input* other_input = nullptr,
                         const std::function<void(int64_t begin)>& before_write = {}) {
  const Shape& shape = problem.shape();
  const plan::Blocks blocks(problem.documents());
  plan::Options options;
  options.partition = setting.partition;
  options.reproducible = setting.reproducible;
  options.output_type = shape.type;
  options.stripes = setting.stripes;
  options.segment_blocks = 2;
  options.part_blocks = setting.reproducible ? 2 : 1;  // a block for each would not travel: its states are as large
  options.on_gpu = setting.as_on_gpu || !device.memory_is_host();
  options.long_row_factor = 2;
  options.exchange = setting.exchange;
  options.memory = int64_t{1} << 30;
  const int64_t unit = shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  if (setting.blocks_of_room > 0) {
    const int64_t rows = plan::block_row_bytes(shape, shape.type);
    options.memory = setting.keys_read_again ? std::max(2 * rows, (rows + 3 * unit) * 8 / 7) + 64
                                             : 4 * rows + (setting.blocks_of_room + blocks.count() / ranks.size() + 2) * unit;
    options.keys_can_be_read_again = setting.keys_read_again;
  }
  const auto share = [&] {
    // States of long rows that rest need some more: the least that does.
    while (true) {
      try {
        return plan::make_shared(problem.pattern(), blocks, shape, ranks.size(), options);
      } catch (const Error&) {
        options.memory += 1 << 14;
      }
    }
  };
  const plan::Shared shared = share();
  if (shared.long_rows.empty()) {
    EXPECT_EQ(shared.keys_stay, !setting.keys_read_again);
  }
  std::vector<int> hosts;
  for (int rank = 0; setting.ranks_per_host > 0 && rank < ranks.size(); ++rank) hosts.push_back(rank / setting.ranks_per_host);
  std::deque<NoValues> before;  // go after the engine
  engine::Engine engine(ranks, problem.pattern(), blocks, shared, plan::make_rank_plan(shared, problem.pattern(), blocks, ranks.rank()),
                        done, hosts);
  Outcome outcome{{}, WholeOutput(shape, shape.type), {}, engine.plan(), engine.schedule()};
  outcome.output.any_thread = setting.any_thread, outcome.output.before_write = before_write;
  for (const Interval& run : engine.plan().own) append(outcome.tokens, {blocks.tokens(run.begin).begin, blocks.tokens(run.end - 1).end});
  WholeInput whole(problem);
  engine::Input& input = other_input != nullptr ? *other_input : whole;
  engine::RunOptions run;
  run.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim)));
  run.timeout = 60;
  run.keep = setting.twice;
  run.keys_into_pool = setting.keys_into_pool;
  run.share_keys = setting.share_keys;
  for (int time = 0; setting.twice && time < setting.times_before; ++time) {
    NoValues& nothing = before.emplace_back(input, shape, setting.in_place_before);  // what stays of it shows
    engine.forward(nothing, outcome.output, device, transport, run);
    outcome.output = WholeOutput(shape, shape.type);
  }
  outcome.record = engine.forward(input, outcome.output, device, transport, run);
  EXPECT_EQ(outcome.record.bytes_received, outcome.record.planned_bytes_received);
  EXPECT_EQ(outcome.record.bytes_sent, outcome.record.planned_bytes_sent);
  if (done.empty()) {
    EXPECT_EQ(outcome.record.row_bytes_received, outcome.record.planned_row_bytes_received);
  }
  return outcome;
}

inline const std::vector<std::string>& patterns() {
  static const std::vector<std::string> all{
      "causal",
      "causal & (window(200) | sink(5))",
      "longformer(129, 2)",
      "bigbird(32, 3, 2, 1, 7)",
      "0-1: full; *: causal & strided(96)",
      "rows(400, 402) | (causal & window(50) & !columns(0, 64))",
      "1: rows(3, 5) | window(30, 30); 3: rows(290, 291) | causal & window(60); *: causal & window(50)",
      "(rows(0, 2) & columns(2600, 5000)) | (causal & window(50))",
      "dilated_segment(96, 3, 1)"};
  return all;
}

inline Shape shape_of(ElementType type, int heads = 4, int kv_heads = 2, int head_dim = 16) {
  return {.tokens = 0, .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .type = type};
}

}  // namespace longspan::testing
