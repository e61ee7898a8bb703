#include "comm/link_rate.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace longspan::comm {
namespace {

TEST(LinkRate, RanksOfAHostSendRound) {
  const Communicator world(MPI_COMM_WORLD);
  for (const int64_t bytes : {int64_t{1}, int64_t{100'001}, int64_t{3} << 20}) {
    const std::optional<LinkRate> rate = measure_link(world, Link::within_host, bytes);
    ASSERT_EQ(rate.has_value(), world.local_size() > 1);
    if (!rate) continue;
    EXPECT_GT(rate->latency, 0);
    EXPECT_GT(rate->bytes_per_second, 0);
    EXPECT_TRUE(rate->intact);
    EXPECT_EQ(rate->bytes_per_second_alone > 0, world.local_rank() == 0);
    ASSERT_FALSE(rate->by_size.empty());
    EXPECT_LE(rate->by_size.back().first, std::max<int64_t>(bytes, 1024));
    EXPECT_EQ(rate->by_size.back().second, rate->bytes_per_second);
  }
}

TEST(LinkRate, OneHostHasNoLinkToOthers) {
  const Communicator world(MPI_COMM_WORLD);
  if (world.hosts() > 1) GTEST_SKIP() << "more than one host";
  EXPECT_FALSE(measure_link(world, Link::across_hosts, 4096));
}

TEST(ClockOffset, IsNothingOnOneHost) {
  const Communicator world(MPI_COMM_WORLD);
  if (world.hosts() > 1) GTEST_SKIP() << "more than one host";
  EXPECT_EQ(clock_offset(world), 0);
}

}  // namespace
}  // namespace longspan::comm
