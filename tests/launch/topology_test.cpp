#include "launch/topology.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <thread>

namespace longspan::launch {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

// A host made of files: /proc and /sys/fs/cgroup as a kernel would show them.
class FakeHost : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("longspan-launch-" + std::to_string(getpid()));
    write("proc/meminfo", "MemTotal:       67108864 kB\nMemFree:         1048576 kB\nMemAvailable:   41943040 kB\n");  // 64 and 40 GiB
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const fs::path& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }

  fs::path root_;
};

TEST_F(FakeHost, WithoutControlGroupsWhatTheKernelSays) {
  EXPECT_EQ(total_memory(root_), 64 * kGiB);
  EXPECT_EQ(free_memory(root_), 40 * kGiB);
  EXPECT_FALSE(cpu_quota(root_));
}

TEST_F(FakeHost, TheCpusNearADevice) {
  write("sys/bus/pci/devices/0000:3b:00.0/local_cpulist", "2-4,7,32-33\n");
  EXPECT_THAT(cpus_near("0000:3b:00", root_), testing::ElementsAre(2, 3, 4, 7, 32, 33));
  EXPECT_THAT(cpus_near("0000:af:00", root_), testing::IsEmpty()) << "a device that is not there";
  write("sys/bus/pci/devices/0000:af:00.0/local_cpulist", "\n");
  EXPECT_THAT(cpus_near("0000:af:00", root_), testing::IsEmpty());
  write("sys/bus/pci/devices/0000:af:00.0/local_cpulist", "0-x\n");
  EXPECT_THAT(cpus_near("0000:af:00", root_), testing::IsEmpty());
}

TEST_F(FakeHost, WithoutProcNothing) {
  EXPECT_EQ(free_memory(root_ / "nowhere"), 0);
  EXPECT_EQ(total_memory(root_ / "nowhere"), 0);
}

