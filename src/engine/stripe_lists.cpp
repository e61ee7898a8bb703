#include "engine/stripe_lists.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <thread>
#include <utility>

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

template <typename T>
void append(std::vector<T>& all, std::vector<T>&& more) {
  if (all.capacity() == 0)
    all = std::move(more);
  else
    all.insert(all.end(), more.begin(), more.end());
}

// The threads' loop is over when this is gone, whatever is thrown: it uses what the caller has on its stack.
class Joined {
 public:
  explicit Joined(kernels::cpu::ThreadPool& threads) : threads_(threads) {}
  ~Joined() {
    while (!threads_.finished()) std::this_thread::yield();
  }
  Joined(const Joined&) = delete;
  Joined& operator=(const Joined&) = delete;

 private:
  kernels::cpu::ThreadPool& threads_;
};

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

Intervals step_blocks(const plan::Shared& shared, const plan::RankPlan& plan, const plan::Stripe& stripe, size_t key_class, int step) {
  const Intervals& need = stripe.need[key_class];
  const bool own_first = shared.own_keys_first;
  if (own_first && step == 0) return intersect(need, plan.own);
  const auto group = static_cast<size_t>(own_first ? step - 1 : step);
  if (group + 1 >= stripe.bounds.size()) return group == 0 && !own_first ? need : Intervals{};
  const size_t place = (stripe.first_group + group) % (stripe.bounds.size() - 1);
  const Interval range{stripe.bounds[place], stripe.bounds[place + 1]};
  return own_first ? clipped(subtract(need, plan.own), range) : clipped(need, range);
}

namespace {

// What the parts of the lists are made of: some rows of a stripe, in order, by one thread.
class RowLists {
 public:
  struct Step {
    std::vector<kernels::Work> work;
    std::vector<int64_t> cost;  // of each
    std::vector<Tile> tiles;
  };
  RowLists(const plan::Shared& shared, const plan::RankPlan& plan, const pattern::BoundPattern& pattern, const plan::Blocks& blocks,
           const plan::Stripe& stripe, const HeadSets& heads, const std::vector<StepLists>& steps)
      : steps(steps.size()),
        shared_(shared),
        plan_(plan),
        blocks_(blocks),
        stripe_(stripe),
        heads_(heads),
        of_steps_(steps),
        source_(pattern, blocks),
        first_(steps.size()),
        count_(steps.size()) {}

  void add(const plan::StripeRow& row, StripeLists::Place at) {
    row_tiles_.clear();
    source_.append(row.group, row.block, row.key_blocks, row_tiles_);
    for (size_t step = 0; step < steps.size(); ++step) first_[step] = static_cast<int64_t>(steps[step].tiles.size()), count_[step] = 0;
    for (const Tile& tile : row_tiles_) {
      if (tile.form != Tile::Form::full) {
        put(tile, tile.key);
        continue;
      }
      const int64_t end = tile.key + tile.count;
      for (int64_t block = tile.key; block < end;) {
        const int64_t next = std::min(end, step_change_after(plan_, stripe_, block));
        put(Tile::full_run(0, next - block), block);
        block = next;
      }
    }
    const auto has_tiles = [&](size_t step) { return static_cast<int64_t>(steps[step].tiles.size()) > first_[step]; };
    size_t begins = 0, ends = steps.size();
    while (begins < ends && !has_tiles(begins)) ++begins;
    while (ends > begins && !has_tiles(ends - 1)) --ends;
    some_rows_see_nothing = some_rows_see_nothing || begins == ends;
    for (size_t step = 0; step < steps.size(); ++step) {
      const int64_t entries = static_cast<int64_t>(steps[step].tiles.size()) - first_[step];
      if (entries == 0) continue;
      for (const HeadSet& set : heads_.of_group[static_cast<size_t>(row.group)]) {
        steps[step].work.push_back({.q_row = at.q_row,
                                    .state_row = at.state_row,
                                    .rows = blocks_.rows(row.block),
                                    .kv_head = set.kv_head,
                                    .first_tile = first_[step],
                                    .tile_count = entries,
                                    .first_head = set.first_head,
                                    .head_count = set.head_count,
                                    .begins = step == begins,
                                    .ends = step + 1 == ends && row.piece < 0});
        steps[step].cost.push_back(count_[step] * set.head_count);
      }
    }
  }

  std::vector<Step> steps;
  bool some_rows_see_nothing = false;
  const std::vector<kernels::MaskBits>& masks() const { return source_.masks().masks(); }

 private:
  void put(Tile tile, int64_t block) {
    const auto step = static_cast<size_t>(plan::step_of(shared_, plan_, stripe_, block));
    tile.key = static_cast<int32_t>(of_steps_[step].resident_index(block));
    steps[step].tiles.push_back(tile);
    count_[step] += tiles_in(tile);
  }

  const plan::Shared& shared_;
  const plan::RankPlan& plan_;
  const plan::Blocks& blocks_;
  const plan::Stripe& stripe_;
  const HeadSets& heads_;
  const std::vector<StepLists>& of_steps_;
  plan::TileLists source_;
  std::vector<Tile> row_tiles_;
  std::vector<int64_t> first_, count_;  // by step, of the row that is added
};

}  // namespace

