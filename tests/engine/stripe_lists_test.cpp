// Lists made by several threads are those that one makes; and which blocks have masks there.
#include "engine/stripe_lists.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace longspan::engine {
namespace {

struct Case {
  const char* name;
  const char* pattern;
  int heads, kv_heads;
};

class StripeListsTest : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int kRanks = 3;
  void SetUp() override {
    const Case& c = GetParam();
    shape_ = {.tokens = documents_.tokens(), .heads = c.heads, .kv_heads = c.kv_heads, .head_dim = 16, .type = ElementType::bfloat16};
    pattern_.emplace(pattern::Pattern::parse(c.pattern), c.heads, c.kv_heads, documents_);
    plan::Options options;
    options.memory = int64_t{1} << 30;
    options.step_bytes = int64_t{1} << 20;  // several steps
    options.stripes = 1;                    // of enough rows for several parts
    shared_.emplace(plan::make_shared(*pattern_, blocks_, shape_, kRanks, options));
  }
  // `pause`: for every row.
  StripeLists lists(
      const plan::RankPlan& plan, const plan::Stripe& stripe, kernels::cpu::ThreadPool* threads,
      const std::function<void()>& between = [] {}, std::chrono::milliseconds pause = {}) {
    const auto place = [&](const plan::StripeRow& row) {
      std::this_thread::sleep_for(pause);
      return StripeLists::Place{row.block * 128, row.block * 128 + row.piece + 1};
    };
    const int steps = std::max(1, static_cast<int>(stripe.bounds.size()));
    return StripeLists::make(*shared_, plan, *pattern_, blocks_, stripe, steps, HeadSets(*pattern_, shape_), place, between, threads);
  }

  Documents documents_ = Documents::from_lengths({17, 30000, 0, 1, 9000});
  plan::Blocks blocks_{documents_};
  Shape shape_;
  std::optional<pattern::BoundPattern> pattern_;
  std::optional<plan::Shared> shared_;
};

bool same(const kernels::Tile& a, const kernels::Tile& b) {
  return a.key == b.key && a.form == b.form && a.quarters == b.quarters && std::memcmp(&a.count, &b.count, sizeof a.count) == 0;
}

TEST_P(StripeListsTest, DoNotDependOnTheThreads) {
  kernels::cpu::ThreadPool threads(3);
  int64_t tiles = 0;
  bool several_parts = false;
  for (int rank = 0; rank < kRanks; ++rank) {
    const plan::RankPlan plan = plan::make_rank_plan(*shared_, *pattern_, blocks_, rank);
    for (const plan::Stripe& stripe : plan.stripes) {
      several_parts = several_parts || plan::rows_of(*shared_, *pattern_, stripe, rank).size() >= 64;
      const StripeLists one = lists(plan, stripe, nullptr), many = lists(plan, stripe, &threads);
      EXPECT_EQ(one.some_rows_see_nothing, many.some_rows_see_nothing);
      ASSERT_EQ(one.masks.size(), many.masks.size());
      for (size_t m = 0; m < one.masks.size(); ++m)
        ASSERT_EQ(std::memcmp(&one.masks[m], &many.masks[m], sizeof(kernels::MaskBits)), 0) << m;
      ASSERT_EQ(one.steps.size(), many.steps.size());
      for (size_t s = 0; s < one.steps.size(); ++s) {
        const StepLists &a = one.steps[s], &b = many.steps[s];
        ASSERT_EQ(a.tiles.size(), b.tiles.size());
        for (size_t t = 0; t < a.tiles.size(); ++t) ASSERT_TRUE(same(a.tiles[t], b.tiles[t])) << t;
        ASSERT_EQ(a.work.size(), b.work.size());
        for (size_t w = 0; w < a.work.size(); ++w) {
          const kernels::Work &x = a.work[w], &y = b.work[w];
          ASSERT_EQ(
              std::tie(x.q_row, x.state_row, x.rows, x.kv_head, x.first_tile, x.tile_count, x.first_head, x.head_count, x.begins, x.ends),
              std::tie(y.q_row, y.state_row, y.rows, y.kv_head, y.first_tile, y.tile_count, y.first_head, y.head_count, y.begins, y.ends))
              << w;
        }
        tiles += static_cast<int64_t>(a.tiles.size());
      }
    }
  }
  EXPECT_GT(tiles, 100);
  EXPECT_TRUE(several_parts);
}

TEST_P(StripeListsTest, WhatIsThrownBetweenWaitsForTheThreads) {
  kernels::cpu::ThreadPool threads(3);
  const plan::RankPlan plan = plan::make_rank_plan(*shared_, *pattern_, blocks_, 0);
  const auto fail = [] { throw std::runtime_error("time-out"); };
  EXPECT_THROW(lists(plan, plan.stripes.back(), &threads, fail, std::chrono::milliseconds(1)), std::runtime_error);
  EXPECT_TRUE(threads.finished());
  EXPECT_EQ(lists(plan, plan.stripes.back(), &threads).steps.size(), lists(plan, plan.stripes.back(), nullptr).steps.size());
}

