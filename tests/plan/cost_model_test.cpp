// The cost model: what must hold whatever the rates, and figures that can be worked out by hand.
#include "plan/cost_model.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "plan/halves.hpp"

namespace longspan::plan {
namespace {

constexpr double kMegabyte = 1e6;

Rates some_rates() {
  Rates rates;
  rates.full_quarter = 40e-6;
  rates.partial_quarter = 60e-6;
  rates.state = 1e-7;
  rates.list_entry = 1e-7;
  rates.key_bytes_per_second = 2e9;
  rates.within_host = {1e-6, 8e9};
  rates.across_hosts = {20e-6, 1e9};
  rates.ranks_per_host = 4;
  return rates;
}

struct Case {
  Case(const std::string& text, int64_t tokens, int ranks, int stripes = 16, int64_t memory = int64_t{1} << 40, bool again = false)
      : shape{.tokens = tokens, .heads = 4, .kv_heads = 2, .head_dim = 64, .type = ElementType::bfloat16},
        pattern(pattern::Pattern::parse(text), 4, 2, Documents::single(tokens)),
        blocks(Documents::single(tokens)) {
    options.stripes = stripes;
    options.memory = memory;
    options.keys_can_be_read_again = again;
    shared.emplace(make_shared(pattern, blocks, shape, ranks, options));
  }
  RankPlan plan(int rank) const { return make_rank_plan(*shared, pattern, blocks, rank); }
  RankWork work(int rank, int per_host = 4) const { return work_of(*shared, pattern, blocks, plan(rank), per_host); }
  JobTime time(const Rates& rates) {
    if (works.empty())
      for (int rank : sampled_ranks(shared->partition.ranks())) works.push_back(work(rank, rates.ranks_per_host));
    return play(works, shared->partition.ranks(), rates);
  }
  Shape shape;
  pattern::BoundPattern pattern;
  Blocks blocks;
  Options options;
  std::optional<Shared> shared;
  std::vector<RankWork> works;
};

double quarters_of(const RankWork& work) {
  double sum = 0;
  for (const StripeWork& stripe : work.stripes)
    for (const StepWork& step : stripe.steps) sum += step.full_quarters + step.partial_quarters;
  return sum;
}

int64_t fetched(const RankWork& work) {
  int64_t sum = 0;
  for (const StripeWork& stripe : work.stripes)
    for (const StepWork& step : stripe.steps) sum += step.bytes_within + step.bytes_across;
  return sum;
}

TEST(CostModel, WorkIsThatOfThePlan) {
  for (const char* text : {"causal", "causal & window(700)", "bigbird(64, 3, 3, 1, 0)", "0-1: causal; *: full", "causal & strided(512)"}) {
    for (int ranks : {1, 2, 4, 7}) {
      const Case job(text, 12'345, ranks);
      for (int rank = 0; rank < ranks; ++rank) {
        SCOPED_TRACE(std::string(text) + " rank " + std::to_string(rank) + " of " + std::to_string(ranks));
        const RankPlan plan = job.plan(rank);
        const RankWork work = job.work(rank, 2);
        EXPECT_NEAR(quarters_of(work), static_cast<double>(plan.weighted_quarters()), 1e-6 * static_cast<double>(plan.weighted_quarters()));
        EXPECT_EQ(fetched(work), plan.bytes_moved);
        int64_t asked = 0;
        for (const auto& [home, bytes] : work.bytes_from) {
          EXPECT_NE(home, rank);
          asked += bytes;
        }
        EXPECT_EQ(asked, fetched(work));
        const RankTime time = play(work, some_rates());
        EXPECT_TRUE(std::isfinite(time.total()));
        EXPECT_GE(time.exchange, 0);
        EXPECT_LE(time.attend, quarters_of(work) * 60e-6 * 1.001 + 1);
      }
    }
  }
}

TEST(CostModel, FullTilesCostWhatTheyCost) {
  // 1,024 tokens, all pairs, one rank: 64 tiles × 4 quarters × 4 heads of 40 µs.
  const Case job("full", 1024, 1, 1);
  const RankTime time = play(job.work(0), some_rates());
  EXPECT_NEAR(time.attend, 64 * 4 * 4 * 40e-6, 1e-9);
  EXPECT_NEAR(time.rows, 1024 * 4 * 1e-7, 1e-12);
  EXPECT_NEAR(time.plan + time.load, 1024 * 2 * 64 * 2 * 2 / 2e9, 1e-12);  // the lists are made while the keys come
  EXPECT_GT(time.plan, 0);
  EXPECT_EQ(time.exchange, 0);
}

// Two stripes of 10 rows: lists of 3 s at first, compute of 10 s, queries take 5 s to come and results 4 s to go.
TEST(CostModel, RowsComeAndGoBesideTheRest) {
  RankWork work;
  StripeWork stripe;
  stripe.steps = {{.full_quarters = 10}};
  stripe.states = 10, stripe.entries = 3, stripe.bytes_in = stripe.bytes_out = 1;
  work.stripes = {stripe, stripe};
  Rates rates;
  rates.full_quarter = rates.list_entry = 1;
  rates.state_in = 0.5, rates.state_out = 0.4;
  RankTime time = play(work, rates);
  EXPECT_NEAR(time.plan, 3, 1e-9);      // the second lists are made while the first stripe is computed
  EXPECT_NEAR(time.rows, 2 + 4, 1e-9);  // the rest of the first queries' 5 s, and the last results
  EXPECT_NEAR(time.total(), 3 + 2 + 10 + 10 + 4, 1e-9);
  work.stripes[0].steps.push_back({});  // only other ranks have work in this one: the lists are made before it
  time = play(work, rates);
  EXPECT_NEAR(time.attend, 20, 1e-9);
  EXPECT_NEAR(time.total(), 3 + 2 + 10 + 10 + 4, 1e-9);
}

// Three stripes whose compute takes no time: queries take 4 s each to come, results 2 s to go, and both 1.5 times as long together.
TEST(CostModel, RowsComeAndGoAtATime) {
  RankWork work;
  StripeWork stripe;
  stripe.steps = {{}};
  stripe.states = 1, stripe.bytes_in = stripe.bytes_out = 1;
  work.stripes = {stripe, stripe, stripe};
  Rates rates;
  rates.state_in = 4, rates.state_out = 2;
  EXPECT_NEAR(play(work, rates).total(), 4 + 4 + 2 + 4 + 2 + 2, 1e-9);  // results wait for the next queries, asked for before
  rates.both_ways = 1.5;
  // Results are gone 3 s after the queries before them came, of which 2 s are done then: the next ones come 2 s later.
  EXPECT_NEAR(play(work, rates).total(), 4 + 5 + 5 + 2, 1e-9);
  rates.both_ways = 1;
  EXPECT_NEAR(play(work, rates).total(), 4 + 4 + 4 + 2, 1e-9);
  rates.state_out = 6;  // now results are what all waits for: stripe 2 computes into the buffer of stripe 0
  EXPECT_NEAR(play(work, rates).total(), 4 + 6 + 6 + 6, 1e-9);
  rates.write_bytes_per_second = 1;  // a file's: one thread
  EXPECT_NEAR(play(work, rates).total(), 3 * (4 + 6), 1e-9);
}

// Keys take 10 s to load; lists 2 s for their row and 1 s for each of 3 entries; the queries of the long rows, which come first, 4 s.
TEST(CostModel, ListsAndLongRowsComeBesideTheKeys) {
  RankWork work;
  StripeWork stripe;
  stripe.steps = {{.full_quarters = 20}};
  stripe.list_rows = 1, stripe.entries = stripe.list_bytes = 3;
  work.key_bytes = 10;
  work.stripes = {stripe, stripe};
  Rates rates;
  rates.full_quarter = rates.list_entry = rates.key_bytes_per_second = 1;
  rates.list_row = 2;
  RankTime time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.plan, 10);
  EXPECT_DOUBLE_EQ(time.load, 0);
  EXPECT_DOUBLE_EQ(time.total(), 10 + 20 + 20);
  work.most_list_bytes = 5;  // no room for both
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.plan, 5);
  EXPECT_DOUBLE_EQ(time.load, 5);
  EXPECT_DOUBLE_EQ(time.total(), 10 + 20 + 20);
  work.most_list_bytes = 6;
  work.stripes[0].row_bytes = 4;
  rates.across_hosts.bytes_per_second = 1;
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.exchange, 4);
  EXPECT_DOUBLE_EQ(time.plan, 10);  // there is time to begin the second stripe's
  EXPECT_DOUBLE_EQ(time.load, 0);
  EXPECT_DOUBLE_EQ(time.total(), 5 + 4 + 5 + 20 + 20);
  work.key_bytes = 8;
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.plan, 5);
  EXPECT_DOUBLE_EQ(time.total(), 5 + 4 + 20 + 20);  // the second stripe's beside compute
}