StripeLists StripeLists::make(const plan::Shared& shared, const plan::RankPlan& plan, const pattern::BoundPattern& pattern,
                              const plan::Blocks& blocks, const plan::Stripe& stripe, int steps, const HeadSets& heads,
                              const std::function<Place(const plan::StripeRow&)>& place, const std::function<void()>& between,
                              kernels::cpu::ThreadPool* threads) {
  StripeLists lists;
  lists.steps.resize(static_cast<size_t>(steps));
  for (size_t step = 0; step < lists.steps.size(); ++step) {
    StepLists& of_step = lists.steps[step];
    for (size_t c = 0; c < shared.classes.size(); ++c)
      of_step.resident = unite(of_step.resident, step_blocks(shared, plan, stripe, c, static_cast<int>(step)));
    of_step.numbering_ = Numbering(of_step.resident);
    of_step.key_rows = blocks.rows(of_step.resident);
  }

  const std::vector<plan::StripeRow> rows = plan::rows_of(shared, pattern, stripe, plan.rank);
  const auto count = static_cast<int64_t>(rows.size());
  constexpr int64_t kLeastRows = 32;  // of a part: they share what is memoised
  const int64_t parts = threads ? std::clamp<int64_t>(count / kLeastRows, 1, int64_t{4} * threads->threads()) : 1;
  std::vector<std::optional<RowLists>> made(static_cast<size_t>(parts));
  const auto make_part = [&](int64_t part, const std::function<void()>& between_rows) {
    RowLists& mine = made[static_cast<size_t>(part)].emplace(shared, plan, pattern, blocks, stripe, heads, lists.steps);
    for (int64_t r = count * part / parts; r < count * (part + 1) / parts; ++r) {
      if (between_rows) between_rows();
      mine.add(rows[static_cast<size_t>(r)], place(rows[static_cast<size_t>(r)]));
    }
  };
  if (parts == 1) {
    make_part(0, between);
  } else {
    threads->start(parts, [&](int64_t part, int) { make_part(part, nullptr); });
    const Joined joined(*threads);
    constexpr double kPoll = 1e-3;  // seconds
    while (!threads->wait_for(kPoll)) between();
  }

  // One after the other as if one thread had made them all.
  for (size_t step = 0; parts > 1 && step < lists.steps.size(); ++step) {
    size_t tiles = 0, work = 0;
    for (const std::optional<RowLists>& part : made) tiles += part->steps[step].tiles.size(), work += part->steps[step].work.size();
    lists.steps[step].tiles.reserve(tiles);
    lists.steps[step].work.reserve(work);
  }
  plan::MaskPool masks;
  std::vector<std::vector<int64_t>> cost(lists.steps.size());
  for (std::optional<RowLists>& part : made) {
    lists.some_rows_see_nothing = lists.some_rows_see_nothing || part->some_rows_see_nothing;
    std::vector<int64_t> number;
    for (const kernels::MaskBits& mask : part->masks()) number.push_back(masks.keep(mask));
    for (size_t step = 0; step < lists.steps.size(); ++step) {
      StepLists& all = lists.steps[step];
      RowLists::Step& more = part->steps[step];
      const auto tiles = static_cast<int64_t>(all.tiles.size());
      for (Tile& tile : more.tiles)
        if (tile.form == Tile::Form::bits) tile.mask = number[static_cast<size_t>(tile.mask)];
      for (kernels::Work& work : more.work) work.first_tile += tiles;
      append(all.tiles, std::move(more.tiles));
      append(all.work, std::move(more.work));
      append(cost[step], std::move(more.cost));
    }
    part.reset();
    between();
  }
  lists.masks = masks.masks();

  // Dearest first: the threads take items one by one, so that the last ones to end are short.
  for (size_t step = 0; step < lists.steps.size(); ++step) {
    std::vector<std::pair<int64_t, size_t>> order;  // cost and place
    order.reserve(cost[step].size());
    for (size_t item = 0; item < cost[step].size(); ++item) order.emplace_back(cost[step][item], item);
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    std::vector<kernels::Work> sorted;
    sorted.reserve(order.size());
    for (const auto& [of_item, item] : order) sorted.push_back(lists.steps[step].work[item]);
    lists.steps[step].work = std::move(sorted);
  }
  return lists;
}

Intervals StepLists::masked() const {
  std::vector<bool> is_masked(key_rows.size());
  for (const Tile& tile : tiles) {
    if (tile.form == Tile::Form::full) continue;
    const auto key = static_cast<size_t>(tile.key);
    is_masked[key] = is_masked[key] || has_mask(tile, key_rows[key]);
  }
  // Runs of full tiles have none but at ends of documents, with which it is enough to look at what is resident.
  Intervals blocks;
  size_t index = 0;
  for (const Interval& run : resident)
    for (int64_t block = run.begin; block < run.end; ++block, ++index)
      if (is_masked[index] || has_mask(Tile::full_run(0, 1), key_rows[index])) blocks.push_back({block, block + 1});
  return normalised(std::move(blocks));
}

}  // namespace longspan::engine
