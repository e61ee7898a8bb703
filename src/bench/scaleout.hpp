// Strong and weak scaling of a job over 1, 2, 4, … of the ranks that are there, and what the cost model says to each run.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "bench/prepared_job.hpp"
#include "plan/cost_model.hpp"

namespace longspan::bench {

struct ScaleoutOptions {
  int times = 5;                // of each run, after one that does not count
  double probe_seconds = 0.15;  // of each of the small jobs that measure rates
  int64_t link_bytes = int64_t{16} << 20;
  std::function<JobRows(const PreparedJob&)> rows;  // of a rank; may throw Error
  RowsIn rows_in = RowsIn::host;                    // where these lie, and those of the small jobs
  std::function<std::unique_ptr<comm::Transport>(const comm::Communicator&)> transport;
};

// Seconds by section.
struct SectionTimes {
  double load = 0, plan = 0, exchange = 0, attend = 0, rows = 0, total = 0;  // rows: queries in, rounding, results out
};

struct ScaleoutPoint {
  int ranks = 0, hosts = 0, threads = 0;
  int64_t tokens = 0, documents = 0;
  bool whole = true;                // all tokens of the job: a point of strong scaling; else ranks/(all ranks) of them
  std::vector<double> seconds;      // of the slowest rank, each time
  double typical = 0;               // their median
  SectionTimes mean, slowest;       // over the ranks, of the time that is nearest to the median; of the slowest rank in it
  double exposed = 0;               // share of the ranks' time in which they start messages and wait for keys, queries and states of others
  double imbalance = 1;             // compute of the busiest rank over the mean
  double flop = 0;                  // of all ranks
  int ranks_with_keys_in_rows = 0;  // that attended their own keys where they lie (engine::Record::keys_in_rows),
  int ranks_that_share_keys = 0;    // and whose keys others read there, too (keys_shared)
  int64_t kv_bytes_planned = 0, kv_bytes_moved = 0, kv_bytes_lower_bound = 0, row_bytes_moved = 0;  // of all ranks
  plan::Rates rates;                 // measured with these ranks at work, between the runs
  double probe_flop_per_second = 0;  // of a rank in full tiles, alone and without exchange, all of these ranks at once
  plan::JobTime predicted;
  double flop_per_second_per_rank() const { return typical > 0 ? flop / typical / ranks : 0; }
  double prediction_error() const { return typical > 0 ? predicted.seconds / typical - 1 : 0; }
};

// Collective over `world`; the job runs on its first `ranks` ranks, with the first `tokens` tokens, while the others rest. The point on
// those ranks (rank 0 among them), nothing on the others. Set-up errors are the same on all of these ranks; later ones end the job
// (Communicator::abort).
std::optional<ScaleoutPoint> measure_scaleout(const comm::Communicator& world, int ranks, const Job& job, int64_t tokens,
                                              kernels::Device& device, int threads, const ScaleoutOptions& options);

// What is left for plans of `memory` bytes of a GPU on which a rank's rows and results lie, of `most_tokens` tokens at most, and those of
// the small jobs that measure rates. Throws Error(usage) where that is less than the pool of the keys of `tokens`, which some rank has.
int64_t memory_beside_rows(const Job& job, int64_t tokens, int64_t most_tokens, int64_t memory);

// 1, 2, 4, … and all.
std::vector<int> rank_counts(int ranks);

// The documents of the first `tokens` tokens; the last one is cut.
Documents first_documents(const Documents& documents, int64_t tokens);

}  // namespace longspan::bench
