// Runs a plan on a device: keys into the pool, stripe after stripe, step after step, the next steps' keys on their way meanwhile. Data come
// from an Input and go to an Output; this class knows neither files nor callers' tensors.
//
//   main thread   moves messages, starts the compute of a step and waits for it; the lists, where no other thread makes them
//   list thread   where the device leaves threads to the host (a GPU): the tile lists, some stripes ahead
//   I/O thread    loads own keys (the first lists are made meanwhile), but for those that lie in reach of a GPU's kernels, whose loading
//                 the main thread starts; reads the next stripe's queries (and keys, when they are read again), writes the last one's
//                 results where no other thread does
//   another       writes results beside a GPU, whose link goes both ways at a time, where Output::from_any_thread()
//   device        computes: a pool of threads, or a GPU
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "engine/data.hpp"
#include "engine/key_pool.hpp"
#include "engine/schedule.hpp"
#include "kernels/device.hpp"
#include "pattern/pattern.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::engine {

// Where a rank's wall time went, in seconds, and what it moved. Sections add up to `total`.
struct Record {
  double load = 0;      // until own keys are there, but for what of `plan` is made ready meanwhile
  double plan = 0;      // tile lists that no compute hid, memory, and what is made ready of first messages and steps
  double exchange = 0;  // starting messages, waiting for keys, queries and states of other ranks, or for keys read again
  double attend = 0;    // compute of steps
  double finish = 0;    // merging and rounding
  double input = 0;     // waiting for queries
  double output = 0;    // waiting for results to be written
  double total = 0;
  double keys_in = 0, queries_in = 0;  // no sections: what loading own keys took, and reading queries the I/O thread,
  double lists = 0;                    // and making tile lists whoever made them
  double in_flight = 0;  // no section: how long keys were on their way; what of it `exchange` does not show was hidden by compute
  int64_t bytes_received = 0, bytes_sent = 0;  // keys and values
  int64_t planned_bytes_received = 0, planned_bytes_sent = 0;
  // Of bytes_received; what a flat exchange would make of it; and the least that must come to this host (on its lowest rank, else 0).
  int64_t bytes_from_other_hosts = 0, bytes_from_other_hosts_if_flat = 0, least_bytes_to_host = 0;
  int64_t row_bytes_received = 0, planned_row_bytes_received = 0;  // queries and states of long rows
  int64_t bytes_read_again = 0;
  int64_t steps_beside = 0;   // that were started before the end of the one before
  bool keys_in_rows = false;  // own keys were attended where they lie, and only those that others get were loaded,
  bool keys_shared = false;   // and not even these: others read them there, too
  bool units_stayed = false;  // others' keys came to where the run before had them: nobody had to look for slots
  int64_t pool_bytes = 0, rows_bytes = 0;
};

struct RunOptions {
  float scale = 1;
  double timeout = 300;  // seconds without any message before the run gives up; 0: never
  // What is made ready (memory for keys, messages, tile lists) stays for the next run with the same device and transport, which both
  // outlive the engine then. Keys that are read again keep nothing.
  bool keep = false;
  bool keys_into_pool = false;  // own ones, also where the device would attend them in rows: to measure what that takes
  // The memory of own keys that lie in reach of the device's kernels is not given back before this engine and all others of the job, or
  // what they keep, are gone: other ranks may have it open. The same on all ranks.
  bool share_keys = false;
  std::function<void(int64_t stripe, int64_t stripes)> progress;  // after each stripe; may be empty
};

// The exchange without compute, several times over.
struct ExchangeTimes {
  std::vector<double> seconds;                 // of this rank, each from a barrier to its last message
  int64_t bytes_received = 0, bytes_sent = 0;  // of one time
  int64_t messages_received = 0;               // of one time
};

class Engine {
 public:
  // Collective. `done[s]` (may be empty): own stripe s, long ones not counted, needs no computing any more. `host_of_rank`: as
  // agree_on_schedule's; empty is the communicator's own. The references must outlive the engine.
  Engine(const comm::Communicator& ranks, const pattern::BoundPattern& pattern, const plan::Blocks& blocks, const plan::Shared& shared,
         plan::RankPlan plan, const std::vector<bool>& done = {}, std::vector<int> host_of_rank = {});
  ~Engine();

  const plan::RankPlan& plan() const { return plan_; }
  const Schedule& schedule() const { return schedule_; }

  // Collective; any number of times. `transport` is one for the memory of `device`. Throws Error on this rank only: the caller ends the job
  // (comm::Communicator::abort), since others wait.
  Record forward(Input& input, Output& output, kernels::Device& device, comm::Transport& transport, const RunOptions& options);

  // Collective: moves what forward() moves, in the same steps and through the same memory, `times` times, but no queries and states of long
  // rows; nothing is attended. Internal error when keys are read again: then nothing moves. Throws as forward() does.
  ExchangeTimes exchange(Input& input, kernels::Device& device, comm::Transport& transport, const RunOptions& options, int times);

 private:
  class Run;
  struct Kept;  // of the runs before
  std::unique_ptr<Kept> take_kept(kernels::Device& device, comm::Transport& transport, bool keep);

  const comm::Communicator& ranks_;
  const pattern::BoundPattern& pattern_;
  const plan::Blocks& blocks_;
  const plan::Shared& shared_;
  plan::RankPlan plan_;
  std::vector<int> host_of_rank_;
  Schedule schedule_;
  comm::Communicator row_ranks_;  // messages of long rows, apart from those of keys
  std::unique_ptr<Kept> kept_;
};

}  // namespace longspan::engine
