// The census against counting pair by pair.
#include "cli/census.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "plan/blocks.hpp"

namespace longspan::cli {
namespace {

void expect_counted(const std::string& text, const std::vector<int64_t>& lengths, int heads, int kv_heads) {
  SCOPED_TRACE(text + ", documents " + testing::PrintToString(lengths));
  const Documents documents = Documents::from_lengths(lengths);
  const pattern::BoundPattern bound(pattern::Pattern::parse(text), heads, kv_heads, documents);
  const Census census = take_census(bound, 2);
  const plan::Blocks blocks(documents);
  ASSERT_EQ(census.blocks, blocks.count());
  ASSERT_EQ(census.groups.size(), bound.groups().size());
  int64_t causal = 0, all = 0;
  for (size_t g = 0; g < census.groups.size(); ++g) {
    GroupCensus expected;
    expected.least_keys = std::numeric_limits<int64_t>::max();
    causal = all = 0;
    std::vector<int64_t> in_tile(static_cast<size_t>(blocks.count() * blocks.count()));
    for (int64_t query = 0; query < documents.tokens(); ++query) {
      const int64_t document = documents.holding(query), begin = documents.begin(document), i = query - begin;
      int64_t keys = 0;
      for (int64_t j = 0; j < documents.length(document); ++j) {
        ++all, causal += j <= i;
        if (!bound.allowed(static_cast<int>(g), document, i, j)) continue;
        ++keys, ++expected.pairs, expected.pairs_ahead += j > i;
        ++in_tile[static_cast<size_t>(blocks.holding(query) * blocks.count() + blocks.holding(begin + j))];
      }
      expected.least_keys = std::min(expected.least_keys, keys), expected.most_keys = std::max(expected.most_keys, keys);
    }
    if (documents.tokens() == 0) expected.least_keys = 0;
    int64_t drawn_full = 0, drawn_partial = 0;
    for (int64_t row = 0; row < blocks.count(); ++row) {
      for (int64_t column = 0; column < blocks.count(); ++column) {
        const int64_t pairs = in_tile[static_cast<size_t>(row * blocks.count() + column)];
        const bool full = pairs > 0 && pairs == int64_t{blocks.rows(row)} * blocks.rows(column);
        expected.full += full, expected.partial += pairs > 0 && !full;
        const report::BlockMap& map = census.groups[g].map;
        const auto cell = static_cast<size_t>(map.cell_of(row) * map.cells + map.cell_of(column));
        EXPECT_EQ(map.full[cell], full) << row << " " << column;  // fewer than 512 blocks: a cell is a tile
        EXPECT_EQ(map.partial[cell], pairs > 0 && !full) << row << " " << column;
        drawn_full += map.full[cell], drawn_partial += map.partial[cell];
      }
    }
    EXPECT_EQ(census.groups[g].pairs, expected.pairs);
    EXPECT_EQ(census.groups[g].pairs_ahead, expected.pairs_ahead);
    EXPECT_EQ(census.groups[g].full, expected.full);
    EXPECT_EQ(census.groups[g].partial, expected.partial);
    EXPECT_EQ(census.groups[g].least_keys, expected.least_keys);
    EXPECT_EQ(census.groups[g].most_keys, expected.most_keys);
  }
  EXPECT_EQ(census.causal_pairs, causal);
  EXPECT_EQ(census.all_pairs, all);
}

TEST(Census, CountsEveryTermAsPairByPair) {
  const std::vector<std::vector<int64_t>> shapes{{1}, {128}, {129}, {300, 50, 60, 40, 0, 128}, {0, 700}, {1, 2, 3, 257}};
  for (const char* text : {"full",
                           "causal",
                           "window(5, 3)",
                           "causal & window(130)",
                           "sink(3)",
                           "rows(5, 200)",
                           "columns(100, 140)",
                           "global(0, 129)",
                           "segment(100)",
                           "causal & fixed(50, 7)",
                           "strided(33)",
                           "dilated_window(40, 8, 3)",
                           "dilated_segment(96, 4, 1)",
                           "power(2)",
                           "block_window(16, 2, 1)",
                           "block_power(64)",
                           "block_columns(32, 3, 1, 2)",
                           "block_random(64, 2, 9)",
                           "longformer(65, 2)",
                           "bigbird(32, 3, 2, 1, 4)",
                           "streaming(4, 100)",
                           "!causal",
                           "causal & !window(200) | sink(1)",
                           "window(0) & sink(0)"})
    for (const auto& lengths : shapes) expect_counted(text, lengths, 1, 1);
}

TEST(Census, HeadGroups) {
  expect_counted("0: causal; *: block_random(64, 2, 9)", {300, 100}, 6, 3);
  expect_counted("1,3: streaming(1, 64); *: full", {257}, 4, 1);
}

TEST(Census, RandomCompositions) {
  std::mt19937 random(1);
  const auto upto = [&](int n) { return static_cast<int64_t>(random() % static_cast<unsigned>(n)); };
  for (int round = 0; round < 40; ++round) {
    const std::string a = "window(" + std::to_string(upto(300)) + ", " + std::to_string(upto(60)) + ")";
    const std::string b = "strided(" + std::to_string(1 + upto(200)) + ")";
    const std::string c = "fixed(" + std::to_string(64 + upto(100)) + ", " + std::to_string(1 + upto(60)) + ")";
    const std::string text = std::vector<std::string>{"causal & (" + a + " | " + b + ")", a + " & !" + b,
                                                      "causal & (" + b + " | " + c + ")", a + " | " + c}[static_cast<size_t>(round % 4)];
    expect_counted(text, {upto(600), upto(130), upto(300)}, 1, 1);
  }
}

TEST(Census, NoTokens) {
  const pattern::BoundPattern bound(pattern::Pattern::parse("causal"), 1, 1, Documents({0, 0}));
  const Census census = take_census(bound, 1);
  EXPECT_EQ(census.blocks, 0);
  EXPECT_EQ(census.groups[0].pairs, 0);
  EXPECT_EQ(census.groups[0].least_keys, 0);
}

// Sizes at which nothing can be counted pair by pair: closed forms.
TEST(Census, TwelveMillionTokens) {
  constexpr int64_t kTokens = 12'582'912, kWindow = 4096;
  const Documents documents = Documents::single(kTokens);
  const auto census = [&](const std::string& text) {
    return take_census(pattern::BoundPattern(pattern::Pattern::parse(text), 1, 1, documents), 2).groups[0];
  };
  const GroupCensus window = census("causal & window(4095)");
  EXPECT_EQ(window.pairs, kTokens * kWindow - kWindow * (kWindow - 1) / 2);
  EXPECT_EQ(window.least_keys, 1);
  EXPECT_EQ(window.most_keys, kWindow);
  const GroupCensus causal = census("causal");
  const int64_t blocks = kTokens / 128;
  EXPECT_EQ(causal.pairs, kTokens * (kTokens + 1) / 2);
  EXPECT_EQ(causal.full, blocks * (blocks - 1) / 2);
  EXPECT_EQ(causal.partial, blocks);
  int64_t drawn = 0;
  for (const int64_t tiles : causal.map.full) drawn += tiles;
  EXPECT_EQ(drawn, causal.full);
  const GroupCensus sinks = census("causal & (window(4095) | sink(128))");  // not of i − j alone
  EXPECT_EQ(sinks.pairs, window.pairs + (kTokens - 4096 - 128) * 128 + 128 * 127 / 2 + 128);
  const GroupCensus global = census("causal | rows(0, 128)");
  EXPECT_EQ(global.pairs, causal.pairs + 128 * kTokens - 128 * 129 / 2);
}

}  // namespace
}  // namespace longspan::cli
