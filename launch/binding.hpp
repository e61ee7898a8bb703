// Ranks on cores: binds the ranks of a host that nobody has bound, and says where each one runs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "launch/topology.hpp"

namespace longspan::launch {

// The structure of a host, by hwloc. Errors of hwloc are no errors here: then every CPU is a core, and there is one NUMA node.
class Machine {
 public:
  Machine();                                       // this host
  explicit Machine(const std::string& synthetic);  // one made up in hwloc's notation, for tests: "numa:2 core:4 pu:2"
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  int cpus() const;  // that are there and allowed to this process (control group), bound or not
  // `cpus` by core, in the machine's order, in which neighbours share caches and memory.
  std::vector<std::vector<int>> cores(const std::vector<int>& cpus) const;
  std::vector<int> numa_nodes(const std::vector<int>& cpus) const;  // ascending
  // From now on the calling thread, and those it starts, run on `cpus` only. False when the system refuses.
  bool bind(const std::vector<int>& cpus) const;

 private:
  struct Topology;
  std::unique_ptr<Topology> topology_;
};

// Equal contiguous parts of `cores` (±1), CPUs ascending in each; of single CPUs when there are fewer cores than parts; nothing when there
// are fewer CPUs than parts: then the system shares them out better.
//   4 cores of 2 CPUs for 2: {0-3}, {4-7}    for 3: one, one and two cores    for 8: one CPU each    for 9: nothing
std::vector<std::vector<int>> split_cores(const std::vector<std::vector<int>>& cores, int parts);

// Which of the parts each rank gets, near[r] being the CPUs near its device (empty: it has none). Ranks with devices choose first, by
// number: the part with the largest share of CPUs near the device; where none has any, the one next to such a part; of equal ones the
// first.
//   parts {0-3}, {4-7}, {8-11}, {12-15}, GPUs of ranks 0 and 1 near 8-15, of 2 and 3 near 0-7:   2, 3, 0, 1
std::vector<int> parts_near(const std::vector<std::vector<int>>& parts, const std::vector<std::vector<int>>& near);

enum class Bound : uint8_t { no, by_launcher, by_longspan };

// Collective. Gives each rank of a host its own part of the cores, near its device if it has one (`near`: that one's CPUs), if all of them
// may run on the same CPUs. Does nothing
//   - when their CPUs differ: the launcher has bound them already;
//   - for a rank that is alone on its host;
//   - when there are more ranks than CPUs;
//   - when Slurm granted fewer CPUs than are open to them (`allotment`): nobody knows which ones are other jobs'.
// Threads started before keep their CPUs.
Bound bind_ranks(const comm::Communicator& ranks, const Machine& machine, const Allotment& allotment, const std::vector<int>& near = {});

// Where a rank runs, as the run's head and record show it.
struct Place {
  std::string host;
  std::vector<int> cpus, numa_nodes;
  int threads = 1;
  Bound bound = Bound::no;
  std::string device;  // "GPU 0 (NVIDIA H200)"; empty: the CPUs compute
  bool operator==(const Place&) const = default;
};
Place place_of(const comm::Communicator& ranks, const Machine& machine, Bound bound, int threads);

// {0, 1, 2, 3, 8} -> "0-3,8", as taskset and Slurm write it.
std::string list_text(const std::vector<int>& numbers);

// The map of all ranks, places[r] that of rank r: a line for each host, or for several alike in a row; the first 16 lines.
//   node01: ranks 0-1, 4 threads each, bound by longspan to CPUs 0-3 | 4-7, NUMA node 0 | 1
//   node02 … node04 (3 hosts): 2 ranks each (2-7), …
std::string map_text(const std::vector<Place>& places, int indent = 0);

}  // namespace longspan::launch
