// What the ranks settle among themselves before a run: how many stripes and steps there are, and who sends which units when.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "comm/communicator.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::engine {

// Of units, by KV head, then block, these halves (plan/halves.hpp): of the first and the last it may be one. Example: halves 3 … 5 of two
// KV heads are the second half of block 1 and both of block 2, twice.
struct UnitRun {
  int32_t kv_head = 0, kv_heads = 0;
  Interval halves;
  Interval blocks() const { return {halves.begin / 2, (halves.end + 1) / 2}; }
};

struct PeerUnits {
  int peer = 0;
  std::vector<UnitRun> runs;
};

// One step of one stripe: what goes where.
struct StepExchange {
  std::vector<PeerUnits> receive, send;           // by ascending peer; from and to the units' homes
  std::vector<PeerUnits> given_receive, pass_on;  // by ascending peer; inside the host, once `receive` is here (host_routes.hpp)
};

// Blocks that are not released at the end of a step although this rank needs them no more, or that are released there after such a hold.
struct HeldBlocks {
  int32_t key_class = 0;
  Interval blocks;
};

struct Schedule {
  std::vector<int> steps;                                         // [stripe] the same on all ranks
  std::vector<std::vector<StepExchange>> exchanges;               // [stripe][step]
  int64_t bytes_to_send = 0;                                      // of both kinds
  std::map<int64_t, std::vector<HeldBlocks>> hold_at, let_go_at;  // by step of the job, counted through all stripes
  bool passes_on = false;                                         // some rank of the job has units to pass on
  // The first step of the job in which some rank receives, the same on all ranks. All may start it at once: there is room, and nothing to
  // be moved before it. Steps of own keys and of long rows come earlier. 0 where ranks pass units on, which counts on one step ahead.
  size_t first_fetch = 0;
  int64_t bytes_from_other_hosts = 0;  // that this rank receives
  // What a flat exchange would bring to this rank from other hosts, and the least that has to come to its host: distinct halves of units,
  // counted on the host's lowest rank and 0 on the others.
  int64_t bytes_from_other_hosts_if_flat = 0, least_bytes_to_host = 0;
  int ahead = 1;                   // while a step is computed, the keys of so many later ones are on their way; the same on all ranks
  int64_t most_fetched_units = 0;  // in use at one time: kept ones, a step's, and those of the steps ahead; and those held for others

  int64_t total_steps() const;
  int64_t messages_received() const;  // by this rank
};

// Collective. Takes out of `plan` what needs no computing any more: own stripes of which `done` (may be empty; long ones not counted) says
// so, and long ones whose rows are all in such stripes, of any rank. plan::plan_fetches() is to be called then.
void leave_out_done(const comm::Communicator& ranks, const plan::Shared& shared, const std::vector<bool>& done, plan::RankPlan& plan);

// Collective. Pads `plan` with empty stripes up to the rank with most. Requests go to the keys' homes in one sparse all-to-all; where
// several ranks share a host and there are others, its ranks first tell each other what they fetch from there; the plan's halves, and its
// bytes, are then also those that this rank passes on.
// `host_of_rank`: two ranks share a host when theirs is the same (comm::Communicator::host_of_rank; tests lay hosts out differently).
Schedule agree_on_schedule(const comm::Communicator& ranks, const plan::Shared& shared, plan::RankPlan& plan,
                           const std::vector<int>& host_of_rank);

}  // namespace longspan::engine
