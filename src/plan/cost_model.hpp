// What a job takes on a machine whose rates are known, predicted from plans alone: no data, no ranks, any number of them. A rank's run is
// played through as the engine runs it (engine/engine.hpp): while a step computes, the next one's keys are on their way.
//
//   step            0         1              2          compute 10 each, keys of step 1 take 4, of step 2 take 15
//   compute     |----------|----------|     |----------|
//   link        |----| (1)  |---------------| (2)           exposed: 5
//
// The playing-through is that of LogGP (Alexandrov, Ionescu, Schauser, Scheiman, SPAA 1995): latency, overhead, bytes over rate.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "plan/rank_plan.hpp"

namespace longspan::plan {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

struct LinkRates {
  double latency = 0;  // seconds of a message without content
  double bytes_per_second = kUnlimited;
};

// Of one rank while all ranks of the job work at once, for one element type and head_dim. Seconds and bytes. What is left at its default
// costs nothing.
struct Rates {
  double full_quarter = 0;     // seconds for one 64×64 quarter of one query head, 4·64·64·head_dim FLOP, in a run of full tiles
  double partial_quarter = 0;  // the same in a partial tile, per visited quarter,
  double partial_tile = 0;     // and for the tile,
  double tile_row = 0;         // and for a query block of one query head in a step in which it has tiles
  double state = 0;            // seconds per row and query head that no thread does beside: states cleared and rounded
  double state_in = 0;         // seconds per row and query head that the I/O thread takes to bring queries, apart from files,
  double state_out = 0;        // and to take results away;
  double both_ways = 0;        // how many times longer either takes beside the other, by a thread of its own; 0: one thread does both
  double list_row = 0;         // seconds to make tile lists, for each row of tiles, what its head groups share,
  double list_entry = 0;       // and for each entry;
  bool lists_beside = false;   // by a thread of their own, as engine::ListMaker has it for a GPU
  double hidden_byte = 0;      // seconds of compute that a byte costs when it comes (and another goes) beside it
  double key_bytes_per_second = kUnlimited;  // own keys and values into the pool,
  double row_bytes_per_second = 0;           // and looked through where they stay in rows; 0: they do not
  LinkRates within_host, across_hosts;       // while nobody computes
  double exposed_byte = 0;                   // seconds that a rank waits for a byte that came in time, until it may compute with it
  double link_slowdown = 1;                  // how many times longer the bytes of a message take while ranks compute
  int ranks_per_host = 1;                    // ranks r·ranks_per_host … share a host
  double read_bytes_per_second = kUnlimited, write_bytes_per_second = kUnlimited;  // of a file, all ranks at once
};

// One step of one stripe.
struct StepWork {
  double full_quarters = 0, partial_quarters = 0;  // 64×64 quarters × query heads
  double partial_tiles = 0, tile_rows = 0;         // tiles, query blocks that have some × query heads
  int64_t bytes_within = 0, bytes_across = 0;      // of keys fetched from ranks of this host, and of others
  int messages_within = 0, messages_across = 0;
  int64_t bytes_read = 0;  // of keys read again
};

struct StripeWork {
  std::vector<StepWork> steps;
  double states = 0;                  // rows × query heads
  double list_rows = 0, entries = 0;  // of its tile lists
  double list_bytes = 0;
  int64_t bytes_in = 0;   // queries
  int64_t bytes_out = 0;  // results
  int64_t row_bytes = 0;  // queries and states of long rows that come to this rank before the stripe's next act
};

// What a rank does, as far as time is concerned.
struct RankWork {
  int rank = 0;
  std::vector<StripeWork> stripes;
  int ahead = 1;              // steps whose keys are on their way beside the one that is computed
  bool early = true;          // the first keys that travel start at once, whatever their step
  int64_t key_bytes = 0;      // own keys and values,
  int64_t sent_bytes = 0;     // what others get of them by way of the pool, in whole blocks: taken to be as much as comes from others
  bool keys_in_rows = false;  // they stay in rows if they can (keys_stay_in_rows),
  int64_t masked_bytes = 0;   // and these are looked through: all where some tile has a mask, nothing where none has (in a run that finds
                              // the lists of one before)
  int64_t memory = 0;
  double most_list_bytes = kUnlimited;              // of tile lists that are there at one time
  std::vector<std::pair<int, int64_t>> bytes_from;  // by home, ascending
};

// Of the step's kernel, by itself.
double compute_seconds(const StepWork& step, const Rates& rates);

// From one rank's plan. How a stripe's quarters spread over its steps comes from `sampled_rows` of its rows at most.
RankWork work_of(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, const RankPlan& plan, int ranks_per_host,
                 int sampled_rows = 48);

// Where the exchange goes in two levels (engine/host_routes.hpp), a block comes to a host once and is passed on inside. For hosts all of
// whose ranks are in `plans` (and, in the same places, in `works`), and where Options::exchange says so: the part of what they fetch from
// other hosts that would be a repetition comes from within. Takes it that every rank has room for what it passes on.
void share_within_hosts(const Shared& shared, const std::vector<RankPlan>& plans, int ranks_per_host, std::vector<RankWork>& works);

// Seconds by section, as the engine records them.
struct RankTime {
  double load = 0, plan = 0, exchange = 0, attend = 0, rows = 0, io = 0;  // rows: queries, rounding, results; io: waiting for the file
  double in_flight = 0;                                                   // no section: keys on their way
  double total() const { return load + plan + exchange + attend + rows + io; }
};
RankTime play(const RankWork& work, const Rates& rates);

struct JobTime {
  double seconds = 0;       // of the slowest rank
  double step_seconds = 0;  // its mean step: compute and waiting for keys
  double exposed = 0;       // share of the ranks' time that they wait for keys, queries and states of others
  double imbalance = 1;     // compute of the busiest rank over the mean
  int slowest_rank = 0;
  int64_t memory = 0;         // of the rank that takes most
  double busiest_sender = 0;  // seconds that the rank which sends most is sending: the job cannot be faster
  int busiest_sender_rank = 0;
  RankTime slowest, mean;
};
// `works`: of all ranks, or of some evenly spaced ones of `ranks`.
JobTime play(const std::vector<RankWork>& works, int ranks, const Rates& rates);

// Ranks to look at for a job of `ranks`, ascending: all, or about `most` of them, those of evenly spaced hosts, the first and the last
// among them.
std::vector<int> sampled_ranks(int64_t ranks, int ranks_per_host = 1, int64_t most = 64);

// All of it: plans the sampled ranks, and plays them.
JobTime predict(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, const Rates& rates);

}  // namespace longspan::plan
