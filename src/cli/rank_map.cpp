#include "cli/rank_map.hpp"

#include <fmt/format.h>

#include <set>

namespace longspan::cli {

using nlohmann::ordered_json;

namespace {

const char* name_of(launch::Bound bound) {
  return bound == launch::Bound::no ? "no" : bound == launch::Bound::by_launcher ? "launcher" : "longspan";
}

}  // namespace

Launch launch_ranks(const comm::Communicator& ranks, bool bind, std::optional<int> threads, const std::optional<kernels::Gpu>& gpu) {
  const launch::Machine machine;
  const launch::Allotment allotment = launch::slurm_allotment();
  const std::vector<int> near = gpu ? launch::cpus_near(gpu->id) : std::vector<int>{};
  const launch::Bound bound = bind ? launch::bind_ranks(ranks, machine, allotment, near) : launch::Bound::no;
  Launch result{.share = launch::share_of_host(ranks, allotment)};
  result.place = launch::place_of(ranks, machine, bound, threads.value_or(result.share.threads));
  if (gpu) result.place.device = fmt::format("{} ({})", gpu->name, gpu->id);
  return result;
}

std::vector<launch::Place> gather_places(const comm::Communicator& ranks, const launch::Place& mine) {
  const ordered_json packed = {mine.host, mine.cpus, mine.numa_nodes, mine.threads, static_cast<int>(mine.bound), mine.device};
  std::vector<launch::Place> places;
  for (const std::string& text : ranks.gather(packed.dump())) {
    const ordered_json fields = ordered_json::parse(text);
    places.push_back({.host = fields[0],
                      .cpus = fields[1],
                      .numa_nodes = fields[2],
                      .threads = fields[3],
                      .bound = static_cast<launch::Bound>(fields[4].get<int>()),
                      .device = fields[5]});
  }
  return places;
}

ordered_json place_json(const launch::Place& place) {
  return {{"host", place.host},
          {"cpus", launch::list_text(place.cpus)},
          {"numa_nodes", launch::list_text(place.numa_nodes)},
          {"threads", place.threads},
          {"bound", name_of(place.bound)},
          {"device", place.device.empty() ? ordered_json() : ordered_json(place.device)}};
}

std::string binding_remark(const std::vector<launch::Place>& places, const launch::Allotment& allotment, int host_cpus) {
  if (places.empty() || places.front().bound != launch::Bound::by_launcher) return {};
  std::set<int> used;
  for (const launch::Place& place : places)
    if (place.host == places.front().host) used.insert(place.cpus.begin(), place.cpus.end());
  const auto granted = std::min<int64_t>(host_cpus, allotment.cpus.value_or(host_cpus));
  if (2 * static_cast<int64_t>(used.size()) > granted) return {};
  return fmt::format(
      "the launcher has bound the ranks of {} to {} of its {} CPUs; to use all, give mpirun --bind-to none, or srun --cpus-per-task",
      places.front().host, used.size(), granted);
}

}  // namespace longspan::cli
