#include "launch/topology.hpp"

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <sstream>

namespace longspan::launch {

namespace fs = std::filesystem;

namespace {

// The first whitespace-separated words of a file; empty when it cannot be read.
std::vector<std::string> words_of(const fs::path& file) {
  std::ifstream stream(file);
  std::vector<std::string> words;
  for (std::string word; words.size() < 4 && stream >> word;) words.push_back(word);
  return words;
}

std::optional<int64_t> integer(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<int64_t> integer_in(const fs::path& file) {
  const std::vector<std::string> words = words_of(file);
  return words.empty() ? std::nullopt : integer(words.front());
}

// The value after `key` at the start of a line: "MemAvailable:   123 kB", "inactive_file 4096".
std::optional<int64_t> value_after(const fs::path& file, const std::string& key) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream fields(line);
    std::string name, value;
    if (fields >> name >> value && name == key) return integer(value);
  }
  return std::nullopt;
}

// The folders of the control groups around this process that have `controller`, innermost first, up to the mount's root; `version`
// says how their files are called. A container often sees only a part of the hierarchy under other names, so folders that are not
// there are skipped rather than errors.
struct Group {
  fs::path folder;
  int version = 2;
};
std::vector<Group> groups_with(const std::string& controller, const fs::path& root) {
  std::vector<Group> groups;
  std::ifstream stream(root / "proc/self/cgroup");
  for (std::string line; std::getline(stream, line);) {  // "4:memory:/job/7" (version 1), "0::/job/7" (version 2)
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const int version = controllers == ",," ? 2 : 1;
    if (version == 1 && controllers.find(fmt::format(",{},", controller)) == std::string::npos) continue;
    fs::path mount = root / "sys/fs/cgroup";
    if (version == 1) {
      mount /= controller;
    } else if (fs::exists(mount / "unified")) {
      mount /= "unified";
    }
    fs::path inside = fs::path(line.substr(second + 1)).relative_path();
    for (;;) {
      if (fs::exists(mount / inside)) groups.push_back({mount / inside, version});
      if (inside.empty()) break;
      inside = inside.parent_path();
    }
  }
  return groups;
}

}  // namespace

std::vector<int> available_cpus() {
  // The kernel refuses a set that is smaller than its own, so ask again with a larger one (hosts have up to 8,192 CPUs).
  for (int most = CPU_SETSIZE; most <= 1 << 16; most *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(most), [](cpu_set_t* s) { CPU_FREE(s); });
    const size_t bytes = CPU_ALLOC_SIZE(most);
    CPU_ZERO_S(bytes, set.get());
    if (sched_getaffinity(0, bytes, set.get()) != 0) {
      if (errno == EINVAL) continue;
      break;
    }
    std::vector<int> cpus;
    for (int cpu = 0; cpu < most; ++cpu)
      if (CPU_ISSET_S(cpu, bytes, set.get())) cpus.push_back(cpu);
    if (!cpus.empty()) return cpus;
  }
  return {0};
}

std::optional<double> cpu_quota(const fs::path& root) {
  std::optional<double> least;
  for (const Group& group : groups_with("cpu", root)) {
    std::optional<int64_t> quota, period;
    if (group.version == 2) {  // "150000 100000" or "max 100000"
      const std::vector<std::string> words = words_of(group.folder / "cpu.max");
      if (words.size() >= 2) quota = integer(words[0]), period = integer(words[1]);
    } else {  // -1 when unlimited
      quota = integer_in(group.folder / "cpu.cfs_quota_us");
      period = integer_in(group.folder / "cpu.cfs_period_us");
    }
    if (!quota || !period || *quota <= 0 || *period <= 0) continue;
    const double cpus = static_cast<double>(*quota) / static_cast<double>(*period);
    least = std::min(least.value_or(cpus), cpus);
  }
  return least;
}

int64_t total_memory(const fs::path& root) { return 1024 * value_after(root / "proc/meminfo", "MemTotal:").value_or(0); }

int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{1024} * usage.ru_maxrss;
}

