#include "launch/network_counters.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace longspan::launch {
namespace {

TEST(NetworkCounters, SumOfAllButTheLoopback) {
  const auto root = std::filesystem::temp_directory_path() / ("longspan-counters-" + std::to_string(getpid()));
  EXPECT_FALSE(network_bytes_sent(root));
  std::filesystem::create_directories(root / "proc/self/net");
  std::ofstream(root / "proc/self/net/dev")
      << "Inter-|   Receive                                                |  Transmit\n"
         " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
         "    lo:     800      10    0    0    0     0          0         0      800      10    0    0    0     0       0          0\n"
         "  eth0: 5000000    3000    0    0    0     0          0         0  7000000    4000    0    0    0     0       0          0\n"
         "ib0:1 2 3 4 5 6 7 8 90000000000 4 0 0 0 0 0 0\n";
  EXPECT_EQ(network_bytes_sent(root), 90'007'000'000);
  std::filesystem::remove_all(root);
}

TEST(NetworkCounters, ThisHostHasSome) {
  const auto before = network_bytes_sent();
  ASSERT_TRUE(before);
  EXPECT_GE(network_bytes_sent().value(), *before);
}

}  // namespace
}  // namespace longspan::launch
