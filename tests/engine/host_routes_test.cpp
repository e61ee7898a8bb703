// Routes inside a host: every block of every fetch comes exactly once, from a rank that has it, and crosses between hosts no more often
// than it must.
#include "engine/host_routes.hpp"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>
#include <set>
#include <tuple>

namespace longspan::engine {
namespace {

// A rank that fetches a block again and again cannot hold it for others in between: its plan has no place for it.
int most_fetches_of_a_rank(const std::vector<Fetch>& fetches, int32_t key_class, int64_t block) {
  std::map<int32_t, int> count;
  int most = 0;
  for (const Fetch& fetch : fetches)
    if (fetch.key_class == key_class && fetch.blocks.contains(block)) most = std::max(most, ++count[fetch.rank]);
  return most;
}

TEST(HostRoutes, HoldsBlocksThatAnotherRankWantsLater) {
  // Rank 0 has block 3 in step 0 only; rank 1 wants it in step 4.
  const std::vector<Fetch> fetches{{0, 0, {3, 4}, 0, 0}, {1, 0, {3, 4}, 4, 4}};
  const HostRoutes found = routes_inside_host(fetches, {2, 2}, {2});
  ASSERT_EQ(found.holds.size(), 1u);
  EXPECT_EQ(found.holds[0].rank, 0);
  EXPECT_EQ(found.holds[0].step, 0);
  EXPECT_EQ(found.holds[0].until, 4);
  EXPECT_EQ(found.routes.back(), (Route{1, 0, 0, 4, {3, 4}}));
  EXPECT_TRUE(routes_inside_host(fetches, {1, 1}, {2}).holds.empty()) << "two units do not fit into room for one";
}

TEST(HostRoutes, TheExampleOfTheHeader) {
  const HostRoutes found =
      routes_inside_host({{0, 0, {7, 8}, 0, 1}, {0, 0, {8, 9}, 2, 2}, {1, 0, {7, 8}, 1, 1}, {1, 0, {8, 9}, 2, 2}}, {0, 0}, {1});
  EXPECT_TRUE(found.holds.empty());
  const std::vector<Route>& routes = found.routes;
  ASSERT_EQ(routes.size(), 4u);
  EXPECT_EQ(routes[0], (Route{0, Route::kHome, 0, 0, {7, 8}}));
  EXPECT_EQ(routes[1], (Route{1, 0, 0, 1, {7, 8}}));
  EXPECT_EQ((routes[2].from == Route::kHome) + (routes[3].from == Route::kHome), 1);
  EXPECT_EQ(std::max(routes[2].from, routes[3].from), routes[2].from == Route::kHome ? routes[2].to : routes[3].to);
}

TEST(HostRoutes, NothingAndEmptyBlocks) {
  EXPECT_TRUE(routes_inside_host({}, {}, {}).routes.empty());
  EXPECT_TRUE(routes_inside_host({{0, 0, {5, 5}, 0, 0}}, {0}, {1}).routes.empty());
}

TEST(HostRoutes, RanksThatWantTheSameBringEqualShares) {
  std::vector<Fetch> fetches;
  for (int32_t rank = 0; rank < 4; ++rank) fetches.push_back({rank, 0, {100, 500}, 3, 3});
  std::map<int32_t, int64_t> brought;
  for (const Route& route : routes_inside_host(fetches, {0, 0, 0, 0}, {1}).routes)
    if (route.from == Route::kHome) brought[route.to] += route.blocks.length();
  for (int32_t rank = 0; rank < 4; ++rank) EXPECT_EQ(brought[rank], 100) << "rank " << rank;
}

TEST(HostRoutes, RandomFetches) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<uint64_t>(most + 1)); };
    const auto ranks = static_cast<int32_t>(1 + draw(7));
    // Each rank fetches a block again only when it has it no more.
    using Unit = std::pair<int32_t, int64_t>;                                  // class, block
    std::map<std::tuple<int32_t, int32_t, int64_t>, std::set<int32_t>> there;  // rank, class, block: steps
    std::map<std::tuple<int32_t, int32_t, int64_t>, std::vector<Fetch>> of_unit;
    std::vector<Fetch> fetches;
    for (int64_t count = draw(40); count-- > 0;) {
      Fetch fetch{static_cast<int32_t>(draw(ranks - 1)), static_cast<int32_t>(draw(1)), {}, static_cast<int32_t>(draw(9)), 0};
      fetch.until = fetch.step + static_cast<int32_t>(draw(3));
      fetch.blocks.begin = draw(60);
      fetch.blocks.end = fetch.blocks.begin + draw(20);
      bool overlaps = false;
      for (int64_t block = fetch.blocks.begin; block < fetch.blocks.end; ++block)
        for (int32_t step = fetch.step; step <= fetch.until; ++step)
          overlaps = overlaps || there[{fetch.rank, fetch.key_class, block}].contains(step);
      if (overlaps) continue;
      for (int64_t block = fetch.blocks.begin; block < fetch.blocks.end; ++block)
        for (int32_t step = fetch.step; step <= fetch.until; ++step) there[{fetch.rank, fetch.key_class, block}].insert(step);
      fetches.push_back(fetch);
    }
    const std::vector<int> class_heads{2, 3};
    const std::vector<int64_t> room(static_cast<size_t>(ranks), std::array<int64_t, 3>{0, 20, 1 << 20}[seed % 3]);
    const HostRoutes found = routes_inside_host(fetches, room, class_heads);
    const std::vector<Route>& routes = found.routes;
    std::shuffle(fetches.begin(), fetches.end(), random);
    EXPECT_EQ(routes_inside_host(fetches, room, class_heads).routes, routes) << "the order of the fetches matters";
    std::vector<int64_t> held(static_cast<size_t>(ranks));
    for (const Hold& hold : found.holds) {
      held[static_cast<size_t>(hold.rank)] += hold.blocks.length() * class_heads[static_cast<size_t>(hold.key_class)];
      for (int64_t block = hold.blocks.begin; block < hold.blocks.end; ++block) {
        auto& steps = there[{hold.rank, hold.key_class, block}];
        EXPECT_TRUE(steps.contains(hold.step) && !steps.contains(hold.step + 1)) << "a hold does not begin where the rank would let go";
        for (int32_t step = hold.step + 1; step <= hold.until; ++step) EXPECT_TRUE(steps.insert(step).second) << "held and fetched at once";
      }
    }
    for (size_t rank = 0; rank < held.size(); ++rank) EXPECT_LE(held[rank], room[rank]);

    std::map<std::tuple<int32_t, int32_t, int64_t, int32_t>, int32_t> source;  // rank, class, block, step
    for (const Route& route : routes)
      for (int64_t block = route.blocks.begin; block < route.blocks.end; ++block)
        EXPECT_TRUE(source.emplace(std::tuple(route.to, route.key_class, block, route.step), route.from).second) << "a block comes twice";
    size_t wanted = 0;
    std::map<std::pair<Unit, int32_t>, int> from_home;  // in a step
    for (const Fetch& fetch : fetches) {
      for (int64_t block = fetch.blocks.begin; block < fetch.blocks.end; ++block, ++wanted) {
        const auto found = source.find({fetch.rank, fetch.key_class, block, fetch.step});
        ASSERT_NE(found, source.end()) << "a block does not come";
        const auto has_it_already = [&](int32_t rank) {
          return there[{rank, fetch.key_class, block}].contains(fetch.step) && !source.contains({rank, fetch.key_class, block, fetch.step});
        };
        if (found->second == Route::kHome) {
          EXPECT_EQ(++from_home[std::pair(Unit(fetch.key_class, block), fetch.step)], 1) << "two ranks bring the same block";
          for (int32_t rank = 0; rank < ranks; ++rank) EXPECT_FALSE(has_it_already(rank)) << "it was on the host";
          continue;
        }
        EXPECT_NE(found->second, fetch.rank);
        const auto theirs = source.find({found->second, fetch.key_class, block, fetch.step});
        EXPECT_TRUE(has_it_already(found->second) || (theirs != source.end() && theirs->second == Route::kHome))
            << "it comes from a rank that does not have it";
      }
    }
    EXPECT_EQ(source.size(), wanted) << "a block comes that nobody wants";
    if (room.front() > 1000) {
      std::map<Unit, int> crossings;
      for (const auto& [unit, count] : from_home) crossings[unit.first] += count;
      for (const auto& [unit, count] : crossings) EXPECT_LE(count, most_fetches_of_a_rank(fetches, unit.first, unit.second));
    }
  }
}