// The same by a thread of their own: three stripes, lists of 4 s each, keys of 10 s, compute of 3 s.
TEST(CostModel, ListsComeBesideEverything) {
  RankWork work;
  StripeWork stripe;
  stripe.steps = {{.full_quarters = 3}};
  stripe.entries = stripe.list_bytes = 4;
  work.key_bytes = 10;
  work.stripes = {stripe, stripe, stripe};
  Rates rates;
  rates.full_quarter = rates.list_entry = rates.key_bytes_per_second = 1;
  rates.lists_beside = true;
  RankTime time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.load, 10);
  EXPECT_DOUBLE_EQ(time.plan, 0);  // there after 4, 8 and 12 s, wanted at 10, 13 and 16
  EXPECT_DOUBLE_EQ(time.total(), 10 + 3 * 3);
  work.most_list_bytes = 8;  // of two stripes: the third's are begun when the first's are used no more, at 13 s, and there at 17 s
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.plan, 1);
  EXPECT_DOUBLE_EQ(time.total(), 10 + 3 * 3 + 1);
  work.most_list_bytes = 4;  // of one beside the one in use, whatever the room: begun at 10 and 13 s
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.plan, 1 + 1);
}

// Own keys take 10 s to load. Step 1 fetches half as many, from one home, which has loaded them after 5 s; they are 4 s on their way. Those
// of step 2 can go at the end only.
TEST(CostModel, FirstKeysComeWhileOthersAreLoaded) {
  RankWork work;
  StripeWork stripe;
  stripe.steps = {{.full_quarters = 1},
                  {.full_quarters = 1, .bytes_across = 5, .messages_across = 1},
                  {.full_quarters = 1, .bytes_across = 5, .messages_across = 1}};
  work.stripes.push_back(stripe);
  work.key_bytes = 10, work.ahead = 3;
  Rates rates;
  rates.full_quarter = rates.key_bytes_per_second = 1;
  rates.across_hosts.bytes_per_second = 1.25;
  RankTime time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.exchange, 2);  // step 2's come at 14 s, when two steps have been computed
  EXPECT_DOUBLE_EQ(time.in_flight, 8);
  work.stripes[0].steps[1].messages_across = 2;  // from two homes, which send a quarter of theirs each: 2.5, then 7.5 s
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.exchange, 0);
  work.ahead = 1;  // step 1's alone may start early
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.exchange, 3);  // step 2's start at 11 s
}

