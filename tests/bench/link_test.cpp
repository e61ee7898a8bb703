#include "bench/link.hpp"

#include <gtest/gtest.h>

#include <map>

#include "bench/row_link.hpp"
#include "kernels/cpu/device.hpp"

namespace longspan::bench {
namespace {

TEST(Link, NeighboursAreNeighboursOfEachOther) {
  const std::vector<std::vector<int>> layouts{
      {0}, {0, 0}, {0, 1}, {0, 0, 2, 2}, {0, 0, 0, 3, 3}, {0, 1, 0, 1, 0, 1, 6}, {0, 0, 2, 2, 4, 4}};
  for (const std::vector<int>& hosts : layouts) {
    std::map<int, int> ranks_of_host;
    for (int host : hosts) ++ranks_of_host[host];
    int fewest = static_cast<int>(hosts.size());
    for (const auto& [host, count] : ranks_of_host) fewest = std::min(fewest, count);
    int crossing = 0;
    for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank) {
      const auto host = [&](int r) { return hosts[static_cast<size_t>(r)]; };
      const Neighbours within = neighbours_within_host(hosts, rank), across = neighbours_across_hosts(hosts, rank);
      EXPECT_EQ(within.to >= 0, ranks_of_host[host(rank)] > 1);
      EXPECT_EQ(within.to >= 0, within.from >= 0);
      if (within.to >= 0) {
        EXPECT_EQ(host(within.to), host(rank));
        EXPECT_NE(within.to, rank);
        EXPECT_EQ(neighbours_within_host(hosts, within.to).from, rank);
      }
      EXPECT_EQ(across.to >= 0, across.from >= 0);
      if (across.to >= 0) {
        ++crossing;
        EXPECT_NE(host(across.to), host(rank));
        EXPECT_EQ(neighbours_across_hosts(hosts, across.to).from, rank);
      }
    }
    EXPECT_EQ(crossing, ranks_of_host.size() < 2 ? 0 : fewest * static_cast<int>(ranks_of_host.size()));
  }
}

TEST(Link, MeasuresWhereThereIsAWay) {
  const comm::Communicator ranks(MPI_COMM_WORLD);
  kernels::cpu::CpuDevice device(1);
  comm::MpiTransport transport;
  const std::vector<int> hosts(static_cast<size_t>(ranks.size()), 0);
  const LinkSpeed speed = measure_link(ranks, neighbours_within_host(hosts, ranks.rank()), device, transport, 1 << 16, 3);
  EXPECT_EQ(speed.bytes_per_second > 0, ranks.size() > 1);
  EXPECT_EQ(speed.latency > 0, ranks.size() > 1);
  const LinkSpeed none = measure_link(ranks, {}, device, transport, 1 << 16, 3);
  EXPECT_EQ(none.bytes_per_second, 0);
  EXPECT_EQ(ranks.all_gather(speed.bytes_per_second), std::vector<double>(static_cast<size_t>(ranks.size()), speed.bytes_per_second));
}

TEST(Link, Median) {
  EXPECT_EQ(median({}), 0);
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({5, 1, 3}), 3);
  EXPECT_EQ(median({4, 1, 2, 100}), 3);
}

TEST(Link, SlowdownOfRowsBothWaysAtOnce) {
  EXPECT_NEAR((RowLinkRates{50, 50, 100 / 1.2}.slowdown()), 1.2, 1e-12);
  EXPECT_NEAR((RowLinkRates{50, 25, 50}.slowdown()), 1, 1e-12);          // the slower way takes as long as by itself
  EXPECT_NEAR((RowLinkRates{50, 25, 2 / 0.05}.slowdown()), 1.5, 1e-12);  // 0.05 s, 0.02 of them alone
  EXPECT_EQ((RowLinkRates{50, 50, 200}.slowdown()), 1);
  EXPECT_EQ((RowLinkRates{50, 50, 10}.slowdown()), 2);
  EXPECT_EQ((RowLinkRates{50, 0, 50}.slowdown()), 0);
}

}  // namespace
}  // namespace longspan::bench
