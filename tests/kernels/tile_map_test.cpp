#include "kernels/cpu/tile_map.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <vector>

#include "problem.hpp"

namespace longspan::kernels {
namespace {

TEST(TileMap, AgreesWithTheTilePairByPair) {
  std::mt19937 random(1);
  std::vector<MaskBits> masks(1);
  for (uint64_t& word : masks[0].words) word = random() % 3 ? 0 : (uint64_t{random()} << 32 | random()) & random();
  const auto check = [&](const Tile& tile) {
    for (int rows : {1, 7, 64, 100, 128}) {
      for (int keys : {1, 15, 16, 17, 64, 65, 127, 128}) {
        const cpu::TileMap map = cpu::map_tile(tile, masks, rows, keys);
        ASSERT_EQ(map.keys, keys);
        std::array<uint8_t, cpu::kRowBlocks> live{};
        uint8_t used = 0;
        for (int row = 0; row < kTile; ++row) {
          for (int key = 0; key < kTile; ++key) {
            const bool expected = row < rows && key < keys && is_allowed(tile, masks, row, key);
            ASSERT_EQ(map.words[row][key / 64] >> (key % 64) & 1, expected) << row << " " << key << " of " << rows << "×" << keys;
            if (expected) live[row / 8] |= 1 << key / 16;
          }
          used |= live[row / 8];
        }
        ASSERT_EQ(map.live, live);
        ASSERT_EQ(map.used, used);
      }
    }
  };
  check(Tile::full_run(0, 3));
  constexpr int kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();
  for (auto [lo, hi] : std::vector<std::pair<int, int>>{{0, 0},
                                                        {0, kHighest},
                                                        {kLowest, 0},
                                                        {kLowest, kHighest},
                                                        {-5, 9},
                                                        {5, -5},
                                                        {127, 127},
                                                        {-127, -127},
                                                        {128, kHighest},
                                                        {60, 70},
                                                        {kHighest, kHighest},
                                                        {kLowest, kLowest}}) {
    Tile tile;
    tile.form = Tile::Form::band;
    tile.band = {lo, hi};
    check(tile);
  }
  for (uint64_t map :
       {uint64_t{0}, ~uint64_t{0}, uint64_t{1}, uint64_t{1} << 63, uint64_t{0x8040201008040201}, uint64_t{0x00ff00810042003c}}) {
    Tile tile;
    tile.form = Tile::Form::subtiles;
    tile.subtiles = map;
    check(tile);
  }
  Tile tile;
  tile.form = Tile::Form::bits;
  tile.mask = 0;
  check(tile);
}

}  // namespace
}  // namespace longspan::kernels
