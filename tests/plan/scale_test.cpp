// The plan at 12,582,912 tokens: what moves, and who works how much. No data, one process.
#include <gtest/gtest.h>

#include "plan/rank_plan.hpp"

namespace longspan::plan {
namespace {

constexpr int64_t kTokens = 12'582'912;
const Shape kBig{.tokens = kTokens, .heads = 8, .kv_heads = 2, .head_dim = 128, .type = ElementType::bfloat16};

struct Big {
  explicit Big(const std::string& text, int ranks, PartitionKind kind = PartitionKind::automatic)
      : pattern(pattern::Pattern::parse(text), kBig.heads, kBig.kv_heads, Documents::single(kTokens)), blocks(Documents::single(kTokens)) {
    options.partition = kind;
    options.memory = int64_t{256} << 30;
    options.output_type = kBig.type;
    shared.emplace(make_shared(pattern, blocks, kBig, ranks, options));
  }
  RankPlan plan(int rank) const { return make_rank_plan(*shared, pattern, blocks, rank); }
  int64_t key_tokens(int64_t units) const { return units * kBlock / kBig.kv_heads; }

  pattern::BoundPattern pattern;
  Blocks blocks;
  Options options;
  std::optional<Shared> shared;
};

TEST(Scale, WindowMovesItsHaloOnly) {
  const Big big("causal & window(4095)", 64);
  EXPECT_EQ(big.shared->partition.kind(), PartitionKind::contiguous);
  for (int rank = 0; rank < 64; ++rank) {
    const RankPlan plan = big.plan(rank);
    EXPECT_EQ(plan.bytes_moved, plan.bytes_lower_bound());
    EXPECT_LE(big.key_tokens(plan.bytes_moved / plan.unit_bytes), 4096) << "rank " << rank;
  }
}

TEST(Scale, CausalZigzagMovesThreeQuartersOfARing) {
  const Big big("causal", 64, PartitionKind::zigzag);
  int64_t moved = 0, ring = 0;
  for (int rank = 0; rank < 64; ++rank) {
    const RankPlan plan = big.plan(rank);
    moved += plan.bytes_moved;
    ring += plan.ring_bytes(*big.shared);
  }
  EXPECT_LE(static_cast<double>(moved), 0.75 * static_cast<double>(ring));
}

// The tiles of a row that looks at everything are computed where its keys are, so that is where they count: also when long rows fill many
// sampled blocks (6,000 rows are 47), and by whatever partition.
TEST(Scale, GlobalRowsTravelAndWorkIsEven) {
  for (const std::string text : {"bigbird(64, 3, 3, 1, 0)", "longformer(513, 64)", "rows(0, 6000) | window(100)",
                                 "global(5000000, 5006000) | (causal & window(100))"}) {
    for (PartitionKind kind : {PartitionKind::automatic, PartitionKind::balanced}) {
      SCOPED_TRACE(text + ", " + std::string(name_of(kind)));
      const Big big(text, 64, kind);
      int64_t most = 0, sum = 0;
      for (int rank = 0; rank < 64; ++rank) {
        const int64_t tiles = big.plan(rank).weighted_tiles();
        most = std::max(most, tiles);
        sum += tiles;
      }
      EXPECT_LE(static_cast<double>(most) * 64, 1.1 * static_cast<double>(sum));
      EXPECT_FALSE(big.shared->pieces.empty());
      EXPECT_LT(big.shared->long_bytes_travelling, big.shared->long_bytes_if_pulled / 50);
    }
  }
}

}  // namespace
}  // namespace longspan::plan
