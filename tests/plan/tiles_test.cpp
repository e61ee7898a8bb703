// Tile lists against the pattern's own oracle, pair by pair over the whole sequence.
#include "plan/tiles.hpp"

#include <gtest/gtest.h>

#include <random>

namespace longspan::plan {
namespace {

using kernels::Tile;

bool tile_allows(const Tile& tile, const MaskPool& masks, int64_t row, int64_t key) {
  switch (tile.form) {
    case Tile::Form::full:
      return true;
    case Tile::Form::band:
      return tile.band.lo <= row - key && row - key <= tile.band.hi;
    case Tile::Form::subtiles:
      return (tile.subtiles >> (8 * (row / 16) + key / 16)) & 1;
    case Tile::Form::bits:
      return (masks.masks()[static_cast<size_t>(tile.mask)].words[static_cast<size_t>(2 * row + key / 64)] >> (key % 64)) & 1;
  }
  return false;
}

void expect_lists_match(const std::string& text, const std::vector<int64_t>& lengths, int heads, int kv_heads) {
  SCOPED_TRACE(text);
  const Documents documents = Documents::from_lengths(lengths);
  const pattern::BoundPattern pattern(pattern::Pattern::parse(text), heads, kv_heads, documents);
  const Blocks blocks(documents);
  TileLists lists(pattern, blocks);
  for (int group = 0; group < static_cast<int>(pattern.groups().size()); ++group) {
    for (int64_t query = 0; query < blocks.count(); ++query) {
      std::vector<Tile> tiles;
      const TileCount count = lists.append(group, query, {0, blocks.count()}, tiles);
      const Intervals candidates = lists.candidates(group, query, {0, blocks.count()});
      // Dense picture of the row of tiles.
      std::vector<const Tile*> at(static_cast<size_t>(blocks.count()), nullptr);
      int64_t last = -1;
      TileCount counted;
      for (const Tile& tile : tiles) {
        ASSERT_GT(tile.key, last) << "ascending";
        const int64_t run = tile.form == Tile::Form::full ? tile.count : 1;
        last = tile.key + run - 1;
        (tile.form == Tile::Form::full ? counted.full : counted.partial) += run;
        for (int64_t key = tile.key; key <= last; ++key) {
          at[static_cast<size_t>(key)] = &tile;
          EXPECT_TRUE(contains(candidates, key));
        }
      }
      EXPECT_EQ(counted.full, count.full);
      EXPECT_EQ(counted.partial, count.partial);
      const Interval rows = blocks.tokens(query);
      for (int64_t key_block = 0; key_block < blocks.count(); ++key_block) {
        const Interval keys = blocks.tokens(key_block);
        bool some = false;
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          const int64_t document = documents.holding(i), begin = documents.begin(document);
          for (int64_t j = keys.begin; j < keys.end; ++j) {
            const bool allowed = documents.holding(j) == document && pattern.allowed(group, document, i - begin, j - begin);
            const Tile* tile = at[static_cast<size_t>(key_block)];
            const bool listed = tile != nullptr && tile_allows(*tile, lists.masks(), i - rows.begin, j - keys.begin);
            ASSERT_EQ(listed, allowed) << "group " << group << " query " << i << " key " << j;
            some = some || allowed;
            if (!allowed || tile->form == Tile::Form::full) continue;
            ASSERT_TRUE((tile->quarters >> (2 * ((i - rows.begin) / 64) + (j - keys.begin) / 64)) & 1);
          }
        }
        ASSERT_EQ(some, at[static_cast<size_t>(key_block)] != nullptr) << "an empty tile is listed";
      }
      // Cut anywhere, the lists are the same.
      std::vector<Tile> parts;
      const int64_t cut = blocks.count() / 2;
      TileCount sum = lists.append(group, query, {0, cut}, parts);
      sum += lists.append(group, query, {cut, blocks.count()}, parts);
      EXPECT_EQ(sum.tiles(), count.tiles());
    }
  }
}

TEST(TileLists, MatchTheOracle) {
  const std::vector<std::string> patterns{
      "full",
      "causal",
      "causal & window(200)",
      "window(30, 150)",
      "causal & (window(63) | sink(4))",
      "longformer(65, 3)",
      "bigbird(32, 3, 2, 1, 7)",
      "causal & strided(40)",
      "causal & (segment(100) | fixed(64, 2))",
      "dilated_window(5, 3, 17)",
      "power(3)",
      "dilated_segment(96, 3, 1)",
      "block_power(32)",
      "causal & !window(20)",
      "0: causal; 1-3: block_random(16, 3, 5)",
      "*: block_random(64, 2, 1, 1, 1) & causal",
  };
  for (const std::string& text : patterns) {
    expect_lists_match(text, {430}, 4, 2);
    expect_lists_match(text, {1}, 4, 2);
    expect_lists_match(text, {300, 50, 60, 0, 40, 128, 1, 7}, 4, 2);
  }
}

TEST(MaskPool, KeepsEachOnce) {
  MaskPool pool;
  kernels::MaskBits a, b;
  b.words[17] = 5;
  EXPECT_EQ(pool.keep(a), 0);
  EXPECT_EQ(pool.keep(b), 1);
  EXPECT_EQ(pool.keep(a), 0);
  EXPECT_EQ(pool.masks().size(), 2u);
}

}  // namespace
}  // namespace longspan::plan
