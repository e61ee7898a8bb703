// How fast messages go between ranks: each rank to its next one on the same host, and to its fellow on the next host.
//
//   hosts a (ranks 0, 1, 2) and b (3, 4, 5):   within a host 0 → 1 → 2 → 0 and 3 → 4 → 5 → 3,   across 0 ⇄ 3, 1 ⇄ 4, 2 ⇄ 5
//
// Where hosts have unequally many ranks, those without a fellow everywhere take no part across hosts.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"

namespace longspan::comm {

enum class Link : uint8_t { within_host, across_hosts };

struct LinkRate {
  double latency = 0;                               // seconds: half a round trip of 8 bytes, median
  double bytes_per_second = 0;                      // received, of the largest message, while every rank sends one and receives one
  double bytes_per_second_alone = 0;                // sent, while only one rank of each host sends (0 on the others)
  std::vector<std::pair<int64_t, double>> by_size;  // message bytes → bytes per second, all at once
  bool intact = true;                               // every message held what was sent
};

// This rank's rate; nothing when it takes no part. `most_bytes`: the largest message; messages that would take longer than about 2 s are
// left out. Two buffers of that size are needed. Collective.
std::optional<LinkRate> measure_link(const Communicator& ranks, Link link, int64_t most_bytes);

// How far this host's clock is ahead of rank 0's, in seconds; measured by the first rank of each host, 0 on the others. Good to half of the
// shortest of 20 round trips. Collective.
double clock_offset(const Communicator& ranks);

}  // namespace longspan::comm
