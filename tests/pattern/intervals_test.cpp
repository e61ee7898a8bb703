#include "pattern/intervals.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace longspan {
namespace {

constexpr int64_t kSpan = 40;

// A set of integers below kSpan, and the same as intervals.
std::set<int64_t> random_set(std::mt19937& random) {
  std::set<int64_t> set;
  const auto chance = random() % 5;
  for (int64_t x = 0; x < kSpan; ++x)
    if (random() % 4 < chance) set.insert(x);
  return set;
}

Intervals intervals_of(const std::set<int64_t>& set) {
  Intervals intervals;
  for (int64_t x : set) {
    if (!intervals.empty() && intervals.back().end == x) {
      ++intervals.back().end;
    } else {
      intervals.push_back({x, x + 1});
    }
  }
  return intervals;
}

template <class Keep>
Intervals filtered(Keep keep) {
  std::set<int64_t> set;
  for (int64_t x = 0; x < kSpan; ++x)
    if (keep(x)) set.insert(x);
  return intervals_of(set);
}

TEST(Intervals, AlgebraAgreesWithSetsOfIntegers) {
  std::mt19937 random(3);
  for (int k = 0; k < 2000; ++k) {
    const auto a = random_set(random), b = random_set(random);
    const Intervals x = intervals_of(a), y = intervals_of(b);
    const int64_t begin = static_cast<int64_t>(random() % kSpan), end = begin + static_cast<int64_t>(random() % 15);
    EXPECT_EQ(unite(x, y), filtered([&](int64_t v) { return a.count(v) || b.count(v); }));
    EXPECT_EQ(intersect(x, y), filtered([&](int64_t v) { return a.count(v) && b.count(v); }));
    EXPECT_EQ(subtract(x, y), filtered([&](int64_t v) { return a.count(v) && !b.count(v); }));
    EXPECT_EQ(clipped(x, {begin, end}), filtered([&](int64_t v) { return a.count(v) && begin <= v && v < end; }));
    EXPECT_EQ(complement(x, {begin, std::min(end, kSpan)}), filtered([&](int64_t v) { return !a.count(v) && begin <= v && v < end; }));
    EXPECT_EQ(size_of(x), static_cast<int64_t>(a.size()));
    const auto count = static_cast<int64_t>(random() % kSpan);
    int64_t taken = 0;
    EXPECT_EQ(first_of(x, count), filtered([&](int64_t v) { return a.count(v) && taken++ < count; }));
    for (int64_t v = -1; v <= kSpan; ++v) EXPECT_EQ(contains(x, v), a.count(v) == 1) << v;
  }
}

TEST(Intervals, AppendMergesWhatTouchesAndDropsWhatIsEmpty) {
  Intervals set;
  append(set, {5, 5});
  EXPECT_TRUE(set.empty());
  append(set, {0, 3});
  append(set, {3, 4});
  append(set, {9, 2});
  append(set, {2, 3});
  EXPECT_EQ(set, (Intervals{{0, 4}}));
  append(set, {5, 6});
  EXPECT_EQ(set, (Intervals{{0, 4}, {5, 6}}));
}

TEST(Intervals, NormalisedTakesAnyOrder) {
  EXPECT_EQ(normalised({{9, 11}, {3, 4}, {7, 7}, {0, 3}, {10, 20}, {5, 6}}), (Intervals{{0, 4}, {5, 6}, {9, 20}}));
  EXPECT_EQ(normalised({}), Intervals{});
}

TEST(Intervals, NumberingCountsInOrder) {
  const Intervals set{{-3, -1}, {10, 12}, {20, 23}};
  const Numbering numbering(set);
  EXPECT_EQ(numbering.count(), 7);
  int64_t number = 0;
  for (int64_t x = -10; x < 30; ++x) EXPECT_EQ(numbering.of(x), contains(set, x) ? number++ : -1) << x;
  EXPECT_EQ(Numbering().count(), 0);
  EXPECT_EQ(Numbering().of(0), -1);
}

TEST(Intervals, EmptyRanges) {
  EXPECT_EQ(complement({}, {4, 4}), Intervals{});
  EXPECT_EQ(complement({}, {4, 6}), (Intervals{{4, 6}}));
  EXPECT_EQ(clipped({{0, 9}}, {5, 5}), Intervals{});
  EXPECT_EQ(first_of({{0, 9}}, 0), Intervals{});
  EXPECT_EQ((Interval{5, 3}).length(), 0);
}

}  // namespace
}  // namespace longspan
