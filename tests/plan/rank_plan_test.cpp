// A plan is right when all ranks together compute every tile once, and when every key block is there in the step that uses it.
#include "plan/rank_plan.hpp"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>
#include <set>

#include "longspan/error.hpp"
#include "plan/halves.hpp"
#include "plan/memory.hpp"

namespace longspan::plan {
namespace {

struct Case {
  std::string pattern;
  std::vector<int64_t> lengths;
  int ranks;
  PartitionKind partition;
  bool reproducible;
  bool tight;
  bool stay;
};

const Shape kShape{.tokens = 0, .heads = 4, .kv_heads = 2, .head_dim = 16, .type = ElementType::bfloat16};

Options options_of(const Case& c, const Shape& shape, int64_t blocks) {
  Options options;
  options.partition = c.partition;
  options.reproducible = c.reproducible;
  options.output_type = shape.type;
  options.segment_blocks = 3, options.part_blocks = 2, options.on_gpu = c.ranks % 2 == 0;
  options.long_row_factor = 2;
  options.keys_can_be_read_again = !c.stay;
  const int64_t home = (blocks / c.ranks + 2) * shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  options.memory = int64_t{1} << 30;
  if (c.tight)
    options.memory =
        (c.stay ? home : 0) + 3 * block_row_bytes(shape, shape.type) + 6 * shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  options.exact_tiles = std::numeric_limits<int64_t>::max();
  return options;
}

// Units that are there at most when the engine's rule is played through: before step t the fetches up to t + ahead are started, after it
// goes what no later stripe keeps, and at a stripe's end what was kept for it.
int64_t most_there(const Shared& shared, const RankPlan& plan, int ahead) {
  const auto units = [&](const std::vector<Intervals>& blocks, const std::vector<Intervals>& but) {
    int64_t sum = 0;
    for (size_t k = 0; k < blocks.size(); ++k)
      sum += size_of(subtract(blocks[k], but[k])) * static_cast<int64_t>(shared.classes[k].kv_heads.size());
    return sum;
  };
  const std::vector<Intervals> none(shared.classes.size());
  std::vector<std::pair<size_t, size_t>> order;
  for (size_t s = 0; s < plan.stripes.size(); ++s)
    for (size_t step = 0; step < plan.stripes[s].fetch.size(); ++step) order.emplace_back(s, step);
  std::vector<Intervals> kept = none;
  size_t started = 0;
  int64_t here = 0, most = 0;
  for (size_t t = 0; t < order.size(); ++t) {
    for (; started <= t + static_cast<size_t>(ahead) && started < order.size(); ++started)
      here += units(plan.stripes[order[started].first].fetch[order[started].second], none);
    most = std::max(most, here);
    const auto& [s, step] = order[t];
    const Stripe& stripe = plan.stripes[s];
    here -= units(stripe.fetch[step], stripe.keep);
    if (step + 1 < stripe.fetch.size()) continue;
    here -= units(kept, stripe.keep);
    kept = stripe.keep;
  }
  EXPECT_EQ(here, units(kept, none));
  return most;
}

bool brings(const Stripe& stripe, int step) {
  const std::vector<Intervals>& fetch = stripe.fetch[static_cast<size_t>(step)];
  return std::any_of(fetch.begin(), fetch.end(), [](const Intervals& blocks) { return !blocks.empty(); });
}

// By its pairs: bit 2a + b of the quarters stands for rows 64a … and keys 64b ….
Intervals halves_looked_at(const kernels::Tile& tile) {
  const int64_t first = 2 * int64_t{tile.key};
  if (tile.form == kernels::Tile::Form::full) return {{first, first + 2 * tile.count}};
  Intervals halves;
  for (int half = 0; half < 2; ++half)
    if ((tile.quarters >> half & 1) != 0 || (tile.quarters >> (2 + half) & 1) != 0) append(halves, {first + half, first + half + 1});
  return halves;
}

// Whether the case's keys travel in halves.
bool expect_sound(const Case& c) {
  SCOPED_TRACE(c.pattern + " on " + std::to_string(c.ranks) + " ranks, " + std::string(name_of(c.partition)) +
               (c.reproducible ? ", reproducible" : "") + (c.tight ? ", tight" : ""));
  const Documents documents = Documents::from_lengths(c.lengths);
  Shape shape = kShape;
  shape.tokens = documents.tokens();
  const pattern::BoundPattern pattern(pattern::Pattern::parse(c.pattern), shape.heads, shape.kv_heads, documents);
  const Blocks blocks(documents);
  const Shared shared = make_shared(pattern, blocks, shape, c.ranks, options_of(c, shape, blocks.count()));
  const auto groups = static_cast<int>(pattern.groups().size());
  TileLists lists(pattern, blocks);

  std::map<std::pair<int, int64_t>, std::vector<Interval>> computed;  // (group, query block) -> key ranges given to somebody
  for (int rank = 0; rank < c.ranks; ++rank) {
    const RankPlan plan = make_rank_plan(shared, pattern, blocks, rank);
    EXPECT_LE(plan.memory.total() - plan.memory.lists, shared.options.memory);
    for (int ahead = 1; ahead <= 8; ++ahead) EXPECT_EQ(most_fetched_units(shared, plan, ahead), most_there(shared, plan, ahead)) << ahead;
    const int ahead = steps_ahead(shared, plan);
    if (ahead > 1) {
      EXPECT_LE(most_fetched_units(shared, plan, ahead) * plan.unit_bytes, shared.memory.received);
    }
    if (ahead < (shared.short_stripes_first ? 8 : 4)) {
      EXPECT_GT(most_fetched_units(shared, plan, ahead + 1) * plan.unit_bytes, shared.memory.received);
    }
    std::vector<Intervals> kept(shared.classes.size()), used_halves(shared.classes.size());
    int64_t moved = 0;  // bytes
    for (const Stripe& stripe : plan.stripes) {
      const int own = shared.own_keys_first ? 1 : 0;
      const int wraps = own + static_cast<int>(stripe.bounds.size() - 1 - stripe.first_group);  // to the first keys of all
      for (int step = own + 1; step < stripe.steps(); ++step)
        EXPECT_TRUE(brings(stripe, step) || brings(stripe, step - 1) || step == wraps)
            << "two steps of other ranks' keys that are all here could be one";
      std::vector<Intervals> used(shared.classes.size());
      for (const StripeRow& row : rows_of(shared, pattern, stripe, rank)) {
        computed[{row.group, row.block}].push_back(row.key_blocks);
        std::vector<kernels::Tile> tiles;
        lists.append(row.group, row.block, row.key_blocks, tiles);
        for (size_t k = 0; k < shared.classes.size(); ++k) {
          const auto& of = shared.classes[k].groups;
          if (std::find(of.begin(), of.end(), row.group) == of.end()) continue;
          for (const kernels::Tile& tile : tiles) {
            used[k] = unite(used[k], {{tile.key, tile.key + (tile.form == kernels::Tile::Form::full ? tile.count : 1)}});
            used_halves[k] = unite(used_halves[k], halves_looked_at(tile));
          }
        }
      }
      for (size_t k = 0; k < shared.classes.size(); ++k) {
        EXPECT_EQ(stripe.need[k], used[k]) << "exactly what the tiles touch is needed";
        Intervals fetched;
        for (int step = 0; step < stripe.steps(); ++step) {
          const Intervals& now = stripe.fetch[static_cast<size_t>(step)][k];
          EXPECT_TRUE(intersect(fetched, now).empty()) << "fetched twice in a stripe";
          for (const Interval& run : now)
            for (int64_t block = run.begin; block < run.end; ++block) EXPECT_EQ(step_of(shared, plan, stripe, block), step);
          fetched = unite(fetched, now);
        }
        EXPECT_TRUE(subtract(fetched, used[k]).empty()) << "fetched but not needed";
        const Intervals here = unite(unite(fetched, kept[k]), shared.keys_stay ? plan.own : Intervals{});
        EXPECT_TRUE(subtract(used[k], here).empty()) << "needed but not there";
        EXPECT_TRUE(subtract(stripe.keep[k], unite(fetched, kept[k])).empty()) << "kept what never came";
        for (const Interval& run : fetched) {
          const Interval whole{2 * run.begin, 2 * run.end};
          const int64_t halves = plan.halves.empty() ? whole.length() : size_of(clipped(plan.halves[k], whole));
          moved += halves * static_cast<int64_t>(shared.classes[k].kv_heads.size()) * plan.unit_bytes / 2;
        }
        kept[k] = stripe.keep[k];
      }
    }
    EXPECT_EQ(moved, shared.keys_stay ? plan.bytes_moved : plan.bytes_read_again);
    EXPECT_EQ(!plan.halves.empty(), shared.in_halves);
    for (size_t k = 0; k < plan.halves.size(); ++k) EXPECT_EQ(plan.halves[k], used_halves[k]) << "exactly what the tiles look at";
    if (shared.keys_stay) {
      EXPECT_GE(plan.bytes_moved, plan.bytes_lower_bound());
      if (!c.tight) {
        EXPECT_EQ(plan.bytes_moved, plan.bytes_lower_bound()) << "with memory enough nothing moves twice";
      }
    }
  }
  for (int group = 0; group < groups; ++group) {
    for (int64_t block = 0; block < blocks.count(); ++block) {
      const Intervals wanted = lists.candidates(group, block, {0, blocks.count()});
      int64_t covered = 0;
      Intervals all;
      for (const Interval& range : computed[{group, block}]) {
        covered += size_of(clipped(wanted, range));
        all = unite(all, clipped(wanted, range));
      }
      EXPECT_EQ(all, wanted) << "group " << group << " block " << block;
      EXPECT_EQ(covered, size_of(wanted)) << "computed twice: group " << group << " block " << block;
    }
  }
  return shared.in_halves;
}

TEST(RankPlan, EveryTileOnceAndEveryKeyInTime) {
  const std::vector<std::vector<int64_t>> corpora{{5000}, {1}, {700, 50, 60, 0, 40, 2500, 1, 129}};
  const std::vector<std::string> patterns{"causal",
                                          "causal & window(300)",
                                          "longformer(257, 3)",
                                          "bigbird(64, 3, 2, 1, 3)",
                                          "0-1: full; 2-3: causal & strided(256)",
                                          "rows(600, 610) | window(100)"};
  int in_halves = 0;
  for (const auto& lengths : corpora)
    for (const std::string& text : patterns)
      for (int ranks : {1, 2, 3, 4, 7})
        for (PartitionKind kind : {PartitionKind::contiguous, PartitionKind::zigzag, PartitionKind::balanced})
          for (int variant = 0; variant < 6; ++variant)
            in_halves += expect_sound({text, lengths, ranks, kind, variant % 2 == 1, variant / 2 != 0, variant / 2 == 1}) ? 1 : 0;
  EXPECT_GT(in_halves, 0) << "no case whose keys travel in halves";
}

// Halves travel where tiles look at one of most blocks, and some are left.
TEST(RankPlan, HalvesTravelWhereThatSavesMuch) {
  const Shape shape{.tokens = 1 << 18, .heads = 16, .kv_heads = 4, .head_dim = 128, .type = ElementType::bfloat16};
  const Documents documents = Documents::single(shape.tokens);
  const auto in_halves = [&](const char* text, int ranks) {
    const pattern::BoundPattern pattern(pattern::Pattern::parse(text), shape.heads, shape.kv_heads, documents);
    Options options;
    options.memory = int64_t{64} << 30;
    return make_shared(pattern, Blocks(documents), shape, ranks, options).in_halves;
  };
  for (const int ranks : {2, 4, 64}) {
    EXPECT_TRUE(in_halves("bigbird(64, 3, 2, 3, 1)", ranks)) << ranks;
    EXPECT_TRUE(in_halves("block_random(64, 2, 1) | (causal & window(4095))", ranks)) << ranks;
    EXPECT_FALSE(in_halves("causal", ranks)) << ranks;
    EXPECT_FALSE(in_halves("block_random(128, 2, 1)", ranks)) << ranks;
    EXPECT_FALSE(in_halves("causal & strided(512)", ranks)) << ranks;
    EXPECT_FALSE(in_halves("block_random(64, 600, 1)", ranks)) << ranks << " ranks, each of which needs all halves";
  }
  EXPECT_FALSE(in_halves("bigbird(64, 3, 2, 3, 1)", 1));
}

// Of rows that look at keys all over, ranks begin with other homes': in no step is one asked for twice its share. In one order for all it
// would be four times: of four groups each has the keys of two of the eight homes.
TEST(RankPlan, NoHomeIsAskedByAllRanksAtATime) {
  constexpr int kRanks = 8;
  const Shape shape{.tokens = 1 << 16, .heads = 4, .kv_heads = 4, .head_dim = 128, .type = ElementType::bfloat16};
  const pattern::BoundPattern pattern(pattern::Pattern::parse("block_random(128, 40, 1)"), shape.heads, shape.kv_heads,
                                      Documents::single(shape.tokens));
  const Blocks blocks(pattern.documents());
  Options options;
  options.memory = int64_t{4} << 30;
  options.stripes = 1;
  const Shared shared = make_shared(pattern, blocks, shape, kRanks, options);
  std::vector<std::vector<int64_t>> asked(5, std::vector<int64_t>(kRanks));  // [step][home] blocks
  for (int rank = 0; rank < kRanks; ++rank) {
    const RankPlan plan = make_rank_plan(shared, pattern, blocks, rank);
    ASSERT_EQ(plan.stripes.size(), 1u);
    ASSERT_GE(plan.stripes[0].steps(), 5) << "own keys, four groups, and what may be left over";
    for (size_t step = 0; step < 5; ++step)
      for (int home = 0; home < kRanks; ++home)
        asked[step][static_cast<size_t>(home)] += size_of(intersect(plan.stripes[0].fetch[step][0], shared.partition.blocks_of(home)));
  }
  for (size_t step = 1; step < 5; ++step) {
    const double mean = static_cast<double>(std::accumulate(asked[step].begin(), asked[step].end(), int64_t{0})) / kRanks;
    for (int64_t of_home : asked[step]) EXPECT_LT(static_cast<double>(of_home), 2 * mean) << "step " << step;
  }
}

// Where memory keeps what came, only the first stripe takes its keys in several steps; and each does when the ones before it are emptied.
TEST(RankPlan, KeysThatAreHereAreOneStep) {
  const Documents documents = Documents::from_lengths({6000});
  Shape shape = kShape;
  shape.tokens = 6000;
  const pattern::BoundPattern pattern(pattern::Pattern::parse("full"), shape.heads, shape.kv_heads, documents);
  const Blocks blocks(documents);
  Options options;
  options.memory = int64_t{1} << 30;
  options.step_bytes = 4 * shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  options.stripes = 2;
  const Shared shared = make_shared(pattern, blocks, shape, 2, options);
  RankPlan plan = make_rank_plan(shared, pattern, blocks, 1);
  ASSERT_EQ(plan.stripes.size(), 2U);
  EXPECT_GT(plan.stripes[0].steps(), 3);
  EXPECT_EQ(plan.stripes[1].steps(), 2) << "own keys, and all of the others'";
  const int first = plan.stripes[0].steps();
  plan.stripes[0].query_blocks.clear();
  std::fill(plan.stripes[0].need.begin(), plan.stripes[0].need.end(), Intervals{});
  plan_fetches(shared, plan);
  EXPECT_EQ(plan.stripes[1].steps(), first);
}

// On a GPU a further step costs a row's states: keys come in one where own ones take long enough, or where rows find little in them.
TEST(RankPlan, GroupsThatAreWorthwhileOnAGpu) {
  const Shape shape{.tokens = 1 << 17, .heads = 16, .kv_heads = 16, .head_dim = 128, .type = ElementType::bfloat16};
  const auto steps = [&](const char* text, int ranks, int rank, bool on_gpu, bool reproducible = false) {
    const pattern::BoundPattern pattern(pattern::Pattern::parse(text), shape.heads, shape.kv_heads, Documents::single(shape.tokens));
    const Blocks blocks(pattern.documents());
    Options options;
    options.memory = int64_t{64} << 30;
    options.stripes = 1;
    options.reproducible = reproducible;
    options.on_gpu = on_gpu;
    const Shared shared = make_shared(pattern, blocks, shape, ranks, options);
    const RankPlan plan = make_rank_plan(shared, pattern, blocks, rank);
    std::vector<int64_t> sizes;
    for (const Stripe& stripe : plan.stripes) sizes.push_back(size_of(stripe.query_blocks));
    if (shared.own_keys_first || !on_gpu || reproducible)
      EXPECT_EQ(sizes, std::vector<int64_t>{size_of(plan.own)});
    else  // short ones first, as long as they are not too short
      EXPECT_EQ(sizes, ranks == 2 ? std::vector<int64_t>({64, 64, 64, 128, 128, 64}) : std::vector<int64_t>({64, 64, 64, 64}));
    return plan.stripes.back().steps();
  };
  EXPECT_EQ(steps("causal", 2, 0, false), 5);
  EXPECT_EQ(steps("causal", 2, 0, true), 2) << "own keys take longer than the others' to come";
  EXPECT_EQ(steps("causal", 64, 33, true), 7) << "they do not, rows find many tiles in each group, and one ends where the order begins";
  EXPECT_GE(steps("block_random(64, 3, 1)", 4, 1, false), 5);
  EXPECT_EQ(steps("block_random(64, 3, 1)", 4, 1, true), 1) << "few tiles, of own keys too: the next stripe's come beside a stripe";
  EXPECT_EQ(steps("block_random(64, 3, 1)", 2, 1, true), 1);
  EXPECT_EQ(steps("block_random(128, 80, 1)", 4, 1, true), 4) << "own keys, and three groups in which rows find 20 tiles";
  EXPECT_EQ(steps("window(1023, 0)", 4, 1, true), 2) << "most rows look at own keys only";
  EXPECT_EQ(steps("causal", 2, 1, true, true), steps("causal", 2, 1, false, true)) << "there is no step of own keys";
}

// Rows of blocks all over, 512 of them on each of two ranks: the first stripe is divided in a quarter, a quarter and a half.
TEST(RankPlan, FewerStripesWhereQueryHeadsShareKeys) {
  const auto sizes = [](int kv_heads) {
    const Shape shape{.tokens = 1 << 17, .heads = 16, .kv_heads = kv_heads, .head_dim = 128, .type = ElementType::bfloat16};
    const pattern::BoundPattern pattern(pattern::Pattern::parse("block_random(64, 3, 1)"), shape.heads, shape.kv_heads,
                                        Documents::single(shape.tokens));
    const Blocks blocks(pattern.documents());
    Options options;
    options.memory = int64_t{64} << 30;
    options.stripes = 1;
    options.on_gpu = true;
    std::vector<int64_t> sizes;
    for (const Stripe& stripe : make_rank_plan(make_shared(pattern, blocks, shape, 2, options), pattern, blocks, 1).stripes)
      sizes.push_back(size_of(stripe.query_blocks));
    return sizes;
  };
  EXPECT_EQ(sizes(4), std::vector<int64_t>({64, 64, 128, 256}));
  EXPECT_EQ(sizes(8), std::vector<int64_t>({64, 64, 64, 128, 128, 64}));  // none of fewer than 64
}

// 131,072 rows of 4 KiB of queries and as much of results: 1 GiB on one rank, half of it on two.
TEST(RankPlan, RowsThatAreCopiedComeInSeveralStripes) {
  Shape shape{.tokens = 1 << 17, .heads = 16, .kv_heads = 2, .head_dim = 128, .type = ElementType::bfloat16};
  const auto stripes = [&](const char* text, int ranks, bool copied, int64_t memory = int64_t{64} << 30) {
    const pattern::BoundPattern pattern(pattern::Pattern::parse(text), shape.heads, shape.kv_heads, Documents::single(shape.tokens));
    const Blocks blocks(pattern.documents());
    Options options;
    options.memory = memory;
    options.output_type = ElementType::bfloat16;
    options.stripes = 1;
    options.rows_are_copied = copied;
    const Shared shared = make_shared(pattern, blocks, shape, ranks, options);
    return make_rank_plan(shared, pattern, blocks, 0).stripes.size();
  };
  EXPECT_EQ(stripes("causal & window(4095)", 1, true), 12u);
  EXPECT_EQ(stripes("causal & window(4095)", 2, true), 8u);
  EXPECT_EQ(stripes("causal & window(4095)", 8, true), 2u);
  EXPECT_EQ(stripes("causal & window(4095)", 16, true), 1u);
  EXPECT_EQ(stripes("causal & window(4095)", 1, false), 1u);
  EXPECT_EQ(stripes("causal", 1, true), 12u);
  EXPECT_EQ(stripes("causal", 2, true), 8u);
  // A home of 512 MiB, and no place for as much of the other rank's until a later stripe: as few stripes as memory allows.
  shape.kv_heads = 16;
  EXPECT_EQ(stripes("causal", 2, true, int64_t{3072} << 20), 2u);
  EXPECT_EQ(stripes("causal", 2, true, int64_t{8192} << 20), 8u);
}

// Stripes of so many intervals that they are united while rows are still to come, whose own then reach into, over and past known ones.
TEST(RankPlan, WhatEarlierRowsLookAtIsNotCollectedAgain) {
  for (const std::string text :
       {"block_random(128, 16, 5) | block_columns(128, 40, 3, 4)", "0-1: block_random(128, 16, 1) | window(200); 2-3: causal"})
    for (int ranks : {1, 3}) expect_sound({text, {128 * 3000 - 3, 200}, ranks, PartitionKind::contiguous, false, false, true});
}

TEST(RankPlan, LongRowsTravelOnlyWhereThatMovesLess) {
  const Documents documents = Documents::single(128 * 200);
  Shape shape = kShape;
  shape.tokens = documents.tokens();
  const pattern::BoundPattern pattern(pattern::Pattern::parse("window(100, 100) | rows(0, 3)"), shape.heads, shape.kv_heads, documents);
  const Blocks blocks(documents);
  Options options;
  options.segment_blocks = 16;
  const Shared shared = make_shared(pattern, blocks, shape, 4, options);
  ASSERT_EQ(shared.long_rows.size(), 1u);
  EXPECT_LT(shared.long_bytes_travelling, shared.long_bytes_if_pulled);
  EXPECT_EQ(shared.long_rows[0].block, 0);
  // No piece reaches beyond the keys of the rank that computes it.
  for (const Piece& piece : shared.pieces) EXPECT_TRUE(subtract({piece.key_blocks}, shared.partition.blocks_of(piece.rank)).empty());
  int64_t received = 0;
  for (int rank = 0; rank < 4; ++rank) received += make_rank_plan(shared, pattern, blocks, rank).row_bytes_moved;
  EXPECT_EQ(received, shared.long_bytes_travelling);
  // One rank pulls nothing, so nothing travels; a reproducible plan cuts at the same places on any number of ranks.
  EXPECT_TRUE(make_shared(pattern, blocks, shape, 1, options).pieces.empty());
  options.reproducible = true;
  const auto cuts = [&](int ranks) {
    std::vector<std::pair<int64_t, int64_t>> places;
    for (const Piece& piece : make_shared(pattern, blocks, shape, ranks, options).pieces)
      places.emplace_back(piece.key_blocks.begin, piece.key_blocks.end);
    return places;
  };
  EXPECT_EQ(cuts(1), cuts(4));
  EXPECT_EQ(cuts(3), cuts(7));
}

// A GPU computes long rows in parts, on one rank too, where its keys are there all the time; and fewer states travel than pieces' of CPUs.
TEST(RankPlan, LongRowsOnAGpuComeInParts) {
  const Documents documents = Documents::single(128 * 200);
  Shape shape = kShape;
  shape.tokens = documents.tokens();
  const pattern::BoundPattern pattern(pattern::Pattern::parse("window(100, 100) | rows(0, 3) & !columns(2560, 3200)"), shape.heads,
                                      shape.kv_heads, documents);
  const Blocks blocks(documents);
  Options options;
  options.segment_blocks = 16, options.part_blocks = 5;
  const auto moved = [&](const Shared& shared) {
    int64_t bytes = 0;
    for (int rank = 0; rank < 4; ++rank) bytes += make_rank_plan(shared, pattern, blocks, rank).row_bytes_moved;
    return bytes;
  };
  const int64_t moved_by_cpus = moved(make_shared(pattern, blocks, shape, 4, options));
  options.on_gpu = true;
  const int64_t moved_by_gpus = moved(make_shared(pattern, blocks, shape, 4, options));
  EXPECT_GT(moved_by_gpus, 0);
  EXPECT_LT(moved_by_gpus, moved_by_cpus);
  const Shared shared = make_shared(pattern, blocks, shape, 1, options);
  ASSERT_EQ(shared.long_rows.size(), 1u);
  EXPECT_EQ(shared.long_bytes_travelling, 0);
  const RankPlan plan = make_rank_plan(shared, pattern, blocks, 0);
  ASSERT_TRUE(plan.stripes.front().is_long());
  std::vector<Interval> parts;
  for (const StripeRow& row : rows_of(shared, pattern, plan.stripes.front(), 0)) parts.push_back(row.key_blocks);
  int64_t looked_at = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_LE(parts[i].length(), 5);
    EXPECT_TRUE(i == 0 || parts[i - 1].end <= parts[i].begin);
    EXPECT_FALSE(clipped(shared.long_rows[0].key_blocks, parts[i]).empty());
    looked_at += size_of(clipped(shared.long_rows[0].key_blocks, parts[i]));
  }
  EXPECT_EQ(looked_at, size_of(shared.long_rows[0].key_blocks));
  EXPECT_EQ(looked_at, 200 - 5);  // but for blocks 20 to 24, which are no part
  EXPECT_EQ(parts.size(), 200u / 5 - 1);

