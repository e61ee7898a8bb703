#include "engine/stripe_lists.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

namespace longspan::engine {

using kernels::Tile;

namespace {

// First block after `block` that may belong to another step: where own blocks begin or end, or a fetched group ends.
int64_t step_change_after(const plan::RankPlan& plan, const plan::Stripe& stripe, int64_t block) {
  int64_t change = std::numeric_limits<int64_t>::max();
  for (const Interval& run : plan.own) {
    if (run.begin > block) change = std::min(change, run.begin);
    if (run.end > block) change = std::min(change, run.end);
  }
  const auto bound = std::upper_bound(stripe.bounds.begin(), stripe.bounds.end(), block);
  if (bound != stripe.bounds.end()) change = std::min(change, *bound);
  return change;
}

int64_t tiles_in(const Tile& tile) { return tile.form == Tile::Form::full ? tile.count : 1; }

}  // namespace

HeadSets::HeadSets(const pattern::BoundPattern& pattern, const Shape& shape) {
  for (const pattern::HeadGroup& group : pattern.groups()) {
    std::map<int, std::vector<int32_t>> by_kv_head;
    for (int head : group.heads) by_kv_head[shape.kv_head_of(head)].push_back(head);
    std::vector<HeadSet> sets;
    for (const auto& [kv_head, query_heads] : by_kv_head) {
      sets.push_back({kv_head, static_cast<int32_t>(heads.size()), static_cast<int32_t>(query_heads.size())});
      heads.insert(heads.end(), query_heads.begin(), query_heads.end());
    }
    of_group.push_back(std::move(sets));
  }
}

int64_t StepLists::resident_index(int64_t block) const {
  const auto next = std::upper_bound(resident.begin(), resident.end(), block, [](int64_t b, const Interval& run) { return b < run.begin; });
  const auto run = static_cast<size_t>(next - resident.begin()) - 1;
  return before_[run] + block - resident[run].begin;
}

Intervals step_blocks(const plan::Shared& shared, const plan::RankPlan& plan, const plan::Stripe& stripe, size_t key_class, int step) {
  const Intervals& need = stripe.need[key_class];
  const bool own_first = shared.keys_stay && !shared.options.reproducible;
  if (own_first && step == 0) return intersect(need, plan.own);
  const auto group = static_cast<size_t>(own_first ? step - 1 : step);
  if (group + 1 >= stripe.bounds.size()) return group == 0 && !own_first ? need : Intervals{};
  const Interval range{stripe.bounds[group], stripe.bounds[group + 1]};
  return own_first ? clipped(subtract(need, plan.own), range) : clipped(need, range);
}

StripeLists StripeLists::make(const plan::Shared& shared, const plan::RankPlan& plan, const pattern::BoundPattern& pattern,
                              const plan::Blocks& blocks, const plan::Stripe& stripe, int steps, const HeadSets& heads,
                              const std::function<Place(const plan::StripeRow&)>& place, const std::function<void()>& between) {
  StripeLists lists;
  lists.steps.resize(static_cast<size_t>(steps));
  for (size_t step = 0; step < lists.steps.size(); ++step) {
    StepLists& of_step = lists.steps[step];
    for (size_t c = 0; c < shared.classes.size(); ++c)
      of_step.resident = unite(of_step.resident, step_blocks(shared, plan, stripe, c, static_cast<int>(step)));
    int64_t before = 0;
    for (const Interval& run : of_step.resident) {
      of_step.before_.push_back(before);
      before += run.length();
    }
  }

  plan::TileLists source(pattern, blocks);
  std::vector<Tile> row_tiles;
  std::vector<int64_t> first(lists.steps.size()), count(lists.steps.size());
  std::vector<std::vector<int64_t>> cost(lists.steps.size());  // of each work item
  const auto put = [&](Tile tile, int64_t block) {
    const auto step = static_cast<size_t>(plan::step_of(shared, plan, stripe, block));
    tile.key = static_cast<int32_t>(lists.steps[step].resident_index(block));
    lists.steps[step].tiles.push_back(tile);
    count[step] += tiles_in(tile);
  };
  for (const plan::StripeRow& row : plan::rows_of(shared, pattern, stripe, plan.rank)) {
    between();
    row_tiles.clear();
    source.append(row.group, row.block, row.key_blocks, row_tiles);
    for (size_t step = 0; step < lists.steps.size(); ++step)
      first[step] = static_cast<int64_t>(lists.steps[step].tiles.size()), count[step] = 0;
    for (const Tile& tile : row_tiles) {
      if (tile.form != Tile::Form::full) {
        put(tile, tile.key);
        continue;
      }
      const int64_t end = tile.key + tile.count;
      for (int64_t block = tile.key; block < end;) {
        const int64_t next = std::min(end, step_change_after(plan, stripe, block));
        put(Tile::full_run(0, next - block), block);
        block = next;
      }
    }
    const Place at = place(row);
    const auto has_tiles = [&](size_t step) { return static_cast<int64_t>(lists.steps[step].tiles.size()) > first[step]; };
    size_t begins = 0, ends = lists.steps.size();
    while (begins < ends && !has_tiles(begins)) ++begins;
    while (ends > begins && !has_tiles(ends - 1)) --ends;
    lists.some_rows_see_nothing = lists.some_rows_see_nothing || begins == ends;
    for (size_t step = 0; step < lists.steps.size(); ++step) {
      StepLists& of_step = lists.steps[step];
      const int64_t entries = static_cast<int64_t>(of_step.tiles.size()) - first[step];
      if (entries == 0) continue;
      for (const HeadSet& set : heads.of_group[static_cast<size_t>(row.group)]) {
        of_step.work.push_back({.q_row = at.q_row,
                                .state_row = at.state_row,
                                .rows = blocks.rows(row.block),
                                .kv_head = set.kv_head,
                                .first_tile = first[step],
                                .tile_count = entries,
                                .first_head = set.first_head,
                                .head_count = set.head_count,
                                .begins = step == begins,
                                .ends = step + 1 == ends && row.piece < 0});
        cost[step].push_back(count[step] * set.head_count);
      }
    }
  }
  lists.masks = source.masks().masks();

  // Dearest first: the threads take items one by one, so that the last ones to end are short.
  for (size_t step = 0; step < lists.steps.size(); ++step) {
    std::vector<size_t> order(cost[step].size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return cost[step][a] > cost[step][b]; });
    std::vector<kernels::Work> sorted;
    sorted.reserve(order.size());
    for (size_t item : order) sorted.push_back(lists.steps[step].work[item]);
    lists.steps[step].work = std::move(sorted);
  }
  return lists;
}

}  // namespace longspan::engine