INSTANTIATE_TEST_SUITE_P(Patterns, StripeListsTest,
                         ::testing::Values(Case{"Causal", "causal", 2, 1}, Case{"Window", "causal & window(700)", 2, 2},
                                           Case{"BigBird", "bigbird(64, 3, 3, 1, 7)", 4, 2},
                                           Case{"Bits", "causal & dilated_window(900, 0, 7)", 2, 1},
                                           Case{"Rules", "0: causal & (power | window(100)); *: longformer(257, 130)", 3, 1}),
                         [](const auto& info) { return info.param.name; });

// A block that some row sees in part, of a quarter that it looks at, is masked: by what the pattern allows, pair by pair. And no other is
// where everything is a multiple of 64.
TEST(StepListsTest, WhatSomeRowSeesInPartIsMasked) {
  const auto check = [](const std::vector<int64_t>& lengths, const std::string& text, bool expect_none) {
    SCOPED_TRACE(text);
    const Documents documents = Documents::from_lengths(lengths);
    const Shape shape{.tokens = documents.tokens(), .heads = 2, .kv_heads = 1, .head_dim = 16, .type = ElementType::bfloat16};
    const pattern::BoundPattern pattern(pattern::Pattern::parse(text), shape.heads, shape.kv_heads, documents);
    const plan::Blocks blocks(documents);
    plan::Options options;
    options.memory = int64_t{1} << 30;
    options.stripes = 1;
    const plan::Shared shared = plan::make_shared(pattern, blocks, shape, 1, options);
    const plan::RankPlan plan = plan::make_rank_plan(shared, pattern, blocks, 0);
    const HeadSets heads(pattern, shape);
    int64_t partial = 0;
    for (const plan::Stripe& stripe : plan.stripes) {
      const auto place = [](const plan::StripeRow& row) { return StripeLists::Place{row.block, row.block}; };
      const StripeLists lists = StripeLists::make(shared, plan, pattern, blocks, stripe,
                                                  std::max(1, static_cast<int>(stripe.bounds.size())), heads, place, [] {});
      for (const StepLists& step : lists.steps) {
        const Intervals masked = step.masked();
        std::vector<int64_t> resident;
        for (const Interval& run : step.resident)
          for (int64_t block = run.begin; block < run.end; ++block) resident.push_back(block);
        const auto sees_in_part = [&](const kernels::Work& work, int64_t key_block, int quarters) {
          const Interval queries = blocks.tokens(work.q_row), keys = blocks.tokens(key_block);
          const int64_t document = documents.holding(queries.begin), begin = documents.begin(document);
          const int group = pattern.group_of(heads.heads[static_cast<size_t>(work.first_head)]);
          for (int64_t row = 0; row < work.rows; ++row)
            for (int half = 0; half < 2; ++half) {
              if ((quarters >> (2 * (row / 64) + half) & 1) == 0) continue;
              int seen = 0;
              for (int64_t key = keys.begin + 64 * half; key < std::min(keys.end, keys.begin + 64 * half + 64); ++key)
                seen += pattern.allowed(group, document, queries.begin + row - begin, key - begin) ? 1 : 0;
              if (seen > 0 && seen < 64) return true;
            }
          return false;
        };
        for (const kernels::Work& work : step.work)
          for (int64_t t = work.first_tile; t < work.first_tile + work.tile_count; ++t) {
            const kernels::Tile& tile = step.tiles[static_cast<size_t>(t)];
            const bool full = tile.form == kernels::Tile::Form::full;
            partial += full ? 0 : 1;
            for (int64_t key = tile.key; key < tile.key + (full ? tile.count : 1); ++key) {
              const int64_t block = resident[static_cast<size_t>(key)];
              if (sees_in_part(work, block, full ? 0xf : tile.quarters)) {
                EXPECT_TRUE(contains(masked, block)) << block;
              }
            }
          }
        if (expect_none) {
          EXPECT_TRUE(masked.empty());
        }
      }
    }
    EXPECT_TRUE(partial > 0 || text == "full");
  };
  const std::vector<int64_t> odd = {17, 1000, 0, 1, 704}, even = {1024, 64, 0, 448, 640};
  for (const std::string text : {"causal", "causal & window(130)", "bigbird(64, 3, 1, 1, 7)", "bigbird(32, 3, 1, 1, 7)", "full",
                                 "causal & dilated_window(300, 0, 3)", "0: longformer(65, 70); *: block_window(64, 1, 1)"}) {
    check(odd, text, false);
    check(even, text, text == "bigbird(64, 3, 1, 1, 7)" || text == "full");
  }
}

}  // namespace
}  // namespace longspan::engine
