// Head groups, their errors, and stored block lists.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "longspan/error.hpp"
#include "pattern/block_mask.hpp"
#include "pattern/pattern.hpp"

namespace longspan::pattern {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

BoundPattern bind(const std::string& text, int heads, int kv_heads, std::vector<std::shared_ptr<const BlockMaskSource>> sources = {}) {
  return BoundPattern(Pattern::parse(text), heads, kv_heads, Documents::single(100), std::move(sources));
}

std::vector<std::vector<int>> groups_of(const BoundPattern& bound) {
  std::vector<std::vector<int>> heads;
  for (const HeadGroup& group : bound.groups()) heads.push_back(group.heads);
  return heads;
}

using Heads = std::vector<std::vector<int>>;

std::vector<Problem> problems_of(const std::string& text, int heads, int kv_heads,
                                 std::vector<std::shared_ptr<const BlockMaskSource>> sources = {}) {
  try {
    bind(text, heads, kv_heads, std::move(sources));
  } catch (const Error& error) {
    return error.problems();
  }
  ADD_FAILURE() << "no error: " << text;
  return {{}};
}

std::shared_ptr<const BlockMaskSource> lists_for(int list_heads, int64_t block = 50) {
  return std::make_shared<const MemoryBlockMask>(MemoryBlockMask::from_lists(
      block, Documents::single(100), std::vector<std::vector<std::vector<int64_t>>>(static_cast<size_t>(list_heads), {{0}, {0, 1}})));
}

TEST(Groups, OneForEachRule) {
  EXPECT_EQ(groups_of(bind("causal", 4, 2)), (Heads{{0, 1, 2, 3}}));
  const BoundPattern bound = bind("2,0: causal; *: full; 5: sink(3)", 6, 3);
  EXPECT_EQ(groups_of(bound), (Heads{{0, 2}, {1, 3, 4}, {5}}));
  EXPECT_EQ(bound.groups()[1].rule, 1);
  EXPECT_EQ(bound.group_of(4), 1);
  EXPECT_EQ(bound.group_of(5), 2);
  EXPECT_TRUE(bound.allowed(1, 0, 0, 99));
  EXPECT_FALSE(bound.allowed(0, 0, 0, 99));
}

TEST(Groups, ListsSplitThem) {
  EXPECT_EQ(groups_of(bind("block_random(8, 2, 1) & causal", 6, 3)), (Heads{{0, 1}, {2, 3}, {4, 5}}));
  EXPECT_EQ(groups_of(bind("block_random(8, 2, 1, per_head=1)", 4, 2)), (Heads{{0}, {1}, {2}, {3}}));
  EXPECT_EQ(groups_of(bind("block_random(8, 2, 1, per_head=1) | block_random(8, 2, 1)", 4, 2)), (Heads{{0}, {1}, {2}, {3}}));
  EXPECT_EQ(groups_of(bind("1-4: block_random(8, 2, 1); *: full", 6, 3)), (Heads{{1}, {2, 3}, {4}, {0, 5}}));
  EXPECT_EQ(groups_of(bind("block_mask(\"m\", 50)", 4, 2, {lists_for(1)})), (Heads{{0, 1, 2, 3}}));
  EXPECT_EQ(groups_of(bind("block_mask(\"m\", 50)", 4, 2, {lists_for(2)})), (Heads{{0, 1}, {2, 3}}));
  EXPECT_EQ(groups_of(bind("block_mask(\"m\", 50)", 4, 2, {lists_for(4)})), (Heads{{0}, {1}, {2}, {3}}));
  EXPECT_EQ(groups_of(bind("block_mask(\"m\", 50) & block_mask(\"n\", 50)", 4, 2, {lists_for(4), lists_for(2)})),
            (Heads{{0}, {1}, {2}, {3}}));
}

TEST(Groups, HeadInTwoRules) {
  const auto problems = problems_of("0-3: causal; 2-5: full", 6, 2);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].code, ExitCode::usage);
  EXPECT_EQ(problems[0].what, "pattern: heads 2-3 are in two rules\n  0-3: causal; 2-5: full\n               ^");
  EXPECT_EQ(problems[0].seen, "'0-3: causal' and '2-5: full'");
  EXPECT_THAT(problems_of("0: causal; 0-1: full", 2, 1)[0].what, StartsWith("pattern: head 0 is in two rules\n"));
}

TEST(Groups, HeadInNoRule) {
  const auto problems = problems_of("0,2: causal", 6, 2);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_THAT(problems[0].what, StartsWith("pattern: heads 1,3-5 are in no rule\n"));
  EXPECT_THAT(problems[0].mend, HasSubstr("'*: full'"));
}

TEST(Groups, HeadOutOfRangeAndRuleWithoutHeads) {
  const auto problems = problems_of("0-8: causal; *: full", 8, 2);
  ASSERT_EQ(problems.size(), 2u);
  EXPECT_THAT(problems[0].what, StartsWith("pattern: a head is out of range\n"));
  EXPECT_EQ(problems[0].seen, "8");
  EXPECT_EQ(problems[0].expected, "0…7");
  EXPECT_EQ(problems[1].what, "pattern: a rule names no head\n  0-8: causal; *: full\n               ^");
}

TEST(Groups, HeadsMustBeAMultipleOfKvHeads) { EXPECT_EQ(problems_of("full", 5, 2)[0].seen, "5 and 2"); }

