// The exchange of a job without its compute, beside what the link gives at its best and beside the same messages out of one run of memory.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bench/link.hpp"
#include "bench/prepared_job.hpp"

namespace longspan::bench {

struct ExchangeOfRank {
  int64_t bytes_received = 0, bytes_sent = 0, planned_bytes_received = 0, bytes_from_other_hosts = 0;
  int64_t messages_received = 0, steps = 0;  // steps in which something comes
  int64_t bytes_lower_bound = 0, bytes_ring = 0;
  double seconds = 0;       // median of its times
  double link_seconds = 0;  // what its bytes take at link speed, the busier direction
};

struct ExchangeMeasure {
  std::vector<ExchangeOfRank> ranks;
  std::vector<double> seconds;             // of the slowest rank, each time
  std::vector<double> contiguous_seconds;  // the same messages, each out of one run of memory into one
  int64_t message_bytes = 0;               // what the link was measured with: the largest mean of a rank's bytes per step
  LinkSpeed within_host, across_hosts;     // at that size; zeros where there is no such way
  double link_seconds = 0;                 // of the rank that would take longest
  std::optional<int64_t> network_bytes;    // that all hosts' interfaces sent, per time; absent on one host and where it cannot be read

  int64_t bytes_between_hosts() const;
};

// Collective; the same on all ranks. Moves everything once before the first of `times`. Throws on this rank alone, but for a job whose keys
// are read again.
ExchangeMeasure measure_exchange(const comm::Communicator& ranks, PreparedJob& job, engine::Input& input, kernels::Device& device,
                                 comm::Transport& transport, int times);

}  // namespace longspan::bench
