#include "kernels/cpu/tile_map.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
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
        for (int panel_rows : {8, 16, 32}) {
          for (int first_row : {0, 32, 96}) {
            if (first_row >= rows) continue;
            cpu::TileMap map;
            cpu::map_tile(tile, masks, first_row, rows, keys, panel_rows, map);
            ASSERT_EQ(map.panels, (rows + panel_rows - 1) / panel_rows);
            bool all_full = true;
            std::array<bool, kTile> used{};
            for (int p = 0; p < map.panels; ++p) {
              const cpu::PanelMap& panel = map.panel[static_cast<size_t>(p)];
              std::array<bool, kTile> live{};
              bool full = true;
              const auto is_set = [&](int key, int row) { return row >= first_row && row < rows && is_allowed(tile, masks, row, key); };
              for (int key = 0; key < keys; ++key)
                for (int row = p * panel_rows; row < (p + 1) * panel_rows; ++row)
                  if (is_set(key, row))
                    for (int k = key / 16 * 16; k < std::min(key / 16 * 16 + 16, keys); ++k)
                      live[static_cast<size_t>(k)] = used[static_cast<size_t>(k)] = true;
              for (int key = 0; key < kTile; ++key) {
                ASSERT_EQ(cpu::is_live(panel.live, key), live[static_cast<size_t>(key)])
                    << p << " " << key << " of " << rows << "×" << keys;
                if (!live[static_cast<size_t>(key)]) continue;
                for (int r = 0; r < std::min(panel_rows, rows - p * panel_rows); ++r) full &= is_set(key, p * panel_rows + r);
              }
              ASSERT_EQ(panel.full, full);
              all_full &= full;
              for (int key = 0; key < keys && !full; ++key)
                for (int r = 0; live[static_cast<size_t>(key)] && r < std::min(panel_rows, rows - p * panel_rows); ++r)
                  ASSERT_EQ(panel.rows[static_cast<size_t>(key)] >> r & 1, is_set(key, p * panel_rows + r)) << p << " " << key << " " << r;
            }
            ASSERT_EQ(map.full, all_full);
            for (int key = 0; key < kTile; ++key) ASSERT_EQ(cpu::is_live(map.live, key), used[static_cast<size_t>(key)]);
          }
        }
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
