// What this process may use of its host: CPUs and memory, also inside a container or a batch job, and its share among the ranks there.
// Functions that read the system take its root folder, so that tests can show them another one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "longspan/error.hpp"

namespace longspan::launch {

// The CPUs that the calling thread may run on, ascending (sched_getaffinity: what taskset, cpusets and the launcher's binding leave).
std::vector<int> available_cpus();

// CPU time per second that the control groups (versions 1 and 2) grant, e.g. 1.5; nothing when unlimited.
std::optional<double> cpu_quota(const std::filesystem::path& root = "/");

// Bytes that this process could still allocate without swapping or being killed: what the host has free (MemAvailable), or less where a
// control group around the process has less left below its limit (file cache that can be dropped counts as free).
int64_t free_memory(const std::filesystem::path& root = "/");
int64_t total_memory(const std::filesystem::path& root = "/");

// Bytes of memory that this process has had at most so far, code and libraries included.
int64_t peak_memory();

// The share of one of `ranks` in `free_bytes`: 80 % of what is free, in equal parts.
int64_t memory_share(int64_t free_bytes, int ranks);

// Threads for each of a host's ranks when rank r may run on cpus[r]: a CPU that n ranks may use counts 1/n for each of them.
//   4 ranks on CPUs {0, 1} each:      1, 1, 1, 1
//   2 ranks bound to {0-3} and {4-7}: 4, 4
//   2 ranks on {0-7}, quota 4:        2, 2
std::vector<int> thread_shares(const std::vector<std::vector<int>>& cpus, std::optional<double> quota);

// getenv but for tests.
using Variable = std::function<std::optional<std::string>(const char*)>;
std::optional<std::string> environment_variable(const char* name);

// What Slurm has granted the job on this host. Clusters differ in whether affinity and control groups hold a job to it.
struct Allotment {
  std::optional<int64_t> cpus;           // SLURM_CPUS_ON_NODE
  std::optional<int64_t> cpus_per_rank;  // SLURM_CPUS_PER_TASK, when asked for
  std::optional<int64_t> memory;  // bytes, when asked for: SLURM_MEM_PER_NODE, or SLURM_MEM_PER_CPU or _GPU times as many as are here
};
Allotment slurm_allotment(const Variable& variable = environment_variable);  // empty outside a Slurm job

// The CPUs near a PCI device ("0000:3b:00", as kernels::Gpu has it), ascending; none where the system does not say.
std::vector<int> cpus_near(const std::string& pci_address, const std::filesystem::path& root = "/");

// What each rank of this rank's host has given, by local rank. Collective.
std::vector<std::vector<int>> lists_of_host(const comm::Communicator& communicator, const std::vector<int>& own);
std::vector<std::vector<int>> cpus_of_host(const comm::Communicator& communicator);  // available_cpus() of each

// What a rank may use unless the user says otherwise. Equal splits are fair only if all ranks of a host agree: collective.
struct Share {
  int threads = 1;
  int64_t memory = 0;  // bytes
};
Share share_of_host(const comm::Communicator& communicator, const Allotment& allotment = {});

// One line about this host for the run's head: "node03: AMD EPYC 9554, 2 sockets, 128 CPUs (16 for this process), 503.1 of 755.6 GiB free".
std::string describe_host(const std::filesystem::path& root = "/");

// The trap of a launcher that does not fit the MPI library: N processes start and each believes to be alone. A problem with its mend when
// the launcher's variables speak of several ranks although MPI_COMM_WORLD has `mpi_size` = 1.
std::optional<Problem> lonely_rank(int mpi_size, const Variable& variable = environment_variable);

}  // namespace longspan::launch