TEST(CostModel, KeysThatStayInRowsAreLookedThrough) {
  RankWork work;
  StripeWork stripe;
  stripe.steps = {{.full_quarters = 1}};
  work.stripes.push_back(stripe);
  work.key_bytes = work.masked_bytes = 100, work.sent_bytes = 20, work.keys_in_rows = true;
  Rates rates;
  rates.full_quarter = 1, rates.key_bytes_per_second = 10;
  EXPECT_DOUBLE_EQ(play(work, rates).load, 10);  // they cannot
  rates.row_bytes_per_second = 50;
  EXPECT_DOUBLE_EQ(play(work, rates).load, 2 + 2);
  work.masked_bytes = 0;
  EXPECT_DOUBLE_EQ(play(work, rates).load, 2);
  work.keys_in_rows = false;
  EXPECT_DOUBLE_EQ(play(work, rates).load, 10);
}

TEST(CostModel, KeysStayInRowsWhereLittleIsMadeOfThem) {
  EXPECT_TRUE(keys_stay_in_rows(255 * 8, 8, 0));
  EXPECT_FALSE(keys_stay_in_rows(256 * 8, 8, 0));  // read so often that the pool is worth its making
  EXPECT_TRUE(keys_stay_in_rows(8, 8, 4));
  EXPECT_FALSE(keys_stay_in_rows(8, 8, 5));  // most come into the pool anyway
  EXPECT_FALSE(keys_stay_in_rows(0, 0, 0));
  const Case window("causal & window(1000)", 128 * 100, 2), causal("causal", 128 * 1000, 1);
  const RankWork of_window = window.work(1), of_causal = causal.work(0);  // 1,001 tiles of 128 × 128 for a unit
  EXPECT_TRUE(of_window.keys_in_rows);
  EXPECT_EQ(of_window.sent_bytes, 8 * 2 * kernels::unit_bytes(ElementType::bfloat16, 64));
  EXPECT_FALSE(of_causal.keys_in_rows);
  EXPECT_EQ(of_window.masked_bytes, of_window.key_bytes);
  EXPECT_EQ(Case("block_window(64, 1, 1)", 128 * 100, 2).work(1).masked_bytes, 0);
}

