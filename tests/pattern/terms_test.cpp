// Every term alone, with chosen arguments, against the predicates of DESIGN's table on several documents.
#include <gtest/gtest.h>

#include "brute_force.hpp"
#include "longspan/error.hpp"

namespace longspan::pattern {
namespace {

// Some hand-computed rows, so that the brute force itself is held to something.
std::vector<int64_t> keys_of(const std::string& text, int64_t tokens, int64_t i) {
  const BoundPattern bound(Pattern::parse(text), 1, 1, Documents::single(tokens));
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < tokens; ++j)
    if (bound.allowed(0, 0, i, j)) keys.push_back(j);
  return keys;
}

using Keys = std::vector<int64_t>;

TEST(Terms, HandComputedRows) {
  EXPECT_EQ(keys_of("full", 4, 2), (Keys{0, 1, 2, 3}));
  EXPECT_EQ(keys_of("causal", 4, 2), (Keys{0, 1, 2}));
  EXPECT_EQ(keys_of("window(2)", 10, 5), (Keys{3, 4, 5}));
  EXPECT_EQ(keys_of("window(1, 2)", 10, 5), (Keys{4, 5, 6, 7}));
  EXPECT_EQ(keys_of("window(3, 3)", 5, 4), (Keys{1, 2, 3, 4}));
  EXPECT_EQ(keys_of("sink(2)", 10, 0), (Keys{0, 1}));
  EXPECT_EQ(keys_of("rows(3, 5)", 4, 3), (Keys{0, 1, 2, 3}));
  EXPECT_EQ(keys_of("rows(3, 5)", 6, 5), (Keys{}));
  EXPECT_EQ(keys_of("columns(3, 5)", 10, 9), (Keys{3, 4}));
  EXPECT_EQ(keys_of("global(3, 5)", 6, 1), (Keys{3, 4}));
  EXPECT_EQ(keys_of("global(3, 5)", 6, 4), (Keys{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(keys_of("columns(3, 3)", 10, 9), (Keys{}));
  EXPECT_EQ(keys_of("segment(4)", 10, 9), (Keys{8, 9}));
  EXPECT_EQ(keys_of("fixed(4, 1)", 10, 0), (Keys{3, 7}));
  EXPECT_EQ(keys_of("strided(4)", 10, 5), (Keys{1, 5, 9}));
  EXPECT_EQ(keys_of("dilated_window(2, 1, 3)", 20, 10), (Keys{4, 7, 10, 13}));
  EXPECT_EQ(keys_of("dilated_segment(8, 3, 1)", 20, 12), (Keys{9, 12, 15}));
  EXPECT_EQ(keys_of("dilated_segment(8, 3, 1)", 20, 11), (Keys{}));
  EXPECT_EQ(keys_of("power", 20, 10), (Keys{2, 6, 8, 9, 10, 11, 12, 14, 18}));
  EXPECT_EQ(keys_of("causal & power(2)", 20, 10), (Keys{1, 2, 5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(keys_of("block_window(4, 1, 0)", 20, 9), (Keys{4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(keys_of("block_power(2)", 16, 0), (Keys{0, 1, 2, 3, 4, 5, 8, 9}));
  EXPECT_EQ(keys_of("block_columns(2, 3, 1, 2)", 12, 0), (Keys{2, 3, 8, 9}));
  EXPECT_EQ(keys_of("block_random(2, 100, 7)", 5, 0), (Keys{0, 1, 2, 3, 4}));
  EXPECT_EQ(keys_of("block_random(2, 100, 7, past=1)", 7, 2), (Keys{0, 1, 2, 3}));
  EXPECT_EQ(keys_of("block_random(2, 0, 7)", 5, 0), (Keys{}));
  EXPECT_EQ(keys_of("longformer(3, 1)", 6, 4), (Keys{0, 3, 4, 5}));
  EXPECT_EQ(keys_of("streaming(1, 2)", 6, 4), (Keys{0, 3, 4}));
  EXPECT_EQ(keys_of("causal & !window(1)", 6, 4), (Keys{0, 1, 2}));
}

TEST(Terms, BlockRandomTakesCountDistinctBlocksAndMultipliesHigh) {
  // 4 of 50 blocks, every row block; the distribution is not asserted, only that lists differ between rows and heads.
  const BoundPattern bound(Pattern::parse("block_random(2, 4, 9, per_head=1)"), 2, 1, Documents::single(100));
  ASSERT_EQ(bound.groups().size(), 2u);
  std::vector<Intervals> lists;
  for (int group : {0, 1}) {
    for (int64_t row = 0; row < 100; row += 2) {
      lists.push_back(bound.keys(group, 0, {row, row + 1}, {0, 100}).may);
      EXPECT_EQ(size_of(lists.back()), 8);
      EXPECT_EQ(lists.back(), bound.keys(group, 0, {row + 1, row + 2}, {0, 100}).may);
    }
  }
  EXPECT_NE(lists[0], lists[1]);
  EXPECT_NE(lists[0], lists[50]);
}

// Random arguments for every term, exact for several rows where the term is one primitive.
TEST(Terms, AgreeWithBruteForcePairByPair) {
  std::mt19937 random(1);
  const int heads = 4, kv_heads = 2;
  for (int64_t size : {1, 2, 64, 127, 128, 129, 200, 300, 700}) {
    const Documents documents = Documents::from_lengths({size / 3, 0, 1, size, 0});
    const auto masks = brute::random_masks(documents, heads, kv_heads, random);
    for (int k = 0; k < 60; ++k) {
      const auto term = brute::random_term(random, size, masks);
      SCOPED_TRACE(term.text + " on " + std::to_string(size) + " tokens");
      const Pattern pattern = Pattern::parse(term.text);
      const BoundPattern bound(pattern, heads, kv_heads, documents, masks.sources_for(pattern, documents));
      const std::string name = term.text.substr(0, term.text.find('('));
      const bool composed =
          name == "global" || name == "dilated_window" || name == "longformer" || name == "bigbird" || name == "streaming";
      brute::expect_agreement(bound, heads, kv_heads, term.allows, !composed, random);
      if (HasFailure()) return;
    }
  }
}

TEST(Terms, HugeArgumentsDoNotOverflow) {
  const std::string huge = std::to_string(int64_t{1} << 60);
  const auto same = [](const std::string& a, const std::string& b) {
    const BoundPattern one(Pattern::parse(a), 1, 1, Documents::single(70)), two(Pattern::parse(b), 1, 1, Documents::single(70));
    for (int64_t i = 0; i < 70; ++i) {
      EXPECT_EQ(one.keys(0, 0, {i, i + 1}, {0, 70}).may, two.keys(0, 0, {i, i + 1}, {0, 70}).may) << a << " row " << i;
      for (int64_t j = 0; j < 70; ++j) ASSERT_EQ(one.allowed(0, 0, i, j), two.allowed(0, 0, i, j)) << a << " at " << i << ", " << j;
    }
    TileMask mask_one, mask_two;
    EXPECT_EQ(one.tile(0, 0, {0, 70}, {0, 70}, mask_one), two.tile(0, 0, {0, 70}, {0, 70}, mask_two)) << a;
    EXPECT_EQ(mask_one.bits, mask_two.bits) << a;
  };
  same("window(" + huge + ", " + huge + ")", "full");
  same("window(" + huge + ")", "causal");
  same("!window(" + huge + ")", "!causal");
  same("segment(" + huge + ")", "full");
  same("strided(" + huge + ")", "window(0)");
  same("fixed(" + huge + ", 3)", "!full");
  same("fixed(" + huge + ", " + huge + ")", "full");
  same("dilated_window(" + huge + ", " + huge + ", " + huge + ")", "window(0)");
  same("dilated_window(" + huge + ", " + huge + ", 2)", "strided(2)");
  same("dilated_segment(" + huge + ", " + huge + ", 3)", "rows(3, 4) & columns(3, 4)");
  same("power(" + huge + ")", "full");
  same("block_window(" + huge + ", " + huge + ", " + huge + ")", "full");
  same("block_window(8, " + huge + ", 0)", "causal | segment(8)");
  same("!block_window(8, " + huge + ", 0)", "!causal & !segment(8)");
  same("block_power(" + huge + ")", "full");
  same("block_columns(" + huge + ", " + huge + ", 0, 1)", "full");
  same("block_columns(" + huge + ", " + huge + ", 1, " + huge + ")", "!full");
  same("block_columns(2, " + huge + ", 1, 3)", "columns(2, 6)");
  same("block_random(" + huge + ", 3, 1)", "full");
  same("global(3, " + huge + ")", "rows(3, 70) | columns(3, 70)");
  same("sink(" + huge + ")", "full");
}

TEST(Terms, KnowTranslationInvariance) {
  const auto invariant = [](const std::string& text) {
    return BoundPattern(Pattern::parse(text), 1, 1, Documents::single(1000)).translation_invariant(0);
  };
  EXPECT_TRUE(invariant("causal & strided(16) | !window(3, 3) & power"));
  EXPECT_TRUE(invariant("dilated_window(3, 3, 2)"));
  EXPECT_TRUE(invariant("segment(1000)"));  // the whole document
  EXPECT_FALSE(invariant("segment(999)"));
  EXPECT_FALSE(invariant("causal | sink(4)"));
  EXPECT_FALSE(invariant("block_window(8, 1, 1)"));
}

}  // namespace
}  // namespace longspan::pattern