TEST(StoredLists, AreFollowedRowByRow) {
  // Documents of 5, 0 and 3 tokens in blocks of 2: row blocks 0–2 belong to the first, 3–4 to the last.
  const Documents documents = Documents::from_lengths({5, 0, 3});
  const auto source = std::make_shared<const MemoryBlockMask>(2, documents, 1, std::vector<int64_t>{0, 2, 2, 3, 4, 6},
                                                              std::vector<int64_t>{0, 2, 1, 1, 0, 1});
  const BoundPattern bound(Pattern::parse("block_mask(\"x\", 2)"), 2, 1, documents, {source});
  const auto keys = [&](int64_t document, int64_t i) { return bound.keys(0, document, {i, i + 1}, {0, documents.length(document)}).may; };
  EXPECT_EQ(keys(0, 1), (Intervals{{0, 2}, {4, 5}}));  // the last block is short
  EXPECT_EQ(keys(0, 2), Intervals{});
  EXPECT_EQ(keys(0, 4), (Intervals{{2, 4}}));
  EXPECT_EQ(keys(2, 0), (Intervals{{2, 3}}));
  EXPECT_EQ(keys(2, 2), (Intervals{{0, 3}}));
}

TEST(StoredLists, MustFitTheTerm) {
  const auto other_block = problems_of("block_mask(\"x\", 64)", 4, 2, {lists_for(1)});
  EXPECT_EQ(other_block[0].code, ExitCode::input);
  EXPECT_EQ(other_block[0].seen, "50");
  EXPECT_EQ(other_block[0].expected, "64");
  const auto other_heads = problems_of("block_mask(\"x\", 50)", 4, 2, {lists_for(3)});
  EXPECT_EQ(other_heads[0].code, ExitCode::input);
  EXPECT_EQ(other_heads[0].expected, "1, 2 (KV heads) or 4 (heads)");
  const auto missing = problems_of("block_mask(\"x\", 50)", 4, 2);
  EXPECT_EQ(missing[0].code, ExitCode::usage);
  EXPECT_EQ(missing[0].what, "pattern: block_mask(\"x\", 50) has no stored lists");
}

TEST(StoredLists, BadListsAreInputErrors) {
  const auto problem = [](int64_t block, int heads, std::vector<int64_t> indptr, std::vector<int64_t> indices) {
    try {
      MemoryBlockMask(block, Documents::from_lengths({5, 2}), heads, std::move(indptr), std::move(indices), "here");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::input);
      return error.problems().front();
    }
    ADD_FAILURE() << "no error";
    return Problem{};
  };
  EXPECT_EQ(problem(0, 1, {}, {}).what, "the block of stored block lists is not positive");
  EXPECT_EQ(problem(2, 0, {}, {}).what, "stored block lists are for no head");
  EXPECT_EQ(problem(2, 1, {0, 1}, {0}).expected, "5 (list heads × (4 row blocks + 1))");
  EXPECT_EQ(problem(2, 1, {0, 1, 0, 1, 1}, {0}).from, "here, list head 0, row block 1");
  EXPECT_EQ(problem(2, 1, {0, 1, 1, 1, 2}, {0}).what, "indptr does not ascend inside the indices");
  EXPECT_EQ(problem(2, 1, {-1, 1, 1, 1, 1}, {0}).what, "indptr does not ascend inside the indices");
  EXPECT_EQ(problem(2, 1, {0, 2, 2, 2, 2}, {1, 1}).what, "key blocks do not ascend");
  EXPECT_EQ(problem(2, 1, {0, 2, 2, 2, 2}, {2, 0}).seen, "2 before 0");
  EXPECT_EQ(problem(2, 1, {0, 0, 0, 0, 1}, {1}).what, "a key block is outside its document");
  EXPECT_EQ(problem(2, 1, {0, 1, 1, 1, 1}, {-1}).seen, "-1");
}

// A source of another make is not trusted either.
TEST(StoredLists, BadRowsOfAnySourceAreInputErrors) {
  class Wrong : public BlockMaskSource {
   public:
    int64_t block() const override { return 50; }
    int list_heads() const override { return 1; }
    std::vector<int64_t> row(int, int64_t) const override { return {1, 0}; }
  };
  const BoundPattern bound = bind("block_mask(\"x\", 50)", 1, 1, {std::make_shared<const Wrong>()});
  EXPECT_THROW(bound.allowed(0, 0, 0, 0), Error);
}

// Lists are kept per thread; threads that ask for rows in different orders hear the same.
TEST(Groups, ThreadsAgree) {
  const int64_t tokens = 3000;
  const BoundPattern bound(Pattern::parse("block_random(4, 3, 5) | block_random(3, 40, 6, per_head=1)"), 2, 1, Documents::single(tokens));
  const auto keys = [&](int64_t row) { return bound.keys(static_cast<int>(row % 2), 0, {row, row + 1}, {0, tokens}).may; };
  std::vector<Intervals> wanted;
  for (int64_t row = 0; row < tokens; ++row) wanted.push_back(keys(row));
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int64_t step : {1, 7, 11, 13}) {
    threads.emplace_back([&, step, place = threads.size()] {
      for (int64_t k = 0; k < tokens; ++k) {
        const int64_t row = k * step % tokens;
        wrong[place] += keys(row) != wanted[static_cast<size_t>(row)];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, (std::vector<int>{0, 0, 0, 0}));
}

}  // namespace
}  // namespace longspan::pattern