int64_t free_memory(const fs::path& root) {
  int64_t free = 1024 * value_after(root / "proc/meminfo", "MemAvailable:").value_or(0);
  for (const auto& [folder, version] : groups_with("memory", root)) {
    // An unlimited group says "max" (version 2) or a number near 2^63 (version 1), which never is the least.
    const auto limit = integer_in(folder / (version == 2 ? "memory.max" : "memory.limit_in_bytes"));
    const auto used = integer_in(folder / (version == 2 ? "memory.current" : "memory.usage_in_bytes"));
    if (!limit || !used) continue;
    const int64_t cache = value_after(folder / "memory.stat", version == 2 ? "inactive_file" : "total_inactive_file").value_or(0);
    free = std::min(free, std::max<int64_t>(0, *limit - std::max<int64_t>(0, *used - cache)));
  }
  return free;
}

int64_t memory_share(int64_t free_bytes, int ranks) { return free_bytes / 5 * 4 / std::max(1, ranks); }

std::vector<int> thread_shares(const std::vector<std::vector<int>>& cpus, std::optional<double> quota) {
  std::vector<int> users;  // of each CPU
  for (const std::vector<int>& own : cpus)
    for (int cpu : own) {
      users.resize(std::max(users.size(), static_cast<size_t>(cpu) + 1));
      ++users[static_cast<size_t>(cpu)];
    }
  std::vector<int> shares;
  for (const std::vector<int>& own : cpus) {
    double share = 0;
    for (int cpu : own) share += 1.0 / users[static_cast<size_t>(cpu)];
    if (quota) share = std::min(share, *quota / static_cast<double>(cpus.size()));
    shares.push_back(std::max(1, static_cast<int>(share + 1e-6)));
  }
  return shares;
}

std::optional<std::string> environment_variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::optional<std::string>(value) : std::nullopt;
}

Allotment slurm_allotment(const Variable& variable) {
  const auto number = [&](const char* name) -> std::optional<int64_t> {
    const std::optional<std::string> value = variable(name);
    const std::optional<int64_t> count = value ? integer(*value) : std::nullopt;
    return count && *count > 0 ? count : std::nullopt;  // a memory of 0 is all of the host's
  };
  Allotment allotment;
  if (!variable("SLURM_JOB_ID")) return allotment;
  allotment.cpus = number("SLURM_CPUS_ON_NODE");
  allotment.cpus_per_rank = number("SLURM_CPUS_PER_TASK");
  constexpr int64_t kMiB = int64_t{1} << 20;
  if (const auto node = number("SLURM_MEM_PER_NODE")) {
    allotment.memory = *node * kMiB;
  } else if (const auto each = number("SLURM_MEM_PER_CPU"); each && allotment.cpus) {
    allotment.memory = *each * *allotment.cpus * kMiB;
  } else if (const auto gpu = number("SLURM_MEM_PER_GPU"), gpus = number("SLURM_GPUS_ON_NODE"); gpu && gpus) {
    allotment.memory = *gpu * *gpus * kMiB;
  }
  return allotment;
}

std::vector<int> cpus_near(const std::string& pci_address, const fs::path& root) {
  const std::vector<std::string> words = words_of(root / "sys/bus/pci/devices" / (pci_address + ".0") / "local_cpulist");  // "0-15,32-47"
  std::vector<int> cpus;
  std::istringstream ranges(words.empty() ? "" : words.front());
  for (std::string range; std::getline(ranges, range, ',');) {
    const size_t dash = range.find('-');
    const auto first = integer(range.substr(0, dash)), last = dash == std::string::npos ? first : integer(range.substr(dash + 1));
    if (!first || !last || *first < 0 || *last > std::numeric_limits<int>::max()) return {};
    for (int64_t cpu = *first; cpu <= *last; ++cpu) cpus.push_back(static_cast<int>(cpu));
  }
  return cpus;
}

std::vector<std::vector<int>> lists_of_host(const comm::Communicator& communicator, const std::vector<int>& own) {
  using comm::check;
  MPI_Comm host = MPI_COMM_NULL;
  check(MPI_Comm_split_type(communicator.handle(), MPI_COMM_TYPE_SHARED, communicator.rank(), MPI_INFO_NULL, &host), "MPI_Comm_split_type");
  const int own_count = static_cast<int>(own.size());
  std::vector<int> counts(static_cast<size_t>(communicator.local_size()));
  check(MPI_Allgather(&own_count, 1, MPI_INT, counts.data(), 1, MPI_INT, host), "MPI_Allgather");
  std::vector<int> begins(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), begins.begin(), 0);
  std::vector<int> all(static_cast<size_t>(begins.back() + counts.back()));
  check(MPI_Allgatherv(own.data(), own_count, MPI_INT, all.data(), counts.data(), begins.data(), MPI_INT, host), "MPI_Allgatherv");
  check(MPI_Comm_free(&host), "MPI_Comm_free");
  std::vector<std::vector<int>> lists;
  for (size_t r = 0; r < counts.size(); ++r) lists.emplace_back(all.begin() + begins[r], all.begin() + begins[r] + counts[r]);
  return lists;
}

