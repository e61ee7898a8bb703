// A job with its data in memory, planned and ready to run on some ranks: what longspan::Attention is to a library user, with the engine's
// own records for measurements.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "bench/rows.hpp"
#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "engine/engine.hpp"
#include "kernels/device.hpp"
#include "pattern/pattern.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::bench {

struct Job {
  pattern::Pattern pattern;
  Shape shape;  // its tokens are those of `documents`
  Documents documents = Documents::single(0);
  std::vector<std::shared_ptr<const pattern::BlockMaskSource>> sources;
  ElementType output_type = ElementType::bfloat16;
  plan::PartitionKind partition = plan::PartitionKind::automatic;
  plan::ExchangeKind exchange = plan::ExchangeKind::automatic;
  std::optional<int64_t> memory;             // bytes per rank, the same on all; absent: what the plan needs at its fastest
  bool through_host_memory = false;          // the messages of GPUs: steps are kept small then
  int64_t host_memory = int64_t{128} << 20;  // pinned bytes of a GPU rank; such a step takes a quarter
  bool on_gpu = false;
  bool rows_are_copied = false;  // to a GPU, and results back: in several stripes then
  bool share_keys = false;       // engine::RunOptions
  double timeout = 0;            // seconds; 0: never
  bool keep = true;              // what is made ready for the next time, as a library user's job does
};

class PreparedJob {
 public:
  // Collective over `ranks`, which outlives the job. Throws the same error on all ranks.
  PreparedJob(const comm::Communicator& ranks, Job job);

  // Collective, any number of times; `device` and `transport` outlive the job where it keeps something. Throws on this rank alone.
  // `keys_into_pool` as in engine::RunOptions.
  engine::Record run(const JobRows& rows, kernels::Device& device, comm::Transport& transport, bool keys_into_pool = false);
  engine::ExchangeTimes exchange(engine::Input& input, kernels::Device& device, comm::Transport& transport, int times);

  const Job& job() const { return job_; }
  const pattern::BoundPattern& pattern() const { return *pattern_; }
  const plan::Blocks& blocks() const { return *blocks_; }
  const plan::Shared& shared() const { return *shared_; }
  const plan::RankPlan& plan() const { return engine_->plan(); }
  const engine::Schedule& schedule() const { return engine_->schedule(); }
  const Intervals& tokens() const { return tokens_; }  // whose rows this rank owns

 private:
  engine::RunOptions run_options() const;

  Job job_;
  std::optional<pattern::BoundPattern> pattern_;
  std::optional<plan::Blocks> blocks_;
  std::optional<plan::Shared> shared_;
  std::optional<engine::Engine> engine_;
  Intervals tokens_;
};

}  // namespace longspan::bench
