#include "launch/binding.hpp"

#include <fmt/format.h>
#include <hwloc.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <tuple>

#include "longspan/error.hpp"

namespace longspan::launch {

struct Machine::Topology {
  hwloc_topology_t handle = nullptr;
  ~Topology() {
    if (handle) hwloc_topology_destroy(handle);
  }
  bool load(const char* synthetic) {
    if (hwloc_topology_init(&handle) != 0) {
      handle = nullptr;
      return false;
    }
    if (synthetic && hwloc_topology_set_synthetic(handle, synthetic) != 0) return false;
    return hwloc_topology_load(handle) == 0;
  }
};

namespace {

// A set of CPUs or NUMA nodes as hwloc has it.
class Set {
 public:
  Set() : set_(hwloc_bitmap_alloc()) {}
  explicit Set(const std::vector<int>& members) : Set() {
    for (int member : members) hwloc_bitmap_set(set_, static_cast<unsigned>(member));
  }
  ~Set() { hwloc_bitmap_free(set_); }
  Set(const Set&) = delete;
  Set& operator=(const Set&) = delete;
  hwloc_bitmap_t get() const { return set_; }

 private:
  hwloc_bitmap_t set_;
};

std::vector<int> members(hwloc_const_bitmap_t set) {
  std::vector<int> found;
  for (int member = hwloc_bitmap_first(set); member >= 0; member = hwloc_bitmap_next(set, member)) found.push_back(member);
  return found;
}

}  // namespace

Machine::Machine() : topology_(std::make_unique<Topology>()) {
  if (!topology_->load(nullptr)) topology_.reset();
}
Machine::Machine(const std::string& synthetic) : topology_(std::make_unique<Topology>()) {
  if (!topology_->load(synthetic.c_str())) topology_.reset();
}
Machine::~Machine() = default;

int Machine::cpus() const {
  if (!topology_) return static_cast<int>(available_cpus().size());
  return hwloc_bitmap_weight(hwloc_topology_get_allowed_cpuset(topology_->handle));
}

std::vector<std::vector<int>> Machine::cores(const std::vector<int>& cpus) const {
  std::vector<std::vector<int>> found;
  std::vector<int> rest = cpus;
  if (topology_) {
    const Set wanted(cpus);
    hwloc_obj_t core = nullptr;
    while ((core = hwloc_get_next_obj_by_type(topology_->handle, HWLOC_OBJ_CORE, core))) {
      const Set own;
      hwloc_bitmap_and(own.get(), core->cpuset, wanted.get());
      if (hwloc_bitmap_iszero(own.get())) continue;
      found.push_back(members(own.get()));
      for (int cpu : found.back()) std::erase(rest, cpu);
    }
  }
  for (int cpu : rest) found.push_back({cpu});  // of no core that hwloc knows
  return found;
}

std::vector<int> Machine::numa_nodes(const std::vector<int>& cpus) const {
  if (!topology_) return {0};
  const Set set(cpus), nodes;
  hwloc_cpuset_to_nodeset(topology_->handle, set.get(), nodes.get());
  return members(nodes.get());
}

bool Machine::bind(const std::vector<int>& cpus) const {
  return topology_ && hwloc_set_cpubind(topology_->handle, Set(cpus).get(), HWLOC_CPUBIND_THREAD) == 0;
}

std::vector<std::vector<int>> split_cores(const std::vector<std::vector<int>>& cores, int parts) {
  std::vector<std::vector<int>> units = cores;
  if (static_cast<int>(units.size()) < parts) {
    units.clear();
    for (const std::vector<int>& core : cores)
      for (int cpu : core) units.push_back({cpu});
  }
  const auto count = static_cast<int64_t>(units.size());
  if (parts < 1 || count < parts) return {};
  std::vector<std::vector<int>> split(static_cast<size_t>(parts));
  for (int64_t part = 0; part < parts; ++part) {
    std::vector<int>& cpus = split[static_cast<size_t>(part)];
    for (int64_t unit = count * part / parts; unit < count * (part + 1) / parts; ++unit)
      cpus.insert(cpus.end(), units[static_cast<size_t>(unit)].begin(), units[static_cast<size_t>(unit)].end());
    std::sort(cpus.begin(), cpus.end());
  }
  return split;
}

std::vector<int> parts_near(const std::vector<std::vector<int>>& parts, const std::vector<std::vector<int>>& near) {
  std::vector<int> given(near.size(), -1);
  std::vector<bool> taken(parts.size(), false);
  for (const bool has_device : {true, false}) {
    for (size_t rank = 0; rank < near.size(); ++rank) {
      if (near[rank].empty() == has_device) continue;
      std::vector<double> share;  // of each part's CPUs, near the device
      for (const std::vector<int>& part : parts) {
        const auto there =
            std::count_if(part.begin(), part.end(), [&](int cpu) { return std::binary_search(near[rank].begin(), near[rank].end(), cpu); });
        share.push_back(static_cast<double>(there) / static_cast<double>(part.size()));
      }
      const auto away = [&](int part) {  // from the nearest part that has some
        int least = static_cast<int>(parts.size());
        for (int other = 0; other < static_cast<int>(parts.size()); ++other)
          if (share[static_cast<size_t>(other)] > 0) least = std::min(least, std::abs(part - other));
        return least;
      };
      const auto worth = [&](int part) { return std::tuple(share[static_cast<size_t>(part)], -away(part), -part); };
      int best = -1;
      for (int part = 0; part < static_cast<int>(parts.size()); ++part)
        if (!taken[static_cast<size_t>(part)] && (best < 0 || worth(part) > worth(best))) best = part;
      if (best < 0) internal_error("fewer parts of a host than ranks");
      given[rank] = best, taken[static_cast<size_t>(best)] = true;
    }
  }
  return given;
}

Bound bind_ranks(const comm::Communicator& ranks, const Machine& machine, const Allotment& allotment, const std::vector<int>& near) {
  const std::vector<std::vector<int>> open = cpus_of_host(ranks), near_each = lists_of_host(ranks, near);
  const std::vector<int>& own = open[static_cast<size_t>(ranks.local_rank())];
  if (open.size() == 1) return static_cast<int>(own.size()) < machine.cpus() ? Bound::by_launcher : Bound::no;
  if (std::any_of(open.begin(), open.end(), [&](const std::vector<int>& cpus) { return cpus != own; })) return Bound::by_launcher;
  if (allotment.cpus.value_or(static_cast<int64_t>(own.size())) < static_cast<int64_t>(own.size())) return Bound::no;
  const std::vector<std::vector<int>> parts = split_cores(machine.cores(own), static_cast<int>(open.size()));
  if (parts.empty()) return Bound::no;
  const int part = parts_near(parts, near_each)[static_cast<size_t>(ranks.local_rank())];
  return machine.bind(parts[static_cast<size_t>(part)]) ? Bound::by_longspan : Bound::no;
}

Place place_of(const comm::Communicator& ranks, const Machine& machine, Bound bound, int threads) {
  Place place{.host = ranks.host(), .cpus = available_cpus(), .threads = threads, .bound = bound};
  place.numa_nodes = machine.numa_nodes(place.cpus);
  return place;
}

std::string list_text(const std::vector<int>& numbers) {
  std::string text;
  for (size_t begin = 0, end = 0; begin < numbers.size(); begin = end) {
    for (end = begin + 1; end < numbers.size() && numbers[end] == numbers[end - 1] + 1;) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ",", numbers[begin]);
    if (end - begin > 1) text += fmt::format("-{}", numbers[end - 1]);
  }
  return text;
}

