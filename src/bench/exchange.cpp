#include "bench/exchange.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>

#include "launch/network_counters.hpp"

namespace longspan::bench {

namespace {

using Clock = std::chrono::steady_clock;

std::map<int, int64_t> by_peer(const std::vector<engine::PeerUnits>& list) {
  std::map<int, int64_t> halves;
  for (const engine::PeerUnits& peer : list)
    for (const engine::UnitRun& run : peer.runs) halves[peer.peer] += run.kv_heads * run.halves.length();
  return halves;
}

// Halves of units by peer: from and to their homes, and of those that ranks of a host pass on to each other.
struct Step {
  std::map<int, int64_t> receive, send, given, passed_on;
};

std::vector<Step> steps_of(const engine::Schedule& schedule) {
  std::vector<Step> steps;
  for (const auto& stripe : schedule.exchanges)
    for (const engine::StepExchange& step : stripe)
      steps.push_back({by_peer(step.receive), by_peer(step.send), by_peer(step.given_receive), by_peer(step.pass_on)});
  return steps;
}

int64_t sum_of(const std::map<int, int64_t>& halves) {
  return std::accumulate(halves.begin(), halves.end(), int64_t{0}, [](int64_t sum, const auto& entry) { return sum + entry.second; });
}

// The same messages in the same steps, each in one run: what is left of the exchange when nothing need be gathered or scattered.
std::vector<double> contiguous_seconds(const comm::Communicator& ranks, const std::vector<Step>& steps, const engine::Schedule& schedule,
                                       int64_t half_bytes, int64_t block_bytes, kernels::Device& device, comm::Transport& transport,
                                       double timeout, int times) {
  const bool two_levels = schedule.passes_on;
  const int64_t at_once = schedule.ahead + 1;  // steps on their way
  // Slots, of as many bytes as the job's messages are made of: what comes, of as many steps as are on their way; what goes, likewise; what
  // is given; what is passed on.
  const auto blocks_of = [&](int64_t halves) { return halves * half_bytes / block_bytes; };
  int64_t received = 0, sent = 0, given = 0, passed_on = 0;
  for (const Step& step : steps) {
    received = std::max(received, blocks_of(sum_of(step.receive))), sent = std::max(sent, blocks_of(sum_of(step.send)));
    given = std::max(given, blocks_of(sum_of(step.given))), passed_on = std::max(passed_on, blocks_of(sum_of(step.passed_on)));
  }
  const int64_t gone = at_once * received, gift = gone + at_once * sent, slots = gift + given + passed_on;
  const int64_t bytes = std::max<int64_t>(1, slots) * block_bytes;
  const kernels::Buffer pool = device.allocate(bytes);
  device.clear(pool.get(), bytes);  // a host has pages for memory only once it is written
  const auto exchange = transport.between_pools(ranks, pool.get(), block_bytes);
  const auto inside = two_levels ? transport.between_pools(ranks, pool.get(), block_bytes) : nullptr;
  for (comm::PoolExchange* each : {exchange.get(), inside.get()})
    if (each != nullptr) each->set_timeout(timeout);
  const auto messages = [&](const std::map<int, int64_t>& halves_of_peers, int64_t slot) {
    std::vector<comm::PoolExchange::Message> result;
    for (const auto& [peer, halves] : halves_of_peers) {
      const int64_t count = blocks_of(halves);
      result.push_back({peer, std::vector<int32_t>(static_cast<size_t>(count))});
      std::iota(result.back().slots.begin(), result.back().slots.end(), static_cast<int32_t>(slot));
      slot += count;
    }
    return result;
  };
  size_t started = 0;
  const auto start_up_to = [&](size_t last) {  // as in the engine
    for (; started <= last && started < steps.size(); ++started) {
      const int64_t place = static_cast<int64_t>(started) % at_once;
      exchange->start(static_cast<int>(started), messages(steps[started].receive, place * received),
                      messages(steps[started].send, gone + place * sent));
    }
  };
  std::vector<double> seconds;
  for (int time = -1; time < times; ++time) {
    ranks.barrier();
    const Clock::time_point begin = Clock::now();
    started = 0;
    start_up_to(std::max(schedule.first_fetch, static_cast<size_t>(schedule.ahead - 1)));
    for (size_t t = 0; t < steps.size(); ++t) {
      const int tag = static_cast<int>(t);
      start_up_to(t + static_cast<size_t>(schedule.ahead));
      if (inside) inside->hand_over();
      exchange->finish_receives(tag);
      if (!inside) continue;
      inside->start(tag, messages(steps[t].given, gift), messages(steps[t].passed_on, gift + given));
      exchange->hand_over();
      inside->finish_receives(tag);
      inside->finish_sends(tag);
    }
    for (size_t t = 0; t < steps.size(); ++t) exchange->finish_sends(static_cast<int>(t));
    if (time >= 0) seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return seconds;
}

std::vector<double> slowest(const comm::Communicator& ranks, const std::vector<double>& seconds) {
  std::vector<double> most;
  for (double time : seconds) {
    const std::vector<double> all = ranks.all_gather(time);
    most.push_back(*std::max_element(all.begin(), all.end()));
  }
  return most;
}

// Bytes that all hosts have sent when all ranks have come here, on every rank; nothing where a host cannot tell.
std::optional<int64_t> sent_by_all_hosts(const comm::Communicator& ranks) {
  ranks.barrier();
  const std::optional<int64_t> here = ranks.local_rank() == 0 ? launch::network_bytes_sent() : 0;
  if (ranks.min(here ? 1 : 0) == 0) return std::nullopt;
  return ranks.sum(here.value_or(0));
}

}  // namespace

int64_t ExchangeMeasure::bytes_between_hosts() const {
  return std::accumulate(ranks.begin(), ranks.end(), int64_t{0},
                         [](int64_t sum, const ExchangeOfRank& rank) { return sum + rank.bytes_from_other_hosts; });
}

ExchangeMeasure measure_exchange(const comm::Communicator& ranks, PreparedJob& job, engine::Input& input, kernels::Device& device,
                                 comm::Transport& transport, int times) {
  ExchangeMeasure measure;
  const plan::RankPlan& plan = job.plan();
  const std::vector<Step> steps = steps_of(job.schedule());
  ExchangeOfRank mine;
  {
    // Between its loads and its end an exchange sends nothing but what is planned; barriers are some hundred bytes.
    const std::optional<int64_t> before = ranks.hosts() > 1 ? sent_by_all_hosts(ranks) : std::nullopt;
    engine::ExchangeTimes exchanged = job.exchange(input, device, transport, times + 1);
    const std::optional<int64_t> after = before ? sent_by_all_hosts(ranks) : std::nullopt;
    if (before && after) measure.network_bytes = (*after - *before) / (times + 1);
    exchanged.seconds.erase(exchanged.seconds.begin());
    mine.seconds = median(exchanged.seconds);
    mine.bytes_received = exchanged.bytes_received;
    mine.bytes_sent = exchanged.bytes_sent;
    mine.messages_received = exchanged.messages_received;
    measure.seconds = slowest(ranks, exchanged.seconds);
  }
  mine.planned_bytes_received = plan.bytes_moved;
  mine.bytes_from_other_hosts = job.schedule().bytes_from_other_hosts;
  mine.bytes_lower_bound = plan.bytes_lower_bound();
  mine.bytes_ring = plan.ring_bytes(job.shared());
  mine.steps = std::count_if(steps.begin(), steps.end(), [](const Step& step) { return !step.receive.empty() || !step.given.empty(); });
  measure.contiguous_seconds =
      slowest(ranks, contiguous_seconds(ranks, steps, job.schedule(), plan.unit_bytes / 2,
                                        plan.unit_bytes / (job.shared().in_halves ? 4 : 1), device, transport, job.job().timeout, times));

  measure.message_bytes = std::min(ranks.max(mine.steps > 0 ? mine.bytes_received / mine.steps : 0), comm::kPieceBytes);
  if (measure.message_bytes > 0) {
    const std::vector<int>& hosts = ranks.host_of_rank();
    measure.within_host = measure_link(ranks, neighbours_within_host(hosts, ranks.rank()), device, transport, measure.message_bytes, times);
    measure.across_hosts =
        measure_link(ranks, neighbours_across_hosts(hosts, ranks.rank()), device, transport, measure.message_bytes, times);
    const auto at_link_speed = [&](std::map<int, int64_t> Step::*from_homes, std::map<int, int64_t> Step::*inside) {
      double near = 0, far = 0;
      for (const Step& step : steps) {
        for (const auto* halves_by_peer : {&(step.*from_homes), &(step.*inside)})
          for (const auto& [peer, halves] : *halves_by_peer)
            (hosts[static_cast<size_t>(peer)] == hosts[static_cast<size_t>(ranks.rank())] ? near : far) +=
                static_cast<double>(halves * plan.unit_bytes / 2);
      }
      return (near > 0 ? near / measure.within_host.bytes_per_second : 0) + (far > 0 ? far / measure.across_hosts.bytes_per_second : 0);
    };
    mine.link_seconds = std::max(at_link_speed(&Step::receive, &Step::given), at_link_speed(&Step::send, &Step::passed_on));
  }

  measure.ranks.resize(static_cast<size_t>(ranks.size()));
  for (int64_t ExchangeOfRank::*figure :
       {&ExchangeOfRank::bytes_received, &ExchangeOfRank::bytes_sent, &ExchangeOfRank::planned_bytes_received,
        &ExchangeOfRank::bytes_from_other_hosts, &ExchangeOfRank::messages_received, &ExchangeOfRank::steps,
        &ExchangeOfRank::bytes_lower_bound, &ExchangeOfRank::bytes_ring}) {
    const std::vector<int64_t> all = ranks.all_gather(mine.*figure);
    for (size_t r = 0; r < all.size(); ++r) measure.ranks[r].*figure = all[r];
  }
  for (double ExchangeOfRank::*figure : {&ExchangeOfRank::seconds, &ExchangeOfRank::link_seconds}) {
    const std::vector<double> all = ranks.all_gather(mine.*figure);
    for (size_t r = 0; r < all.size(); ++r) measure.ranks[r].*figure = all[r];
  }
  for (const ExchangeOfRank& rank : measure.ranks) measure.link_seconds = std::max(measure.link_seconds, rank.link_seconds);
  return measure;
}

}  // namespace longspan::bench
