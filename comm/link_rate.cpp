#include "comm/link_rate.hpp"

#include <algorithm>
#include <chrono>
#include <map>

namespace longspan::comm {

namespace {

constexpr int kTag = 17;
constexpr int kRoundTrips = 100;
constexpr int kRepeats = 3;
constexpr double kLongest = 2;  // seconds a message may take

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double wall_clock() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A ring of ranks, this one's place in it, and its neighbours.
struct Ring {
  int size = 0, place = 0, next = 0, previous = 0;
  bool leads = false;  // the rank that sends when only one of a host does
};

std::optional<Ring> ring_of(const Communicator& ranks, Link link) {
  // A host is known by its lowest rank.
  MPI_Comm host = MPI_COMM_NULL;
  check(MPI_Comm_split_type(ranks.handle(), MPI_COMM_TYPE_SHARED, ranks.rank(), MPI_INFO_NULL, &host), "MPI_Comm_split_type");
  int first = ranks.rank();
  check(MPI_Bcast(&first, 1, MPI_INT, 0, host), "MPI_Bcast");
  check(MPI_Comm_free(&host), "MPI_Comm_free");
  std::map<int64_t, std::vector<int>> hosts;
  const std::vector<int64_t> firsts = ranks.all_gather(int64_t{first});
  for (size_t r = 0; r < firsts.size(); ++r) hosts[firsts[r]].push_back(static_cast<int>(r));

  const auto ring = [&](const std::vector<int>& members, bool leads) -> std::optional<Ring> {
    const auto size = static_cast<int>(members.size());
    if (size < 2) return std::nullopt;
    const auto place = static_cast<int>(std::find(members.begin(), members.end(), ranks.rank()) - members.begin());
    return Ring{size, place, members[static_cast<size_t>((place + 1) % size)], members[static_cast<size_t>((place + size - 1) % size)],
                leads};
  };
  if (link == Link::within_host) return ring(hosts[first], ranks.local_rank() == 0);
  size_t fellows = hosts.begin()->second.size();
  for (const auto& [leader, members] : hosts) fellows = std::min(fellows, members.size());
  const auto own = static_cast<size_t>(ranks.local_rank());
  if (own >= fellows) return std::nullopt;
  std::vector<int> members;
  for (const auto& [leader, all] : hosts) members.push_back(all[own]);
  return ring(members, own == 0);
}

// In phase 0 the even places begin with their next one, in phase 1 the odd ones, in phase 2 the last of an odd ring: nobody is asked twice.
enum class Part : uint8_t { none, begins, answers };
Part part_of(const Ring& ring, int phase) {
  const auto phase_of = [&](int place) { return ring.size % 2 == 1 && place == ring.size - 1 ? 2 : place % 2; };
  if (phase_of(ring.place) == phase) return Part::begins;
  return phase_of((ring.place + ring.size - 1) % ring.size) == phase ? Part::answers : Part::none;
}

double half_round_trip(const Communicator& ranks, const std::optional<Ring>& ring) {
  std::vector<double> trips;
  for (int phase = 0; phase < 3; ++phase) {
    ranks.barrier();
    const Part part = ring ? part_of(*ring, phase) : Part::none;
    int64_t word = 0;
    for (int trip = 0; trip < kRoundTrips && part != Part::none; ++trip) {
      const double start = now();
      const int peer = part == Part::begins ? ring->next : ring->previous;
      if (part == Part::begins) check(MPI_Send(&word, sizeof word, MPI_BYTE, peer, kTag, ranks.handle()), "MPI_Send");
      check(MPI_Recv(&word, sizeof word, MPI_BYTE, peer, kTag, ranks.handle(), MPI_STATUS_IGNORE), "MPI_Recv");
      if (part == Part::answers) check(MPI_Send(&word, sizeof word, MPI_BYTE, peer, kTag, ranks.handle()), "MPI_Send");
      if (part == Part::begins) trips.push_back((now() - start) / 2);
    }
  }
  return trips.empty() ? 0 : median(trips);
}

// Seconds until what this rank waits for is here, every rank sending to its next one. The barrier keeps one rank's delay out of the
// next one's time.
double all_at_once(const Communicator& ranks, const std::optional<Ring>& ring, const std::vector<uint64_t>& out, std::vector<uint64_t>& in,
                   int64_t bytes) {
  ranks.barrier();
  if (!ring) return 0;
  const double start = now();
  MPI_Request requests[2];
  check(MPI_Irecv(in.data(), static_cast<int>(bytes), MPI_BYTE, ring->previous, kTag, ranks.handle(), &requests[0]), "MPI_Irecv");
  check(MPI_Isend(out.data(), static_cast<int>(bytes), MPI_BYTE, ring->next, kTag, ranks.handle(), &requests[1]), "MPI_Isend");
  double here = 0;
  for (int open = 2; open > 0;) {
    int which = MPI_UNDEFINED;
    check(MPI_Waitany(2, requests, &which, MPI_STATUS_IGNORE), "MPI_Waitany");
    if (which == 0) here = now() - start;
    --open;
  }
  return here;
}

// Seconds that this rank's message takes to its next one and a word back; 0 on ranks that do not begin.
double one_after_another(const Communicator& ranks, const std::optional<Ring>& ring, int phases, bool takes_part,
                         const std::vector<uint64_t>& out, std::vector<uint64_t>& in, int64_t bytes) {
  double seconds = 0;
  for (int phase = 0; phase < phases; ++phase) {
    ranks.barrier();
    const Part part = takes_part ? part_of(*ring, phase) : Part::none;
    int64_t word = 0;
    const double start = now();
    if (part == Part::begins) {
      check(MPI_Send(out.data(), static_cast<int>(bytes), MPI_BYTE, ring->next, kTag, ranks.handle()), "MPI_Send");
      check(MPI_Recv(&word, sizeof word, MPI_BYTE, ring->next, kTag, ranks.handle(), MPI_STATUS_IGNORE), "MPI_Recv");
      seconds = now() - start;
    } else if (part == Part::answers) {
      check(MPI_Recv(in.data(), static_cast<int>(bytes), MPI_BYTE, ring->previous, kTag, ranks.handle(), MPI_STATUS_IGNORE), "MPI_Recv");
      check(MPI_Send(&word, sizeof word, MPI_BYTE, ring->previous, kTag, ranks.handle()), "MPI_Send");
    }
  }
  return seconds;
}

// Word i of what `rank` sends.
uint64_t word_of(int rank, size_t i) { return (static_cast<uint64_t>(rank) << 40) + i; }

}  // namespace

std::optional<LinkRate> measure_link(const Communicator& ranks, Link link, int64_t most_bytes) {
  const std::optional<Ring> ring = ring_of(ranks, link);
  most_bytes = std::clamp<int64_t>(ranks.min(most_bytes), 1024, int64_t{512} << 20) / sizeof(uint64_t) * sizeof(uint64_t);
  LinkRate rate;
  rate.latency = half_round_trip(ranks, ring);

  std::vector<int64_t> sizes;
  for (const int64_t size : {int64_t{64} << 10, int64_t{1} << 20, int64_t{16} << 20, int64_t{64} << 20})
    if (size < most_bytes) sizes.push_back(size);
  sizes.push_back(most_bytes);
  const size_t words = ring ? static_cast<size_t>(most_bytes) / sizeof(uint64_t) : 0;
  std::vector<uint64_t> out(words), in(words);
  for (size_t i = 0; i < words; ++i) out[i] = word_of(ranks.rank(), i);
  double slowest = 0;  // seconds per byte, of all ranks
  int64_t largest = sizes.front();
  for (const int64_t size : sizes) {
    if (slowest * static_cast<double>(size) > kLongest) break;
    std::vector<double> seconds;
    for (int repeat = 0; repeat <= kRepeats; ++repeat) {
      const double one = all_at_once(ranks, ring, out, in, size);
      if (repeat > 0) seconds.push_back(one);  // the first warms up
    }
    const double typical = median(seconds);
    slowest = static_cast<double>(ranks.max(static_cast<int64_t>(typical * 1e9))) * 1e-9 / static_cast<double>(size);
    if (typical > 0) rate.by_size.emplace_back(size, static_cast<double>(size) / typical);
    largest = size;
  }
  if (!rate.by_size.empty()) rate.bytes_per_second = rate.by_size.back().second;
  const auto sent = static_cast<size_t>(largest) / sizeof(uint64_t);
  for (size_t i = 0; ring && i < sent; ++i) rate.intact = rate.intact && in[i] == word_of(ring->previous, i);

  // Within a host the leader sends to its next one, in phase 0; across hosts all leaders do so, in all phases.
  const bool takes_part = ring && (link == Link::across_hosts ? ring->leads : ring->place < 2);
  std::vector<double> alone;
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {
    const double seconds = one_after_another(ranks, ring, link == Link::across_hosts ? 3 : 1, takes_part, out, in, largest);
    if (repeat > 0) alone.push_back(seconds);
  }
  const double typical = median(alone);
  if (ring && ring->leads && typical > 0) rate.bytes_per_second_alone = static_cast<double>(largest) / typical;
  if (!ring) return std::nullopt;
  return rate;
}

double clock_offset(const Communicator& ranks) {
  constexpr int kTrips = 20;
  double offset = 0;
  const std::vector<int64_t> local = ranks.all_gather(int64_t{ranks.local_rank()});
  if (ranks.rank() == 0) {
    for (int peer = 1; peer < ranks.size(); ++peer) {
      if (local[static_cast<size_t>(peer)] != 0) continue;
      for (int trip = 0; trip < kTrips; ++trip) {
        double mine = 0;
        check(MPI_Recv(&mine, 1, MPI_DOUBLE, peer, kTag, ranks.handle(), MPI_STATUS_IGNORE), "MPI_Recv");
        mine = wall_clock();
        check(MPI_Send(&mine, 1, MPI_DOUBLE, peer, kTag, ranks.handle()), "MPI_Send");
      }
    }
  } else if (ranks.local_rank() == 0) {
    double shortest = 1e9;
    for (int trip = 0; trip < kTrips; ++trip) {
      const double start = wall_clock();
      double theirs = start;
      check(MPI_Send(&theirs, 1, MPI_DOUBLE, 0, kTag, ranks.handle()), "MPI_Send");
      check(MPI_Recv(&theirs, 1, MPI_DOUBLE, 0, kTag, ranks.handle(), MPI_STATUS_IGNORE), "MPI_Recv");
      const double end = wall_clock();
      if (end - start >= shortest) continue;
      shortest = end - start;
      offset = (start + end) / 2 - theirs;
    }
  }
  return offset;
}

}  // namespace longspan::comm