namespace {

// "a | b | c"; "a" when all are the same.
std::string joined(const std::vector<std::string>& each) {
  if (std::all_of(each.begin(), each.end(), [&](const std::string& text) { return text == each.front(); })) return each.front();
  std::string text;
  for (const std::string& one : each) text += (text.empty() ? "" : " | ") + one;
  return text;
}

// What the ranks of one host have, without its name and their numbers.
std::string host_text(const std::vector<Place>& places) {
  std::vector<std::string> threads, cpus, nodes, devices;
  for (const Place& place : places) {
    threads.push_back(std::to_string(place.threads));
    cpus.push_back(list_text(place.cpus));
    nodes.push_back(list_text(place.numa_nodes));
    devices.push_back(place.device.empty() ? "none" : place.device);
  }
  const std::string thread_count = joined(threads);
  std::string text = fmt::format("{} thread{}{}, ", thread_count, thread_count == "1" ? "" : "s", places.size() > 1 ? " each" : "");
  switch (places.front().bound) {
    case Bound::no:
      text += "not bound: CPUs ";
      break;
    case Bound::by_launcher:
      text += "bound by the launcher to CPUs ";
      break;
    case Bound::by_longspan:
      text += "bound by longspan to CPUs ";
      break;
  }
  text += fmt::format("{}, NUMA node {}", joined(cpus), joined(nodes));
  if (const std::string device = joined(devices); device != "none") text += ", " + device;
  return text;
}

}  // namespace

std::string map_text(const std::vector<Place>& places, int indent) {
  struct Line {
    std::string first_host, last_host, text;
    int hosts = 0, first_rank = 0, ranks = 0;  // ranks: of each host
  };
  std::vector<Line> lines;
  for (size_t first = 0, end = 0; first < places.size(); first = end) {
    for (end = first + 1; end < places.size() && places[end].host == places[first].host;) ++end;
    const Line line{places[first].host,
                    places[first].host,
                    host_text({places.begin() + static_cast<std::ptrdiff_t>(first), places.begin() + static_cast<std::ptrdiff_t>(end)}),
                    1,
                    static_cast<int>(first),
                    static_cast<int>(end - first)};
    if (!lines.empty() && lines.back().text == line.text && lines.back().ranks == line.ranks) {
      lines.back().last_host = line.last_host;
      ++lines.back().hosts;
    } else {
      lines.push_back(line);
    }
  }
  constexpr size_t kMostLines = 16;
  std::string text;
  for (size_t i = 0; i < std::min(lines.size(), kMostLines); ++i) {
    const Line& line = lines[i];
    std::vector<int> numbers(static_cast<size_t>(line.hosts * line.ranks));
    std::iota(numbers.begin(), numbers.end(), line.first_rank);
    const std::string which = fmt::format("{} {}", numbers.size() == 1 ? "rank" : "ranks", list_text(numbers));
    text.append(static_cast<size_t>(indent), ' ');
    text += line.hosts == 1 ? fmt::format("{}: {}, {}\n", line.first_host, which, line.text)
                            : fmt::format("{} … {} ({} hosts): {}, {} on each host, {}\n", line.first_host, line.last_host, line.hosts,
                                          which, line.ranks, line.text);
  }
  int rest = 0;
  for (size_t i = kMostLines; i < lines.size(); ++i) rest += lines[i].hosts;
  if (rest > 0) text += fmt::format("{:{}}… and {} more hosts\n", "", indent, rest);
  return text;
}

}  // namespace longspan::launch
