#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>

#include "launch/binding.hpp"

namespace longspan::launch {
namespace {

TEST(Share, RanksOfAHostSplitItsMemoryEqually) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const Share share = share_of_host(world);
  EXPECT_GT(share.memory, 0);
  EXPECT_EQ(world.max(share.memory), world.min(share.memory));
  EXPECT_LE(world.sum(share.memory), total_memory() / 5 * 4);
}

TEST(Share, RanksOfAHostSplitItsCpus) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const Share share = share_of_host(world);
  EXPECT_GE(share.threads, 1);
  const auto cpus = static_cast<int64_t>(available_cpus().size());
  // Not bound in the tests: all ranks share the same CPUs, and each has one thread at least.
  EXPECT_LE(world.sum(share.threads), std::max<int64_t>(cpus, world.size()));
}

TEST(Share, NoRankIsLonelyUnderItsOwnLauncher) {
  const comm::Communicator world(MPI_COMM_WORLD);
  EXPECT_FALSE(lonely_rank(world.size()));
}

TEST(Share, SlurmsAllotmentIsALimitEvenWhenNothingEnforcesIt) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const Share share = share_of_host(world, {.cpus = 1, .memory = int64_t{100} << 20});
  EXPECT_EQ(share.threads, 1);
  EXPECT_EQ(share.memory, memory_share(int64_t{100} << 20, world.local_size()));
  EXPECT_EQ(share_of_host(world, {.cpus_per_rank = 1}).threads, 1);
}

// Puts this thread's CPUs back.
class KeptAffinity {
 public:
  KeptAffinity() { sched_getaffinity(0, sizeof set_, &set_); }
  ~KeptAffinity() { sched_setaffinity(0, sizeof set_, &set_); }

 private:
  cpu_set_t set_;
};

TEST(Bind, RanksGetPartsOfTheirOwnWhileThereAreEnoughCpus) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const KeptAffinity kept;
  const Machine machine;
  const std::vector<int> before = available_cpus();
  const Bound bound = bind_ranks(world, machine, {});
  if (world.local_size() == 1) {
    EXPECT_EQ(available_cpus(), before);
  } else if (static_cast<int>(before.size()) < world.local_size()) {
    EXPECT_EQ(bound, Bound::no);
    EXPECT_EQ(available_cpus(), before);
  } else {
    ASSERT_EQ(bound, Bound::by_longspan);
    std::vector<int> all;
    for (const std::vector<int>& cpus : cpus_of_host(world)) {
      EXPECT_FALSE(cpus.empty());
      all.insert(all.end(), cpus.begin(), cpus.end());
    }
    std::sort(all.begin(), all.end());
    EXPECT_EQ(all, before) << "each CPU once";
    EXPECT_EQ(bind_ranks(world, machine, {}), Bound::by_launcher) << "what is bound is left alone";
  }
}

TEST(Bind, ARankGetsTheCpusNearItsDevice) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const Machine machine;
  const std::vector<std::vector<int>> parts = split_cores(machine.cores(available_cpus()), world.local_size());
  if (world.local_size() < 2 || parts.empty()) GTEST_SKIP() << "needs two ranks, and a CPU for each";
  const KeptAffinity kept;
  const std::vector<int>& near = parts[parts.size() - 1 - static_cast<size_t>(world.local_rank())];  // the first rank's are the last ones
  ASSERT_EQ(bind_ranks(world, machine, {}, near), Bound::by_longspan);
  EXPECT_EQ(available_cpus(), near);
}

TEST(Bind, OneThatTheLauncherHasBoundIsLeftAlone) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const std::vector<int> open = available_cpus();
  if (open.size() < 2 || world.local_size() < 2) GTEST_SKIP() << "needs two CPUs and two ranks";
  const KeptAffinity kept;
  const Machine machine;
  ASSERT_TRUE(machine.bind({open[static_cast<size_t>(world.local_rank()) % 2]}));
  const std::vector<int> before = available_cpus();
  EXPECT_EQ(bind_ranks(world, machine, {}), Bound::by_launcher);
  EXPECT_EQ(available_cpus(), before);
}

TEST(Bind, NobodyTakesCpusOfAHostThatIsSharedWithOtherJobs) {
  const comm::Communicator world(MPI_COMM_WORLD);
  if (available_cpus().size() < 2 || world.local_size() < 2) GTEST_SKIP() << "needs two CPUs and two ranks";
  const std::vector<int> before = available_cpus();
  EXPECT_EQ(bind_ranks(world, Machine(), {.cpus = 1}), Bound::no);
  EXPECT_EQ(available_cpus(), before);
}

}  // namespace
}  // namespace longspan::launch