TEST_F(FakeHost, Version2TheTightestGroupCounts) {
  write("proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  write("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n");
  write("sys/fs/cgroup/slurm/job_7/step_0/memory.current", "1000\n");
  write("sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000\n");
  EXPECT_EQ(free_memory(root_), 40 * kGiB);
  EXPECT_FALSE(cpu_quota(root_));

  // Its parent: 16 GiB, 6 used, 2 of them cache that can go.
  write("sys/fs/cgroup/slurm/job_7/memory.max", std::to_string(16 * kGiB));
  write("sys/fs/cgroup/slurm/job_7/memory.current", std::to_string(6 * kGiB));
  write("sys/fs/cgroup/slurm/job_7/memory.stat", "anon 17\ninactive_file " + std::to_string(2 * kGiB) + "\nactive_file 5\n");
  write("sys/fs/cgroup/slurm/job_7/cpu.max", "350000 100000\n");
  EXPECT_EQ(free_memory(root_), 12 * kGiB);
  EXPECT_EQ(cpu_quota(root_), 3.5);

  // Over the limit: nothing is left, not a negative number.
  write("sys/fs/cgroup/slurm/job_7/memory.current", std::to_string(20 * kGiB));
  EXPECT_EQ(free_memory(root_), 0);
}

TEST_F(FakeHost, Version2InAContainerThatSeesItsGroupAsTheRoot) {
  write("proc/self/cgroup", "0::/docker/0123456789abcdef\n");  // a path of the host, not there inside
  write("sys/fs/cgroup/memory.max", std::to_string(8 * kGiB));
  write("sys/fs/cgroup/memory.current", std::to_string(kGiB));
  write("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(free_memory(root_), 7 * kGiB);
  EXPECT_EQ(cpu_quota(root_), 0.5);
}

TEST_F(FakeHost, Version1) {
  write("proc/self/cgroup", "5:cpuset:/\n4:memory:/job/7\n2:cpu,cpuacct:/job/7\n1:name=systemd:/x\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // unlimited
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(30 * kGiB));
  write("sys/fs/cgroup/memory/job/7/memory.limit_in_bytes", std::to_string(10 * kGiB));
  write("sys/fs/cgroup/memory/job/7/memory.usage_in_bytes", std::to_string(4 * kGiB));
  write("sys/fs/cgroup/memory/job/7/memory.stat", "inactive_file 1\ntotal_inactive_file " + std::to_string(kGiB) + "\n");
  write("sys/fs/cgroup/cpu/job/7/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/job/7/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(free_memory(root_), 7 * kGiB);
  EXPECT_FALSE(cpu_quota(root_));
  write("sys/fs/cgroup/cpu/job/7/cpu.cfs_quota_us", "200000\n");
  EXPECT_EQ(cpu_quota(root_), 2.0);
}

TEST_F(FakeHost, BrokenFilesAreNoLimits) {
  write("proc/self/cgroup", "nonsense\n0::/a\n::\n");
  write("sys/fs/cgroup/a/memory.max", "");
  write("sys/fs/cgroup/a/memory.current", "12x\n");
  write("sys/fs/cgroup/a/cpu.max", "100000\n");
  EXPECT_EQ(free_memory(root_), 40 * kGiB);
  EXPECT_FALSE(cpu_quota(root_));
}

TEST_F(FakeHost, IsDescribedInOneLine) {
  write("proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Fast CPU 9\nphysical id\t: 0\n\nprocessor\t: 1\nmodel name\t: Fast CPU 9\nphysical id\t: "
        "1\nflags\t:\n");
  const std::string line = describe_host(root_);
  EXPECT_THAT(line, HasSubstr(": Fast CPU 9, 2 sockets, 2 CPUs ("));
  EXPECT_THAT(line, HasSubstr("40.0 of 64.0 GiB free"));
  EXPECT_THAT(line, testing::Not(HasSubstr("\n")));
}

TEST(Memory, EightyPercentSharedAmongTheRanks) {
  EXPECT_EQ(memory_share(1000, 1), 800);
  EXPECT_EQ(memory_share(1000, 4), 200);
  EXPECT_EQ(memory_share(0, 4), 0);
  EXPECT_EQ(memory_share(int64_t{6} << 60, 1), (int64_t{6} << 60) / 5 * 4) << "without overflow";
  EXPECT_GT(free_memory(), 0);
  EXPECT_LE(free_memory(), total_memory());
  EXPECT_GT(peak_memory(), 1 << 20);
  EXPECT_LT(peak_memory(), total_memory());
}

TEST(Threads, CpusAreSharedByThoseWhoMayUseThem) {
  EXPECT_THAT(thread_shares({{0, 1}, {0, 1}, {0, 1}, {0, 1}}, std::nullopt), ElementsAre(1, 1, 1, 1));
  EXPECT_THAT(thread_shares({{0, 1, 2, 3}, {4, 5, 6, 7}}, std::nullopt), ElementsAre(4, 4));
  EXPECT_THAT(thread_shares({{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}}, 4.0), ElementsAre(2, 2));
  EXPECT_THAT(thread_shares({{0, 1, 2}, {0, 1, 2}, {0, 1, 2}}, std::nullopt), ElementsAre(1, 1, 1)) << "three thirds are one";
  EXPECT_THAT(thread_shares({{0, 1, 2, 3}, {0}}, std::nullopt), ElementsAre(3, 1));
  EXPECT_THAT(thread_shares({{0, 1, 2, 3}}, 0.5), ElementsAre(1));
}

TEST(Cpus, AreThoseOfTheAffinityMask) {
  const std::vector<int> before = available_cpus();
  ASSERT_FALSE(before.empty());
  std::thread([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(before.back(), &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    EXPECT_THAT(available_cpus(), ElementsAre(before.back()));
  }).join();
  EXPECT_EQ(available_cpus(), before);
}

std::optional<Problem> lonely(int size, const std::map<std::string, std::string>& environment) {
  return lonely_rank(size, [&](const char* name) -> std::optional<std::string> {
    const auto entry = environment.find(name);
    return entry == environment.end() ? std::nullopt : std::optional(entry->second);
  });
}

TEST(LonelyRank, IsNotSeenWhereAllIsWell) {
  EXPECT_FALSE(lonely(1, {}));
  EXPECT_FALSE(lonely(4, {{"OMPI_COMM_WORLD_SIZE", "4"}}));
  EXPECT_FALSE(lonely(1, {{"OMPI_COMM_WORLD_SIZE", "1"}}));
  EXPECT_FALSE(lonely(1, {{"SLURM_NTASKS", "64"}})) << "a command in a batch script";
  EXPECT_FALSE(lonely(1, {{"SLURM_STEP_NUM_TASKS", "3"}, {"OMPI_COMM_WORLD_SIZE", "1"}})) << "mpirun -n 1 on another host of a Slurm job";
  EXPECT_FALSE(lonely(1, {{"PMI_SIZE", "many"}}));
}

TEST(LonelyRank, IsAnErrorWithTheMendOfItsLauncher) {
  const auto slurm = lonely(1, {{"SLURM_STEP_NUM_TASKS", "64"}, {"SLURM_NTASKS", "64"}});
  ASSERT_TRUE(slurm);
  EXPECT_EQ(slurm->code, ExitCode::environment);
  EXPECT_EQ(slurm->expected, "64 ranks");
  EXPECT_EQ(slurm->from, "SLURM_STEP_NUM_TASKS=64");
  EXPECT_THAT(slurm->mend, HasSubstr("srun --mpi=pmix"));
  const auto mpirun = lonely(1, {{"OMPI_COMM_WORLD_SIZE", "4"}});
  ASSERT_TRUE(mpirun);
  EXPECT_THAT(mpirun->what, HasSubstr("mpirun"));
  EXPECT_THAT(mpirun->mend, HasSubstr("mpirun of the MPI library it was built with"));
  EXPECT_TRUE(lonely(1, {{"PMI_SIZE", "2"}}));
}

}  // namespace
}  // namespace longspan::launch
