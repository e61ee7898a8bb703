#include "engine/key_pool.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "kernels/cpu/device.hpp"

namespace longspan::engine {
namespace {

constexpr int kHeads = 3;
constexpr int64_t kBlocks = 200, kFetched = 150;

class KeyPoolTest : public ::testing::Test {
 protected:
  kernels::cpu::CpuDevice device_{1};
  KeyPool pool_{{{10, 12}, {20, 23}}, kBlocks, kHeads, kFetched, 64, device_};
};

TEST_F(KeyPoolTest, OwnUnitsLieByHeadThenBlock) {
  int64_t slot = 0;
  for (int head = 0; head < kHeads; ++head)
    for (int64_t block : {10, 11, 20, 21, 22}) EXPECT_EQ(pool_.slot(head, block), slot++);
  EXPECT_EQ(pool_.slot(0, 12), -1);
  EXPECT_EQ(pool_.bytes(), (slot + kFetched) * 64);
}

TEST_F(KeyPoolTest, TheLowestFreeSlotIsTaken) {
  std::set<int64_t> free;
  for (int64_t slot = 5 * kHeads; slot < 5 * kHeads + kFetched; ++slot) free.insert(slot);
  std::vector<std::pair<int, int64_t>> here;
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    if (!free.empty() && (here.empty() || random() % 5 < 3)) {
      const auto head = static_cast<int>(random() % kHeads);
      const auto block = static_cast<int64_t>(30 + random() % 170);
      if (pool_.slot(head, block) >= 0) continue;
      EXPECT_EQ(pool_.take(head, block), *free.begin());
      EXPECT_EQ(pool_.slot(head, block), *free.begin());
      free.erase(free.begin());
      here.emplace_back(head, block);
    } else {
      std::swap(here[random() % here.size()], here.back());
      const auto [head, block] = here.back();
      here.pop_back();
      free.insert(pool_.slot(head, block));
      pool_.release(head, block);
      EXPECT_EQ(pool_.slot(head, block), -1);
    }
  }
}

TEST_F(KeyPoolTest, AUnitIsHereMoreThanOnceUntilTheOlderGo) {
  const int64_t oldest = pool_.take(1, 50), older = pool_.take(1, 50), newer = pool_.take(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), oldest);
  pool_.release(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), older);
  EXPECT_EQ(pool_.take(2, 50), oldest);
  pool_.release(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), newer);
  pool_.release(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), -1);
}

}  // namespace
}  // namespace longspan::engine
