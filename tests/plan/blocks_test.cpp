#include "plan/blocks.hpp"

#include <gtest/gtest.h>

#include <random>

namespace longspan::plan {
namespace {

std::vector<int64_t> random_lengths(std::mt19937& random) {
  std::vector<int64_t> lengths;
  const int count = std::uniform_int_distribution<>(1, 12)(random);
  for (int d = 0; d < count; ++d) {
    const int kind = std::uniform_int_distribution<>(0, 3)(random);
    const int most = kind == 0 ? 0 : kind == 1 ? 20 : kind == 2 ? 130 : 700;
    lengths.push_back(std::uniform_int_distribution<>(0, most)(random));
  }
  lengths.push_back(1);  // never empty altogether
  return lengths;
}

TEST(Blocks, DocumentedExample) {
  const Blocks blocks(Documents::from_lengths({300, 50, 60, 40, 0, 128}));
  ASSERT_EQ(blocks.count(), 6);
  EXPECT_EQ(blocks.tokens(2), (Interval{256, 300}));
  EXPECT_EQ(blocks.tokens(3), (Interval{300, 410}));
  EXPECT_EQ(blocks.tokens(4), (Interval{410, 450}));
  EXPECT_EQ(blocks.tokens(5), (Interval{450, 578}));
  EXPECT_EQ(blocks.reach(1), (Interval{0, 3}));
  EXPECT_EQ(blocks.reach(3), (Interval{3, 4}));
}

TEST(Blocks, OneToken) {
  const Blocks blocks(Documents::single(1));
  EXPECT_EQ(blocks.count(), 1);
  EXPECT_EQ(blocks.tokens(0), (Interval{0, 1}));
}

TEST(Blocks, RandomDocuments) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const Documents documents = Documents::from_lengths(random_lengths(random));
    const Blocks blocks(documents);
    int64_t token = 0;
    for (int64_t b = 0; b < blocks.count(); ++b) {
      const Interval tokens = blocks.tokens(b);
      ASSERT_EQ(tokens.begin, token);
      ASSERT_GT(tokens.length(), 0);
      ASSERT_LE(tokens.length(), kBlock);
      for (token = tokens.begin; token < tokens.end; ++token) ASSERT_EQ(blocks.holding(token), b);
    }
    ASSERT_EQ(token, documents.tokens());
    const int64_t cut = std::uniform_int_distribution<int64_t>(0, blocks.count() - 1)(random);
    const Intervals sets[] = {{{0, blocks.count()}}, {{cut, blocks.count()}}, {{cut, cut + 1}}, {}};
    for (const Intervals& set : sets) {
      std::vector<int32_t> rows;
      int64_t in_set = 0;
      for (const Interval& run : set)
        for (int64_t b = run.begin; b < run.end; ++b) rows.push_back(blocks.rows(b)), in_set += blocks.rows(b);
      EXPECT_EQ(blocks.rows(set), rows);
      const Intervals tokens = blocks.tokens(set);
      EXPECT_EQ(size_of(tokens), in_set);
      if (!set.empty()) {
        EXPECT_EQ(tokens.front().begin, blocks.tokens(set.front().begin).begin);
      }
    }
    for (int64_t d = 0; d < documents.count(); ++d) {
      const int64_t length = documents.length(d), begin = documents.begin(d);
      if (length == 0) continue;
      const int64_t first = blocks.holding(begin);
      if (length >= kBlock) {
        EXPECT_EQ(blocks.tokens(first).begin, begin);
      } else {
        EXPECT_EQ(blocks.holding(begin + length - 1), first) << "a short document lies in one block";
      }
    }
  }
}

}  // namespace
}  // namespace longspan::plan
