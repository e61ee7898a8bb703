// What the way between ranks gives at its best: one message to one neighbour, in one run of memory, every rank sending one and receiving
// one at the same time, through the transport that jobs use.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "kernels/device.hpp"

namespace longspan::bench {

// −1: none (a rank alone on its host, or on a host with more ranks than another).
struct Neighbours {
  int to = -1, from = -1;
};

// Round each host:     hosts {0, 1} and {2, 3}: 0 → 1 → 0, 2 → 3 → 2
// From host to host:                            0 → 2 → 0, 1 → 3 → 1
// `host_of_rank` as comm::Communicator's.
Neighbours neighbours_within_host(const std::vector<int>& host_of_rank, int rank);
Neighbours neighbours_across_hosts(const std::vector<int>& host_of_rank, int rank);

// Collective. Seconds of each of `times` exchanges with the neighbours, on this rank, after one that does not count; all zero for a rank
// without neighbours. Messages of 1 byte … 1 GiB. Throws Error(communication) on this rank alone.
std::vector<double> exchange_seconds(const comm::Communicator& ranks, const Neighbours& neighbours, kernels::Device& device,
                                     comm::Transport& transport, int64_t bytes, int times);

struct LinkSpeed {
  double latency = 0;           // seconds: messages of 8 bytes both ways at once
  double bytes_per_second = 0;  // that a rank receives, and sends
};
// Collective: the median over times and ranks, the same on all of them; zeros where no rank has neighbours.
LinkSpeed measure_link(const comm::Communicator& ranks, const Neighbours& neighbours, kernels::Device& device, comm::Transport& transport,
                       int64_t bytes, int times);

double median(std::vector<double> values);  // 0 for none

}  // namespace longspan::bench
