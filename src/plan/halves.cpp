#include "plan/halves.hpp"

#include <algorithm>
#include <cmath>

namespace longspan::plan {

Intervals halves_of(const Intervals& blocks) {
  Intervals halves;
  halves.reserve(blocks.size());
  for (const Interval& run : blocks) halves.push_back(halves_of(run));
  return halves;
}

Intervals blocks_of(const Intervals& halves) {
  Intervals blocks;
  blocks.reserve(halves.size());
  for (const Interval& run : halves) append(blocks, {run.begin / 2, (run.end + 1) / 2});
  return blocks;
}

namespace {

int64_t nth_of(const Intervals& set, int64_t number) {
  auto run = set.begin();
  for (; number >= run->length(); ++run) number -= run->length();
  return run->begin + number;
}

}  // namespace

Interval halves_of(const kernels::Tile& tile) {
  constexpr uint8_t kFirst = 0x5, kSecond = 0xa;  // quarters
  const int64_t begin = 2 * int64_t{tile.key};
  if (tile.form == kernels::Tile::Form::full) return {begin, begin + 2 * tile.count};
  return {begin + ((tile.quarters & kFirst) != 0 ? 0 : 1), begin + ((tile.quarters & kSecond) != 0 ? 2 : 1)};
}

bool halves_pay(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks) {
  constexpr int64_t kRanks = 4, kRows = 8, kGroups = 4, kKeys = 8;  // samples: ranks, rows of each, head groups, and key blocks of a row
  constexpr double kFew = 0.8, kNearlyAll = 0.95;
  TileLists lists(pattern, blocks);
  const auto groups = static_cast<int64_t>(pattern.groups().size()), ranks = int64_t{shared.partition.ranks()};
  const auto sample = [](int64_t number, int64_t samples, int64_t of) { return (2 * number + 1) * of / (2 * samples); };
  double samples = 0, rows = 0, far_blocks = 0, far_halves = 0;
  std::vector<kernels::Tile> tiles;
  for (int64_t k = 0; k < std::min(kRanks, ranks); ++k) {
    const Intervals own = shared.partition.blocks_of(static_cast<int>(sample(k, std::min(kRanks, ranks), ranks)));
    const int64_t blocks_here = size_of(own);
    for (int64_t g = 0; g < std::min(kGroups, groups); ++g) {
      const auto group = static_cast<int>(sample(g, std::min(kGroups, groups), groups));
      Intervals seen = own;  // what one row looks at, others need not bring again
      ++samples;
      for (int64_t row = 0; row < std::min(kRows, blocks_here); ++row) {
        const int64_t block = nth_of(own, sample(row, std::min(kRows, blocks_here), blocks_here));
        if (shared.is_long(group, block)) continue;
        const Intervals far = subtract(lists.candidates(group, block, {0, blocks.count()}), seen);
        const int64_t count = size_of(far), some = std::min(kKeys, count);
        seen = unite(seen, far);
        ++rows, far_blocks += static_cast<double>(count);
        for (int64_t key = 0; key < some; ++key) {
          const int64_t at = nth_of(far, sample(key, some, count));
          tiles.clear();
          lists.append(group, block, {at, at + 1}, tiles);
          for (const kernels::Tile& tile : tiles)
            far_halves += static_cast<double>(halves_of(tile).length() * count) / static_cast<double>(some);
        }
      }
    }
  }
  if (far_halves == 0) return false;
  // A sample's rows look at such a part of others' halves; if the rank's other rows look at as much, as if by chance, at so much all
  // together.
  const double own = static_cast<double>(blocks.count()) / static_cast<double>(ranks), others = static_cast<double>(blocks.count()) - own;
  const double part = std::min(1.0, far_halves / samples / (2 * others));
  const double times = own * static_cast<double>(groups) / static_cast<double>(shared.classes.size()) / (rows / samples);
  return far_halves <= kFew * 2 * far_blocks && 1 - std::pow(1 - part, times) <= kNearlyAll;
}

Intervals travelling_halves(const RankPlan& plan, size_t key_class, Interval blocks) {
  return plan.halves.empty() ? Intervals{halves_of(blocks)} : clipped(plan.halves[key_class], halves_of(blocks));
}

int64_t travelling_bytes(const Shared& shared, const RankPlan& plan, size_t key_class, const Intervals& blocks) {
  int64_t halves = plan.halves.empty() ? 2 * size_of(blocks) : 0;
  for (size_t run = 0; run < blocks.size() && !plan.halves.empty(); ++run)
    halves += size_of(clipped(plan.halves[key_class], halves_of(blocks[run])));
  return halves * static_cast<int64_t>(shared.classes[key_class].kv_heads.size()) * plan.unit_bytes / 2;
}

int64_t bytes_of_fetches(const Shared& shared, const RankPlan& plan) {
  int64_t bytes = 0;
  for (const Stripe& stripe : plan.stripes)
    for (const std::vector<Intervals>& of_step : stripe.fetch)
      for (size_t c = 0; c < of_step.size(); ++c) bytes += travelling_bytes(shared, plan, c, of_step[c]);
  return bytes;
}

}  // namespace longspan::plan
