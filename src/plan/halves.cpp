#include "plan/halves.hpp"

#include <algorithm>

namespace longspan::plan {

Intervals halves_of(const Intervals& blocks) {
  Intervals halves;
  halves.reserve(blocks.size());
  for (const Interval& run : blocks) halves.push_back({2 * run.begin, 2 * run.end});
  return halves;
}

Intervals blocks_of(const Intervals& halves) {
  Intervals blocks;
  blocks.reserve(halves.size());
  for (const Interval& run : halves) append(blocks, {run.begin / 2, (run.end + 1) / 2});
  return blocks;
}

Interval halves_of(const kernels::Tile& tile) {
  constexpr uint8_t kFirst = 0x5, kSecond = 0xa;  // quarters
  const int64_t begin = 2 * int64_t{tile.key};
  if (tile.form == kernels::Tile::Form::full) return {begin, begin + 2 * tile.count};
  return {begin + ((tile.quarters & kFirst) != 0 ? 0 : 1), begin + ((tile.quarters & kSecond) != 0 ? 2 : 1)};
}

bool halves_pay(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks) {
  constexpr int64_t kRows = 32, kGroups = 4, kKeys = 8;  // samples: query blocks, head groups, and key blocks of each
  constexpr double kFew = 0.8, kOften = 3;
  TileLists lists(pattern, blocks);
  const Interval all{0, blocks.count()};
  const auto groups = static_cast<int64_t>(pattern.groups().size());
  const auto rows = std::min(kRows, blocks.count()), looked_at = std::min(kGroups, groups);
  double lists_seen = 0, far_blocks = 0, tiles_seen = 0, halves_seen = 0;
  std::vector<kernels::Tile> tiles;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t block = (2 * row + 1) * blocks.count() / (2 * rows);
    const Intervals own = shared.partition.blocks_of(shared.partition.rank_of(block));
    for (int64_t g = 0; g < looked_at; ++g) {
      const auto group = static_cast<int>(g * groups / looked_at);
      if (shared.is_long(group, block)) continue;
      const Intervals far = subtract(lists.candidates(group, block, all), own);
      const int64_t count = size_of(far), some = std::min(kKeys, count);
      ++lists_seen, far_blocks += static_cast<double>(count);
      auto run = far.begin();
      int64_t before = 0;  // blocks of runs before it
      for (int64_t key = 0; key < some; ++key) {
        const int64_t number = (2 * key + 1) * count / (2 * some);
        for (; number >= before + run->length(); ++run) before += run->length();
        const int64_t at = run->begin + number - before;
        tiles.clear();
        lists.append(group, block, {at, at + 1}, tiles);
        for (const kernels::Tile& tile : tiles) ++tiles_seen, halves_seen += static_cast<double>(halves_of(tile).length());
      }
    }
  }
  if (tiles_seen == 0) return false;
  const double looked_at_of_tile = halves_seen / (2 * tiles_seen);
  // If a rank's rows look at others' halves n times on average, and as if by chance, they need all but exp(-n) of them.
  const double own = static_cast<double>(blocks.count()) / shared.partition.ranks(), others = static_cast<double>(blocks.count()) - own;
  const double lists_of_class = own * static_cast<double>(groups) / static_cast<double>(shared.classes.size());
  const double times = lists_of_class * far_blocks / lists_seen / others * looked_at_of_tile;
  return looked_at_of_tile <= kFew && times <= kOften;
}

Intervals travelling_halves(const RankPlan& plan, size_t key_class, Interval blocks) {
  const Interval whole{2 * blocks.begin, 2 * blocks.end};
  return plan.halves.empty() ? Intervals{whole} : clipped(plan.halves[key_class], whole);
}

int64_t travelling_bytes(const Shared& shared, const RankPlan& plan, size_t key_class, const Intervals& blocks) {
  int64_t halves = 0;
  for (const Interval& run : blocks) halves += size_of(travelling_halves(plan, key_class, run));
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