// Blocks 3 and 4 of class 1. Rank 0 brings both and passes them on to 1, which passes 3 on to 2 later; then rank 2 brings 4 for itself.
TEST(HostRoutes, WhatIsPassedOnHasTheHalvesOfItsReceivers) {
  const std::vector<Route> routes{
      {0, Route::kHome, 1, 0, {3, 5}}, {1, 0, 1, 1, {3, 5}}, {2, 1, 1, 2, {3, 4}}, {2, Route::kHome, 1, 3, {4, 5}}};
  const Intervals first{{6, 7}, {8, 9}}, second{{7, 8}, {9, 10}}, none;
  std::vector<std::vector<Intervals>> halves{{none, first}, {none, second}, {none, first}};
  const std::vector<Intervals> brought = halves_passed_on(routes, halves, 6);
  EXPECT_EQ(brought[1], (Intervals{{6, 8}, {9, 10}})) << "both halves of 3, since rank 2 needs the first";
  EXPECT_EQ(brought[2], (Intervals{{6, 7}}));
  EXPECT_EQ(halves[0][1], (Intervals{{6, 10}})) << "what it needs, and what it passes on";
  EXPECT_EQ(halves[1][1], (Intervals{{6, 8}, {9, 10}}));
  EXPECT_EQ(halves[2][1], first);
  EXPECT_TRUE(halves[0][0].empty());

  std::vector<std::vector<Intervals>> whole(3);
  EXPECT_EQ(halves_passed_on(routes, whole, 6)[1], (Intervals{{6, 10}})) << "blocks travel whole";
  EXPECT_TRUE(whole[0].empty());
}

}  // namespace
}  // namespace longspan::engine
