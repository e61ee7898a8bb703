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
  int64_t take(int head, int64_t block) {
    std::vector<int32_t> slots;
    pool_.take(head, {block, block + 1}, slots);
    return slots.at(0);
  }
  KeyPool pool_{{{10, 12}, {20, 23}}, kBlocks, kHeads, kFetched, 64, false, device_};
};

TEST_F(KeyPoolTest, OwnUnitsLieByHeadThenBlock) {
  int64_t slot = 0;
  for (int head = 0; head < kHeads; ++head)
    for (int64_t block : {10, 11, 20, 21, 22}) EXPECT_EQ(pool_.slot(head, block), slot++);
  EXPECT_EQ(pool_.slot(0, 12), -1);
  EXPECT_EQ(pool_.bytes(), (slot + kFetched) * 64);
}

TEST_F(KeyPoolTest, OwnUnitsMayLieInRows) {
  const plan::Blocks table(Documents::from_lengths({128 * 10 + 5, 128 * 188}));  // block 10 has 5 rows
  std::vector<int32_t> in_pool, in_rows, again;
  const Intervals blocks{{9, 13}, {22, 24}};
  take(1, 12);
  pool_.slots_of(blocks, in_pool);
  const std::byte k{}, v{};
  pool_.leave_own_in_rows({&k, &v}, table);
  EXPECT_EQ(pool_.in_rows().rows, 5 + 4 * 128);
  pool_.slots_of(blocks, in_rows);
  // Of blocks 9 … 12, 22 and 23; rows 0, 5 and 389 are the first ones of own blocks.
  const auto row = [](int64_t first) { return kernels::KeysInRows::slot(first); };
  const int32_t fetched = in_pool.at(9);
  EXPECT_GE(fetched, 5 * kHeads);
  EXPECT_EQ(in_rows, (std::vector<int32_t>{-1, row(0), row(5), -1, row(389), -1,       //
                                           -1, row(0), row(5), fetched, row(389), -1,  //
                                           -1, row(0), row(5), -1, row(389), -1}));
  EXPECT_EQ(pool_.slot(0, 10), 0);  // where it goes to be sent
  pool_.leave_own_in_rows({}, table);
  EXPECT_EQ(pool_.in_rows().rows, 0);
  pool_.slots_of(blocks, again);
  EXPECT_EQ(again, in_pool);
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
      EXPECT_EQ(take(head, block), *free.begin());
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
  const int64_t oldest = take(1, 50), older = take(1, 50), newer = take(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), oldest);
  pool_.release(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), older);
  EXPECT_EQ(take(2, 50), oldest);
  pool_.release(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), newer);
  pool_.release(1, 50);
  EXPECT_EQ(pool_.slot(1, 50), -1);
}

// Of two runs the second takes what the first one had; not if something of it is in use, or one of the units is here.
TEST_F(KeyPoolTest, SlotsAreTakenAgain) {
  std::vector<int32_t> slots;
  pool_.take(1, {50, 53}, slots);
  ASSERT_EQ(slots.size(), 3u);
  const std::vector<int64_t> units{pool_.unit(1, 50), pool_.unit(1, 51), pool_.unit(1, 52)};
  EXPECT_FALSE(pool_.take_again(units, slots)) << "they are here";
  for (int64_t block = 50; block < 53; ++block) pool_.release(1, block);
  EXPECT_EQ(take(0, 70), slots[0]);
  EXPECT_FALSE(pool_.take_again(units, slots)) << "another unit has one of the slots";
  EXPECT_EQ(pool_.slot(1, 51), -1) << "nothing was taken";
  pool_.release(0, 70);
  EXPECT_TRUE(pool_.take_again(units, slots));
  for (int64_t block = 50; block < 53; ++block) EXPECT_EQ(pool_.slot(1, block), slots[static_cast<size_t>(block - 50)]);
  EXPECT_EQ(take(0, 70), slots[2] + 1) << "the lowest free one";
}

}  // namespace
}  // namespace longspan::engine