  // A long stripe has no more states than there is room for, and a piece is one part where that of all its parts would be none.
  const int64_t unit = shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  const int64_t row = block_row_bytes(shape, options.output_type);
  options.keys_can_be_read_again = false;
  std::set<int64_t> part_blocks;
  options.memory = 200 * unit;
  const auto is_planned = [&](const pattern::BoundPattern& what, bool cut) {
    try {
      return make_shared(what, blocks, shape, 1, options).pieces.empty() != cut;
    } catch (const Error&) {
      return false;
    }
  };
  // Nothing is cut for that where there would be no plan then.
  const pattern::BoundPattern short_rows(pattern::Pattern::parse("window(100, 100)"), shape.heads, shape.kv_heads, documents);
  while (!is_planned(short_rows, false)) options.memory += 1000;
  EXPECT_TRUE(is_planned(pattern, false));
  while (!is_planned(pattern, true)) options.memory += 1000;
  for (const int64_t end = options.memory + 60 * row; options.memory < end; options.memory += row / 2) {
    const Shared tight = make_shared(pattern, blocks, shape, 1, options);
    ASSERT_FALSE(tight.pieces.empty());
    const int64_t most = tight.memory.stripe / row;
    part_blocks.insert(tight.part_blocks);
    EXPECT_EQ(tight.part_blocks, most >= 16 ? 5 : 80) << most;
    size_t found = 0;
    for (const Stripe& stripe : make_rank_plan(tight, pattern, blocks, 0).stripes) {
      if (!stripe.is_long()) continue;
      const std::vector<StripeRow> in_parts = rows_of(tight, pattern, stripe, 0);
      found += in_parts.size();
      EXPECT_LE(static_cast<int64_t>(in_parts.size()), most);
    }
    EXPECT_EQ(found, tight.part_blocks == 5 ? parts.size() : 3u);
  }
  EXPECT_EQ(part_blocks.size(), 2u) << "both ways have been taken";
  // Nor where keys would not stay any more.
  options.keys_can_be_read_again = true, options.memory = 400 * unit - 1;
  EXPECT_TRUE(make_shared(pattern, blocks, shape, 1, options).pieces.empty());
  EXPECT_FALSE((++options.memory, make_shared(pattern, blocks, shape, 1, options)).pieces.empty());
}

TEST(RankPlan, TooLittleMemorySaysWhatWouldDo) {
  const Documents documents = Documents::single(10000);
  Shape shape = kShape;
  shape.tokens = documents.tokens();
  const pattern::BoundPattern pattern(pattern::Pattern::parse("causal"), shape.heads, shape.kv_heads, documents);
  const Blocks blocks(documents);
  Options options;
  options.memory = 1000;
  try {
    make_shared(pattern, blocks, shape, 2, options);
    FAIL() << "1000 bytes are enough?";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    const std::string mend = error.problems().front().mend;
    const auto at = mend.find("--memory ");
    ASSERT_NE(at, std::string::npos) << mend;
    options.memory = std::stoll(mend.substr(at + 9)) << 20;
    EXPECT_NO_THROW(make_shared(pattern, blocks, shape, 2, options)) << "what the message recommends must do";
  }
}

// 12 million tokens in blocks of keys that arrive one by one: what is refused is the rank's plan, which is larger than its memory.
TEST(RankPlan, ThousandMillionStepsAreRefused) {
  const Documents documents = Documents::single(12'582'912);
  const Shape shape{.tokens = documents.tokens(), .heads = 1, .kv_heads = 1, .head_dim = 128, .type = ElementType::bfloat16};
  const pattern::BoundPattern pattern(pattern::Pattern::parse("causal"), shape.heads, shape.kv_heads, documents);
  const Blocks blocks(documents);
  Options options;
  options.memory = 1 << 20;
  options.output_type = shape.type;
  try {
    make_rank_plan(make_shared(pattern, blocks, shape, 4, options), pattern, blocks, 3);
    FAIL() << "1 MiB is enough?";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_EQ(error.problems().front().what, "too little memory: a rank would need more than 1048576 steps");
    const std::string mend = error.problems().front().mend;
    options.memory = std::stoll(mend.substr(mend.find("--memory ") + 9)) << 20;
    EXPECT_NO_THROW(make_rank_plan(make_shared(pattern, blocks, shape, 4, options), pattern, blocks, 3)) << mend;
  }
}

TEST(RankPlan, BalancedCutsCausalCostEvenly) {
  const Documents documents = Documents::single(128 * 400);
  Shape shape = kShape;
  shape.tokens = documents.tokens();
  const pattern::BoundPattern pattern(pattern::Pattern::parse("causal"), shape.heads, shape.kv_heads, documents);
  const Blocks blocks(documents);
  for (PartitionKind kind : {PartitionKind::balanced, PartitionKind::zigzag}) {
    Options options;
    options.partition = kind;
    const Shared shared = make_shared(pattern, blocks, shape, 8, options);
    int64_t most = 0, sum = 0;
    for (int rank = 0; rank < 8; ++rank) {
      const int64_t tiles = make_rank_plan(shared, pattern, blocks, rank).weighted_tiles();
      most = std::max(most, tiles);
      sum += tiles;
    }
    EXPECT_LT(static_cast<double>(most) * 8, 1.06 * static_cast<double>(sum)) << name_of(kind);
  }
}

}  // namespace
}  // namespace longspan::plan