// The picture at the head of cost_model.hpp: compute 10 each; keys of step 1 take 4, of step 2 15.
TEST(CostModel, NextKeysComeWhileAStepComputes) {
  RankWork work;
  StripeWork stripe;
  stripe.steps = {{.full_quarters = 10},
                  {.full_quarters = 10, .bytes_across = 4'000'000, .messages_across = 1},
                  {.full_quarters = 10, .bytes_across = 15'000'000, .messages_across = 1}};
  work.stripes.push_back(stripe);
  Rates rates;
  rates.full_quarter = 1;
  rates.across_hosts.bytes_per_second = kMegabyte;
  RankTime time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.attend, 30);
  EXPECT_DOUBLE_EQ(time.exchange, 5);
  EXPECT_DOUBLE_EQ(time.in_flight, 19);
  EXPECT_DOUBLE_EQ(time.total(), 35);
  rates.hidden_byte = 1e-6;  // 4 s and 15 s more of compute in steps 0 and 1, behind which both messages hide
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.attend, 49);
  EXPECT_DOUBLE_EQ(time.exchange, 0);
  rates.hidden_byte = 0;
  rates.link_slowdown = 2;  // 30 s from the beginning of step 1, which takes 10
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.attend, 30);
  EXPECT_DOUBLE_EQ(time.exchange, 20);
  EXPECT_DOUBLE_EQ(time.in_flight, 38);
  rates.link_slowdown = 1, rates.exposed_byte = 1e-7;  // 0.4 s and 1.5 s after their keys have come, in which the last come nearer
  time = play(work, rates);
  EXPECT_DOUBLE_EQ(time.attend, 30);
  EXPECT_DOUBLE_EQ(time.exchange, 0.4 + 4.6 + 1.5);
}

TEST(CostModel, AFileIsReadAheadAndWrittenBehind) {
  RankWork work;
  for (int s = 0; s < 4; ++s) {
    StripeWork stripe;
    stripe.steps = {{.full_quarters = 10}};
    stripe.bytes_in = stripe.bytes_out = 1'000'000;
    work.stripes.push_back(stripe);
  }
  Rates rates;
  rates.full_quarter = 1;
  rates.read_bytes_per_second = rates.write_bytes_per_second = kMegabyte;
  EXPECT_DOUBLE_EQ(play(work, rates).io, 2);  // the first queries, the last results
  rates.write_bytes_per_second = kMegabyte / 30;
  const RankTime slow = play(work, rates);
  EXPECT_GT(slow.total(), 4 * 30);  // the disk is what it takes
  EXPECT_DOUBLE_EQ(slow.attend, 40);
}