std::vector<std::vector<int>> cpus_of_host(const comm::Communicator& communicator) { return lists_of_host(communicator, available_cpus()); }

Share share_of_host(const comm::Communicator& communicator, const Allotment& allotment) {
  using comm::check;
  const std::vector<std::vector<int>> cpus = cpus_of_host(communicator);
  std::optional<double> quota = cpu_quota();
  if (allotment.cpus) quota = std::min(quota.value_or(HUGE_VAL), static_cast<double>(*allotment.cpus));
  int64_t threads = thread_shares(cpus, quota)[static_cast<size_t>(communicator.local_rank())];
  threads = std::min(threads, allotment.cpus_per_rank.value_or(threads));
  // All ranks measured before any of them allocates: the least of their readings is for all.
  int64_t free = free_memory();
  free = std::min(free, allotment.memory.value_or(free));
  MPI_Comm host = MPI_COMM_NULL;
  check(MPI_Comm_split_type(communicator.handle(), MPI_COMM_TYPE_SHARED, communicator.rank(), MPI_INFO_NULL, &host), "MPI_Comm_split_type");
  check(MPI_Allreduce(MPI_IN_PLACE, &free, 1, MPI_INT64_T, MPI_MIN, host), "MPI_Allreduce");
  check(MPI_Comm_free(&host), "MPI_Comm_free");
  return {.threads = static_cast<int>(threads), .memory = memory_share(free, communicator.local_size())};
}

std::string describe_host(const fs::path& root) {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  std::string model = "unknown CPU";
  std::set<std::string> sockets;
  int64_t cpus = 0;
  std::ifstream stream(root / "proc/cpuinfo");
  for (std::string line; std::getline(stream, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string value = colon + 2 <= line.size() ? line.substr(colon + 2) : "";
    if (line.starts_with("processor")) ++cpus;
    if (line.starts_with("model name")) model = value;
    if (line.starts_with("physical id")) sockets.insert(value);
  }
  const size_t socket_count = std::max<size_t>(1, sockets.size());
  constexpr double kGiB = 1 << 30;
  return fmt::format("{}: {}, {} socket{}, {} CPUs ({} for this process), {:.1f} of {:.1f} GiB free", name, model, socket_count,
                     socket_count == 1 ? "" : "s", cpus, available_cpus().size(), static_cast<double>(free_memory(root)) / kGiB,
                     static_cast<double>(total_memory(root)) / kGiB);
}

std::optional<Problem> lonely_rank(int mpi_size, const Variable& variable) {
  if (mpi_size != 1) return std::nullopt;
  struct Launcher {
    const char* size;
    const char* name;
    const char* mend;
  };
  // The first one that is set decides: it is the nearest launcher. (mpirun inside a Slurm job starts its helpers with srun, whose step
  // size is the number of hosts; SLURM_NTASKS is not asked because a batch script itself, which may well run `inspect`, has it.)
  static constexpr Launcher kLaunchers[] = {
      {"OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun",
       "start it with the mpirun of the MPI library it was built with (longspan --version names it)"},
      {"PMI_SIZE", "an mpiexec or srun that speaks PMI",
       "start it with the mpirun of the MPI library it was built with, or with `srun --mpi=pmix` (`srun --mpi=list` shows what there is)"},
      {"SLURM_STEP_NUM_TASKS", "srun", "use `srun --mpi=pmix` (`srun --mpi=list` shows what there is), or mpirun inside the allocation"},
  };
  for (const Launcher& launcher : kLaunchers) {
    const std::optional<std::string> value = variable(launcher.size);
    if (!value) continue;
    const std::optional<int64_t> size = integer(*value);
    if (!size || *size <= 1) return std::nullopt;
    return Problem{
        .code = ExitCode::environment,
        .what = fmt::format("every process believes to be the only rank: {} does not fit this program's MPI library", launcher.name),
        .seen = "1 rank in MPI_COMM_WORLD",
        .expected = fmt::format("{} ranks", *size),
        .from = fmt::format("{}={}", launcher.size, *value),
        .mend = launcher.mend};
  }
  return std::nullopt;
}

}  // namespace longspan::launch
