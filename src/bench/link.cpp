#include "bench/link.hpp"

#include <algorithm>
#include <chrono>
#include <map>

namespace longspan::bench {

namespace {

using Clock = std::chrono::steady_clock;

std::map<int, std::vector<int>> ranks_by_host(const std::vector<int>& host_of_rank) {
  std::map<int, std::vector<int>> hosts;
  for (size_t rank = 0; rank < host_of_rank.size(); ++rank) hosts[host_of_rank[rank]].push_back(static_cast<int>(rank));
  return hosts;
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

Neighbours neighbours_within_host(const std::vector<int>& host_of_rank, int rank) {
  const auto hosts = ranks_by_host(host_of_rank);
  const std::vector<int>& here = hosts.at(host_of_rank[static_cast<size_t>(rank)]);
  if (here.size() < 2) return {};
  const auto place = static_cast<size_t>(std::find(here.begin(), here.end(), rank) - here.begin());
  return {here[(place + 1) % here.size()], here[(place + here.size() - 1) % here.size()]};
}

Neighbours neighbours_across_hosts(const std::vector<int>& host_of_rank, int rank) {
  const auto hosts = ranks_by_host(host_of_rank);
  if (hosts.size() < 2) return {};
  std::vector<std::vector<int>> members;
  size_t here = 0, fewest = host_of_rank.size();
  for (const auto& [host, list] : hosts) {
    if (host == host_of_rank[static_cast<size_t>(rank)]) here = members.size();
    fewest = std::min(fewest, list.size());
    members.push_back(list);
  }
  const auto place = static_cast<size_t>(std::find(members[here].begin(), members[here].end(), rank) - members[here].begin());
  if (place >= fewest) return {};
  return {members[(here + 1) % members.size()][place], members[(here + members.size() - 1) % members.size()][place]};
}

std::vector<double> exchange_seconds(const comm::Communicator& ranks, const Neighbours& neighbours, kernels::Device& device,
                                     comm::Transport& transport, int64_t bytes, int times) {
  const kernels::Buffer pool = device.allocate(2 * bytes);  // what goes, what comes;
  device.clear(pool.get(), 2 * bytes);                      // a host has pages for memory only once it is written
  const auto exchange = transport.between_pools(ranks, pool.get(), bytes);
  std::vector<comm::PoolExchange::Message> receives, sends;
  if (neighbours.from >= 0) receives.push_back({neighbours.from, {1}});
  if (neighbours.to >= 0) sends.push_back({neighbours.to, {0}});
  std::vector<double> seconds;
  for (int time = -1; time < times; ++time) {
    ranks.barrier();
    const Clock::time_point start = Clock::now();
    exchange->start(time + 1, receives, sends);
    exchange->finish_receives(time + 1);
    exchange->finish_sends(time + 1);
    if (time >= 0) seconds.push_back(sends.empty() ? 0 : std::chrono::duration<double>(Clock::now() - start).count());
  }
  return seconds;
}

LinkSpeed measure_link(const comm::Communicator& ranks, const Neighbours& neighbours, kernels::Device& device, comm::Transport& transport,
                       int64_t bytes, int times) {
  const auto typical = [&](int64_t size, int count) {
    std::vector<double> all;
    for (double seconds : ranks.all_gather(median(exchange_seconds(ranks, neighbours, device, transport, size, count))))
      if (seconds > 0) all.push_back(seconds);
    return median(std::move(all));
  };
  if (ranks.max(neighbours.to >= 0 ? 1 : 0) == 0) return {};
  LinkSpeed speed;
  speed.latency = typical(8, 10 * times);
  const double seconds = typical(bytes, times);
  speed.bytes_per_second = seconds > 0 ? static_cast<double>(bytes) / seconds : 0;
  return speed;
}

}  // namespace longspan::bench