TEST(CostModel, MoreRanksTakeNoLongerAndSlowerRatesNoLess) {
  for (const char* text : {"causal", "causal & window(4095)", "causal & block_random(128, 20, 1, 1)"}) {
    double before = std::numeric_limits<double>::infinity();
    for (int ranks : {1, 2, 4, 8, 16, 64}) {
      SCOPED_TRACE(std::string(text) + " on " + std::to_string(ranks));
      Case job(text, 1 << 18, ranks);
      const JobTime time = job.time(some_rates());
      EXPECT_TRUE(std::isfinite(time.seconds));
      EXPECT_GT(time.seconds, 0);
      EXPECT_LT(time.seconds, before);
      EXPECT_GE(time.imbalance, 1);
      EXPECT_GE(time.exposed, 0);
      EXPECT_LT(time.exposed, 1);
      EXPECT_GT(time.memory, 0);
      before = time.seconds;
      for (double Rates::*rate : {&Rates::full_quarter, &Rates::partial_quarter, &Rates::partial_tile, &Rates::tile_row, &Rates::state,
                                  &Rates::list_row, &Rates::list_entry, &Rates::hidden_byte, &Rates::exposed_byte, &Rates::link_slowdown}) {
        Rates slower = some_rates();
        slower.*rate = 2 * slower.*rate + 1e-9;
        EXPECT_GE(job.time(slower).seconds, time.seconds * (1 - 1e-12));
      }
      Rates slower = some_rates();
      slower.across_hosts.bytes_per_second /= 10;
      EXPECT_GE(job.time(slower).seconds, time.seconds * (1 - 1e-12));
      EXPECT_GE(job.time(slower).exposed, time.exposed - 1e-12);
    }
  }
}

// A window of 64 sees of each block of 128 rows its own keys and the 64 before: two partial tiles with 3 and 1 quarters, but for the first
// block, which has one. 32 blocks, 4 heads.
TEST(CostModel, PartialTilesAreCountedBesideTheirQuarters) {
  const Case job("causal & window(64)", 32 * 128, 1, 1);
  const RankWork work = job.work(0);
  double tiles = 0, quarters = 0, rows = 0;
  for (const StripeWork& stripe : work.stripes)
    for (const StepWork& step : stripe.steps) tiles += step.partial_tiles, quarters += step.partial_quarters, rows += step.tile_rows;
  EXPECT_NEAR(quarters, 4 * (32 * 3 + 31), 1e-6);
  EXPECT_NEAR(tiles, 4 * (32 + 31), 1e-6);
  EXPECT_NEAR(rows, 4 * 32, 1e-6);
}

