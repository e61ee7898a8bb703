// What the ranks settle among themselves before a run: how many stripes and steps there are, and who sends which units when.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::engine {

// Blocks [block, block + count) of each of the KV heads [kv_head, kv_head + kv_heads): units by KV head, then block.
struct UnitRun {
  int32_t kv_head = 0, kv_heads = 0;
  int64_t block = 0, count = 0;
  int64_t units() const { return kv_heads * count; }
};

struct PeerUnits {
  int peer = 0;
  std::vector<UnitRun> runs;
};

// One step of one stripe: what goes where.
struct StepExchange {
  std::vector<PeerUnits> receive, send;  // by ascending peer
};

struct Schedule {
  std::vector<int> steps;                            // [stripe] the same on all ranks
  std::vector<std::vector<StepExchange>> exchanges;  // [stripe][step]
  int64_t units_to_send = 0;
  int64_t most_fetched_units = 0;  // in use at one time: kept ones, a step's, and the next step's

  int64_t total_steps() const;
};

// Collective. Pads `plan` with empty stripes up to the rank with most. Requests go to the keys' homes in one sparse all-to-all.
Schedule agree_on_schedule(const comm::Communicator& ranks, const plan::Shared& shared, plan::RankPlan& plan);

}  // namespace longspan::engine
