// The queue of a step for the CUDA kernels: which items there are and in which order. Needs no GPU.
#include "kernels/cuda/queue.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

namespace longspan::kernels::cuda {
namespace {

struct Lists {
  std::vector<Work> work;
  std::vector<int32_t> heads;
  std::vector<Tile> tiles{Tile::full_run(0, 8), Tile::full_run(8, 8)};
  Step step(int kv_heads, int head_dim, int64_t resident) const {
    Step step;
    step.kv_heads = kv_heads, step.head_dim = head_dim, step.resident = resident;
    step.work = work, step.head_lists = heads, step.tiles = tiles;
    return step;
  }
};

// Documents of random lengths, some of less than a half; with some blocks missing, as in a step in which they have no keys; two query heads
// a KV head; shuffled, as by cost.
Lists random_lists(int kv_heads, uint64_t seed) {
  std::mt19937_64 random(seed);
  Lists lists;
  lists.heads.resize(static_cast<size_t>(2 * kv_heads));
  std::iota(lists.heads.begin(), lists.heads.end(), 0);
  int64_t row = 0;
  for (int document = 0; document < 9; ++document)
    for (int64_t left = 1 + static_cast<int64_t>(random() % 900); left > 0;) {
      const auto rows = static_cast<int32_t>(std::min<int64_t>(left, kTile));
      for (int kv = 0; kv < kv_heads; ++kv)
        if (random() % 5)
          lists.work.push_back(
              {.q_row = row, .state_row = row, .rows = rows, .kv_head = kv, .tile_count = 1, .first_head = 2 * kv, .head_count = 2});
      row += rows, left -= rows;
    }
  std::shuffle(lists.work.begin(), lists.work.end(), random);
  return lists;
}

struct Half {
  const Work* work;
  int half;
};
std::vector<Half> halves_of(const Step& step, const Item& item, int at_a_time) {
  std::vector<Half> all;
  const auto add = [&](int32_t which, int from) {
    const Work& work = step.work[static_cast<size_t>(which)];
    for (int half = from; half < (work.rows > 64 ? 2 : 1) && static_cast<int>(all.size()) < at_a_time; ++half) all.push_back({&work, half});
  };
  add(item.work, item.from_half);
  if (item.second >= 0) add(item.second, 0);
  return all;
}

TEST(Queue, EveryRowOfEveryHeadIsTakenOnce) {
  for (int at_a_time : {2, 3})
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const Lists lists = random_lists(3, seed);
      const Step step = lists.step(3, 64, 1 << 12);
      std::map<std::tuple<const Work*, int, int>, int> taken;
      for (const Item& item : queue(step, at_a_time))
        for (const Half& half : halves_of(step, item, at_a_time)) ++taken[{half.work, half.half, item.head}];
      size_t expected = 0;
      for (const Work& work : step.work) expected += 2 * (work.rows > 64 ? 2 : 1);
      EXPECT_EQ(taken.size(), expected) << at_a_time << " halves, seed " << seed;
      for (const auto& [half, times] : taken) EXPECT_EQ(times, 1);
    }
}

TEST(Queue, HalvesOfAnItemFollowEachOtherInOneKvHead) {
  size_t of_three = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Lists lists = random_lists(2, seed);
    const Step step = lists.step(2, 64, 1 << 12);
    for (const Item& item : queue(step, 3)) {
      const std::vector<Half> halves = halves_of(step, item, 3);
      of_three += halves.size() == 3;
      for (size_t h = 0; h < halves.size(); ++h) {
        EXPECT_EQ(halves[h].work->kv_head, item.head / 2);
        if (h > 0) {
          EXPECT_EQ(halves[h].work->q_row + 64 * halves[h].half,
                    halves[h - 1].work->q_row + std::min(64 * (halves[h - 1].half + 1), halves[h - 1].work->rows));
        }
      }
    }
  }
  EXPECT_GT(of_three, 100u);
}

TEST(Queue, FourBlocksMakeThreeItems) {
  Lists lists;
  lists.heads = {0};
  for (int64_t block : {3, 2, 1, 0})  // the dearest is the last one
    lists.work.push_back({.q_row = block * kTile, .state_row = block * kTile, .rows = kTile, .tile_count = 1, .head_count = 1});
  // {a0 a1 b0}, {b1 c0 c1}, {d0 d1}: the item that holds the dearest Work comes first.
  const std::vector<Item> items = {{.work = 0}, {.work = 2, .second = 1, .from_half = 1}, {.work = 3, .second = 2}};
  EXPECT_EQ(queue(lists.step(1, 64, 4), 3), items);
}

// Two blocks of rows whose keys are two segments; states lie as the engine has them, those of a block together.
TEST(Queue, PiecesOfALongRowGoTogetherBySegment) {
  Lists lists;
  lists.heads = {0};
  for (int64_t block : {0, 1})
    for (int64_t segment : {0, 1})
      lists.work.push_back({.q_row = block * kTile,
                            .state_row = (2 * block + segment) * kTile,
                            .rows = kTile,
                            .first_tile = segment,
                            .tile_count = 1,
                            .head_count = 1});
  for (const Item& item : queue(lists.step(1, 64, 16), 3)) EXPECT_EQ(item.second, -1);
  std::erase_if(lists.work, [](const Work& work) { return work.first_tile == 0; });  // a step with one segment
  const std::vector<Item> expected = {{.work = 0, .second = 1}, {.work = 1, .from_half = 1}};
  EXPECT_EQ(queue(lists.step(1, 64, 16), 3), expected);
}

TEST(Queue, ThreeHalvesForRunsOfHeadDim64Only) {
  Lists lists;
  lists.tiles = {Tile::full_run(0, 15), Tile()};
  EXPECT_EQ(halves_at_a_time(lists.step(1, 64, 16)), 3);
  EXPECT_EQ(halves_at_a_time(lists.step(1, 128, 16)), 2);
  lists.tiles.front().count = 14;
  EXPECT_EQ(halves_at_a_time(lists.step(1, 64, 16)), 2);
}

}  // namespace
}  // namespace longspan::kernels::cuda