TEST(CostModel, KeysReadAgainComeFromTheFile) {
  const Case job("causal & window(2000)", 16'384, 2, 16, 3 << 20, true);
  ASSERT_FALSE(job.shared->keys_stay);
  const RankWork work = job.work(1);
  EXPECT_EQ(fetched(work), 0);
  int64_t read = 0;
  for (const StripeWork& stripe : work.stripes)
    for (const StepWork& step : stripe.steps) read += step.bytes_read;
  EXPECT_EQ(read, job.plan(1).bytes_read_again);
  Rates rates = some_rates();
  const double without = play(work, rates).total();
  rates.read_bytes_per_second = 1e6;
  EXPECT_GT(play(work, rates).total(), without);
}

// A sink is on one rank, and all others ask it for it.
TEST(CostModel, ARankThatAllAskIsSeen) {
  Case job("causal & (window(127) | sink(128))", 1 << 22, 1024);
  Rates rates = some_rates();
  rates.across_hosts.bytes_per_second = 1e6;
  const JobTime time = job.time(rates);
  EXPECT_EQ(time.busiest_sender_rank, 0);
  const double sent = 1023.0 * 2 * 2 * 128 * 64 * 2;  // a block of both KV heads to every other rank
  EXPECT_NEAR(time.busiest_sender, sent / 1e6, 0.1 * sent / 1e6);
  EXPECT_GE(time.seconds, time.busiest_sender);
}

TEST(CostModel, TenThousandRanks) {
  Case job("causal & window(4095)", 12'582'912, 10'240);
  const JobTime time = job.time(some_rates());
  EXPECT_TRUE(std::isfinite(time.seconds));
  EXPECT_GT(time.seconds, 0);
  EXPECT_LT(time.imbalance, 2);
}

TEST(CostModel, SampledRanks) {
  EXPECT_EQ(sampled_ranks(3), (std::vector<int>{0, 1, 2}));
  const std::vector<int> many = sampled_ranks(10'240);
  EXPECT_EQ(many.size(), 64u);
  EXPECT_EQ(many.front(), 0);
  EXPECT_EQ(many.back(), 10'239);
  EXPECT_EQ(sampled_ranks(1), std::vector<int>{0});
  EXPECT_EQ(sampled_ranks(1, 8), std::vector<int>{0});
  EXPECT_EQ(sampled_ranks(100, 4, 8), (std::vector<int>{0, 1, 2, 3, 96, 97, 98, 99}));
  EXPECT_EQ(sampled_ranks(10, 4, 4), (std::vector<int>{0, 1, 2, 3, 8, 9}));  // the last host has two
  EXPECT_EQ(sampled_ranks(7, 4), (std::vector<int>{0, 1, 2, 3, 4, 5, 6}));
}

// All ranks need all keys: 4 ranks on 2 hosts fetch 2/4 of them from the other host each, twice the same on a host.
TEST(CostModel, AHostFetchesABlockOnce) {
  for (ExchangeKind kind : {ExchangeKind::flat, ExchangeKind::automatic, ExchangeKind::node}) {
    Case job("full", 1 << 14, 4, 1);
    job.shared->options.exchange = kind;
    std::vector<RankPlan> plans;
    std::vector<RankWork> works;
    for (int rank = 0; rank < 4; ++rank) plans.push_back(job.plan(rank)), works.push_back(job.work(rank, 2));
    const auto across = [&] {
      int64_t sum = 0;
      for (const StripeWork& stripe : works[1].stripes)
        for (const StepWork& step : stripe.steps) sum += step.bytes_across;
      return sum;
    };
    const int64_t all = fetched(works[1]), before = across();
    EXPECT_EQ(3 * before, 2 * all);
    share_within_hosts(*job.shared, plans, 2, works);
    EXPECT_EQ(fetched(works[1]), all);
    EXPECT_NEAR(static_cast<double>(across()), static_cast<double>(before) / (kind == ExchangeKind::flat ? 1 : 2), 8);
  }
}

// The same where halves of blocks travel: what comes to a host is what any of its ranks looks at, and what is passed on what another needs.
TEST(CostModel, AHostFetchesHalvesOnce) {
  Case job("block_random(64, 2, 1)", 1 << 15, 4, 1);
  job.shared->options.exchange = ExchangeKind::node;
  ASSERT_TRUE(job.shared->in_halves);
  std::vector<RankPlan> plans;
  std::vector<RankWork> works;
  for (int rank = 0; rank < 4; ++rank) plans.push_back(job.plan(rank)), works.push_back(job.work(rank, 2));
  share_within_hosts(*job.shared, plans, 2, works);
  for (size_t host : {0, 2}) {
    int64_t least = 0, across = 0, before = 0, after = 0;
    for (size_t c = 0; c < job.shared->classes.size(); ++c) {
      const Intervals here = halves_of(unite(plans[host].own, plans[host + 1].own));
      const Intervals needed = subtract(unite(plans[host].halves[c], plans[host + 1].halves[c]), here);
      least += size_of(needed) * static_cast<int64_t>(job.shared->classes[c].kv_heads.size()) * plans[host].unit_bytes / 2;
    }
    for (size_t rank : {host, host + 1}) {
      before += plans[rank].bytes_moved, after += fetched(works[rank]);
      for (const StripeWork& stripe : works[rank].stripes)
        for (const StepWork& step : stripe.steps) across += step.bytes_across;
    }
    EXPECT_NEAR(static_cast<double>(across), static_cast<double>(least), 0.02 * static_cast<double>(least));
    EXPECT_GT(after, before) << "who brings a block for another rank brings more of it than it needs";
    EXPECT_LT(after, 2 * before);
  }
}

}  // namespace
}  // namespace longspan::plan
