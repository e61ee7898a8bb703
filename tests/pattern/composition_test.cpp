#include <gtest/gtest.h>

#include "brute_force.hpp"

namespace longspan::pattern {
namespace {

// The central property: whatever is composed, the oracle, the keys, the tiles and their masks tell of the same pairs.
TEST(Composition, AgreesWithBruteForcePairByPair) {
  std::mt19937 random(20261124);
  const int heads = 4, kv_heads = 2;
  for (int k = 0; k < 260; ++k) {
    const int64_t size = 1 + static_cast<int64_t>(random() % (k % 10 == 0 ? 700 : 300));
    const Documents documents = Documents::from_lengths({size, 0, 1, static_cast<int64_t>(random() % 200)});
    const auto masks = brute::random_masks(documents, heads, kv_heads, random);
    const auto composed = brute::random_pattern(random, 3, size, masks);
    SCOPED_TRACE(composed.text + " on " + std::to_string(size) + " tokens");
    const Pattern pattern = Pattern::parse(composed.text);
    const BoundPattern bound(pattern, heads, kv_heads, documents, masks.sources_for(pattern, documents));
    brute::expect_agreement(bound, heads, kv_heads, composed.allows, false, random);
    const std::string canonical = pattern.canonical();
    EXPECT_EQ(Pattern::parse(canonical).canonical(), canonical);
    if (HasFailure()) return;
  }
}

// The canonical text means the same, preset by preset.
TEST(Composition, CanonicalTextMeansTheSame) {
  std::mt19937 random(7);
  const Documents documents = Documents::from_lengths({150, 0, 1});
  const auto masks = brute::random_masks(documents, 4, 2, random);
  for (int k = 0; k < 60; ++k) {
    const auto composed = brute::random_pattern(random, 2, 150, masks);
    SCOPED_TRACE(composed.text);
    const Pattern pattern = Pattern::parse(Pattern::parse(composed.text).canonical());
    const BoundPattern bound(pattern, 4, 2, documents, masks.sources_for(pattern, documents));
    brute::expect_agreement(bound, 4, 2, composed.allows, false, random);
    if (HasFailure()) return;
  }
}

// At 12,582,912 tokens nothing may cost the length of the row: these answers are small, and the clip is honoured early.
TEST(Composition, AnswersForLongDocumentsAreSmall) {
  const int64_t tokens = 12'582'912, row = 9'437'184;
  const auto keys = [&](const std::string& text, Interval rows, Interval clip) {
    return BoundPattern(Pattern::parse(text), 1, 1, Documents::single(tokens)).keys(0, 0, rows, clip);
  };
  const auto window = keys("causal & window(4095)", {row, row + 128}, {0, tokens});
  EXPECT_EQ(window.may, (Intervals{{row - 4095, row + 128}}));
  EXPECT_EQ(window.must, (Intervals{{row + 127 - 4095, row + 1}}));
  const auto strided = keys("causal & strided(4096)", {row, row + 1}, {0, tokens});
  EXPECT_EQ(strided.may.size(), static_cast<size_t>(row / 4096 + 1));
  EXPECT_EQ(strided.must, strided.may);
  EXPECT_EQ(keys("strided(4096)", {row, row + 1}, {row - 5000, row + 5000}).may.size(), 3u);
  EXPECT_EQ(keys("strided(2) & window(10)", {row, row + 1}, {0, tokens}).may.size(), 6u);
  EXPECT_EQ(keys("strided(2) | full", {row, row + 128}, {0, tokens}).must, (Intervals{{0, tokens}}));
  const auto longformer = keys("longformer(513, 16)", {row, row + 128}, {0, tokens});
  EXPECT_EQ(longformer.may, (Intervals{{0, 16}, {row - 256, row + 384}}));
  EXPECT_EQ(keys("longformer(513, 16)", {0, 128}, {0, tokens}).may, (Intervals{{0, tokens}}));
}

// Tiles of a stride that repeats in the tile grid share one signature along the row, so that their masks are made once.
TEST(Composition, SignaturesRepeatAlongTheRow) {
  const int64_t tokens = 1 << 20, row = 1 << 19;
  const BoundPattern bound(Pattern::parse("causal & strided(4096)"), 1, 1, Documents::single(tokens));
  const auto signature = [&](int64_t key) { return bound.signature(0, 0, {row, row + 128}, {key, key + 128}); };
  const uint64_t first = signature(0);
  EXPECT_NE(first, 0u);
  for (int64_t key = 4096; key < row; key += 4096) EXPECT_EQ(signature(key), first);
  EXPECT_NE(signature(row), first);  // the diagonal, where causal cuts
  TileMask mask;
  EXPECT_EQ(bound.tile(0, 0, {row, row + 128}, {0, 128}, mask), Coverage::some);
  EXPECT_EQ(mask.form, TileMask::Form::band);
  // Where one part decides the tile, the others leave no trace: rows past 100 are empty, wherever they lie in their segment.
  const BoundPattern rows(Pattern::parse("segment(96) & rows(0, 100)"), 1, 1, Documents::single(tokens));
  EXPECT_EQ(rows.signature(0, 0, {128, 256}, {128, 256}), rows.signature(0, 0, {256, 384}, {256, 384}));
}

}  // namespace
}  // namespace longspan::pattern
