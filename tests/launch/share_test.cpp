#include <gtest/gtest.h>

#include "launch/topology.hpp"

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

}  // namespace
}  // namespace longspan::launch
