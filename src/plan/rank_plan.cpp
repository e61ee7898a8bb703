#include "plan/rank_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "longspan/error.hpp"
#include "plan/halves.hpp"
#include "plan/memory.hpp"

namespace longspan::plan {

namespace {

constexpr size_t kMostLoose = 1 << 10;  // intervals collected before they are united with the others, which may be as many or more

// Of one rank: each takes some 100 to 300 bytes in the plan, which comes on top of --memory, and a message to each peer. More are a
// mistake: 4 ranks of 12 million tokens under a --memory of 1 MiB would need a thousand million of them.
constexpr int64_t kMostSteps = 1 << 20;

// Groups whose fetched bytes reach this are worth a step of their own: a message costs some 100 µs to start.
constexpr int64_t kWorthwhileGroup = int64_t{16} << 20;

// The first interval from `at` on that does not end at or before `position`: near ones are found in few steps.
Intervals::const_iterator first_past(Intervals::const_iterator at, Intervals::const_iterator end, int64_t position) {
  const auto before = [&](const Interval& interval) { return interval.end <= position; };
  int64_t step = 1;
  while (end - at > step && before(at[step])) at += step, step *= 2;
  return std::partition_point(at, end - at > step ? at + step : end, before);
}

// Key blocks of a stripe, class by class, collected row by row: their halves where these travel.
class NeedCollector {
 public:
  explicit NeedCollector(const Shared& shared) : shared_(shared), loose_(shared.classes.size()), need_(shared.classes.size()) {}

  // The tiles of one row that stands for `rows` rows from it on: keys move along with the rows as far as `reach` goes.
  void add(int group, const std::vector<kernels::Tile>& tiles, int64_t rows, Interval reach) {
    for (size_t c = 0; c < shared_.classes.size(); ++c) {
      const auto& groups = shared_.classes[c].groups;
      if (std::find(groups.begin(), groups.end(), group) == groups.end()) continue;
      // Most of what a row looks at, rows before it have looked at. Tiles ascend, and so does the interval that might have one.
      auto known = need_[c].cbegin();
      for (const kernels::Tile& tile : tiles) {
        const int64_t end = tile.key + (tile.form == kernels::Tile::Form::full ? tile.count : 1);
        Interval seen{tile.key, std::min(end + rows - 1, std::max(end, reach.end))};
        if (shared_.in_halves) seen = rows == 1 ? halves_of(tile) : halves_of(seen);
        known = first_past(known, need_[c].cend(), seen.begin);
        if (known == need_[c].cend() || seen.begin < known->begin || seen.end > known->end) loose_[c].push_back(seen);
      }
      if (loose_[c].size() > std::max(kMostLoose, need_[c].size())) settle(c);
    }
  }

  // Blocks; what is needed of them is added to `halves`.
  std::vector<Intervals> take(std::vector<Intervals>& halves) {
    for (size_t c = 0; c < loose_.size(); ++c) settle(c);
    std::vector<Intervals> need = std::exchange(need_, std::vector<Intervals>(loose_.size()));
    for (size_t c = 0; c < need.size() && shared_.in_halves; ++c) {
      halves[c] = unite(halves[c], need[c]);
      need[c] = blocks_of(need[c]);
    }
    return need;
  }

 private:
  void settle(size_t c) {
    need_[c] = unite(need_[c], normalised(std::move(loose_[c])));
    loose_[c].clear();
  }

  const Shared& shared_;
  std::vector<Intervals> loose_, need_;
};

int heads_of_class(const KeyClass& key_class) { return static_cast<int>(key_class.kv_heads.size()); }

int64_t units_of(const Shared& shared, const std::vector<Intervals>& blocks) {
  int64_t units = 0;
  for (size_t c = 0; c < blocks.size(); ++c) units += size_of(blocks[c]) * heads_of_class(shared.classes[c]);
  return units;
}

// Cuts the fetched blocks of all classes into ascending groups of `group_bytes` at most; if there are several, those before block `own` and
// those from there on into groups that are about the same, one more than else at most. `own`: Stripe::begins_before.
std::vector<int64_t> group_bounds(const Shared& shared, const std::vector<Intervals>& fetched, int64_t unit_bytes, int64_t group_bytes,
                                  int64_t own) {
  // Sweep: at every position the number of KV heads that fetch the block there.
  std::map<int64_t, int64_t> change;
  int64_t before = 0, all = 0;  // bytes
  for (size_t c = 0; c < fetched.size(); ++c) {
    const int64_t block_bytes = heads_of_class(shared.classes[c]) * unit_bytes;
    for (const Interval& run : fetched[c]) {
      change[run.begin] += heads_of_class(shared.classes[c]);
      change[run.end] -= heads_of_class(shared.classes[c]);
      all += run.length() * block_bytes, before += overlap(run, {0, own}).length() * block_bytes;
    }
  }
  std::vector<int64_t> bounds{0};
  if (change.empty()) return bounds;
  const int64_t most_of_block = shared.shape.kv_heads * unit_bytes;
  const auto most_of = [&](int64_t bytes) {
    const int64_t groups = std::max<int64_t>(1, (bytes + group_bytes - 1) / group_bytes);
    return std::min(group_bytes, (bytes + groups - 1) / groups + most_of_block - 1);
  };
  bool is_before = own > 0 && all > group_bytes;
  int64_t depth = 0, filled = 0, most = is_before ? most_of(before) : group_bytes;
  for (auto it = change.begin(); std::next(it) != change.end(); ++it) {
    depth += it->second;
    if (depth == 0) continue;
    if (is_before && it->first >= own) {
      if (filled > 0) bounds.push_back(it->first), filled = 0;
      is_before = false, most = most_of(all - before);
    }
    const int64_t block_bytes = depth * unit_bytes;
    for (int64_t block = it->first; block < std::next(it)->first;) {
      if (filled > 0 && filled + block_bytes > most) bounds.push_back(block), filled = 0;
      const int64_t fit = std::max<int64_t>(1, (most - filled) / block_bytes);
      const int64_t taken = std::min(fit, std::next(it)->first - block);
      filled += taken * block_bytes;
      block += taken;
    }
  }
  bounds.push_back(std::numeric_limits<int64_t>::max());
  return bounds;
}

// What a stripe has to fetch if nothing were kept from before.
Intervals fetchable(const Shared& shared, const RankPlan& plan, const Intervals& need) {
  return shared.keys_stay ? subtract(need, plan.own) : need;
}

// The last stripe that fetches a key block of a class, or finds it kept. Example: stripe 0 wants blocks 0…9, stripe 1 wants 4…5:
// {[0,4) -> 0, [4,6) -> 1, [6,10) -> 0}. Of 0…9, block 4 and 5 are used later than in stripe 0.
class LastUse {
 public:
  LastUse(const Shared& shared, const RankPlan& plan, size_t key_class) {
    Intervals seen;
    for (size_t s = plan.stripes.size(); s-- > 0;) {
      const Intervals wanted = fetchable(shared, plan, plan.stripes[s].need[key_class]);
      for (const Interval& run : subtract(wanted, seen)) runs_.push_back({run, s});
      seen = unite(seen, wanted);
    }
    std::sort(runs_.begin(), runs_.end(), [](const Run& a, const Run& b) { return a.blocks.begin < b.blocks.begin; });
  }
  Intervals later_than(size_t stripe, const Intervals& blocks) const {
    Intervals later;
    for (const Interval& part : blocks) {
      auto run = std::partition_point(runs_.begin(), runs_.end(), [&](const Run& r) { return r.blocks.end <= part.begin; });
      for (; run != runs_.end() && run->blocks.begin < part.end; ++run)
        if (run->stripe > stripe) append(later, overlap(run->blocks, part));
    }
    return later;
  }

 private:
  struct Run {
    Interval blocks;
    size_t stripe;
  };
  std::vector<Run> runs_;  // ascending, disjoint
};

// A few groups of fetched keys (one where own keys do not come first on a GPU), so that one can be computed while the next is on its way.
// On a GPU one, where the own keys' step takes as long as all of them need, or where rows find so little in a group that a step of it takes
// longest to read and write their states. Example: BigBird with 64-token blocks looks at two tiles of fetched keys a row, half the time of
// a step that brings its states to and fro.
int64_t worthwhile_groups(const Shared& shared, const Stripe& stripe, const std::vector<Intervals>& fetched, int64_t unit_bytes) {
  constexpr int64_t kFew = 4;
  if (!shared.options.on_gpu || stripe.is_long() || shared.options.reproducible || !shared.keys_stay) return kFew;
  if (!shared.own_keys_first) return 1;
  constexpr double kTileSeconds = 1e-10;        // of a head_dim of one: 13 ns for 128 at 640 TFLOP/s, an H100
  constexpr double kLinkBytesPerSecond = 25e9;  // between hosts; within one it is more
  constexpr double kTilesOfAStep = 16;          // of a row: a state of 128 elements is read and written in the time of four tiles
  const auto units = static_cast<double>(units_of(shared, fetched));
  const double part = units / static_cast<double>(std::max<int64_t>(1, units_of(shared, stripe.need)));
  const double tiles = static_cast<double>(stripe.weighted_quarters) / 4;
  if (tiles * (1 - part) * kTileSeconds * shared.shape.head_dim > units * static_cast<double>(unit_bytes) / kLinkBytesPerSecond) return 1;
  const auto rows = static_cast<double>(size_of(stripe.query_blocks) * shared.shape.heads);
  return std::clamp<int64_t>(static_cast<int64_t>(tiles * part / std::max(1.0, rows) / kTilesOfAStep), 1, kFew);
}

int64_t group_bytes_of(const Shared& shared, const Stripe& stripe, const std::vector<Intervals>& fetched, int64_t unit_bytes,
                       int64_t room) {
  const int64_t bytes = units_of(shared, fetched) * unit_bytes, groups = worthwhile_groups(shared, stripe, fetched, unit_bytes);
  const int64_t one_block = shared.shape.kv_heads * unit_bytes;
  // Three fit into the room, kept units aside.
  const int64_t most = shared.options.step_bytes > 0 ? std::min(room / 3, shared.options.step_bytes) : room / 3;
  const int64_t part = (bytes + groups * one_block - 1) / (groups * one_block) * one_block;  // of whole blocks
  return std::max(one_block, std::min(most, std::max(kWorthwhileGroup, part)));
}

}  // namespace

bool Shared::is_long(int group, int64_t block) const {
  const auto found =
      std::lower_bound(long_rows.begin(), long_rows.end(), std::pair(block, group),
                       [](const LongRow& row, const std::pair<int64_t, int>& key) { return std::pair(row.block, row.group) < key; });
  return found != long_rows.end() && found->block == block && found->group == group;
}

std::vector<Interval> parts_of(const Shared& shared, const Piece& piece) {
  const Intervals& keys = shared.long_rows[static_cast<size_t>(piece.row)].key_blocks;
  std::vector<Interval> parts;
  for (int64_t begin = piece.key_blocks.begin; begin < piece.key_blocks.end; begin += shared.part_blocks) {
    const Interval part{begin, std::min(piece.key_blocks.end, begin + shared.part_blocks)};
    if (!clipped(keys, part).empty()) parts.push_back(part);
  }
  return parts;
}

std::vector<StripeRow> rows_of(const Shared& shared, const pattern::BoundPattern& pattern, const Stripe& stripe, int rank) {
  std::vector<StripeRow> rows;
  for (int64_t p = stripe.pieces.begin; p < stripe.pieces.end; ++p) {
    const Piece& piece = shared.pieces[static_cast<size_t>(p)];
    if (piece.rank != rank) continue;
    const LongRow& row = shared.long_rows[static_cast<size_t>(piece.row)];
    for (const Interval& part : parts_of(shared, piece)) rows.push_back({row.group, row.block, part, static_cast<int>(p)});
  }
  const auto groups = static_cast<int>(pattern.groups().size());
  for (const Interval& blocks : stripe.query_blocks)
    for (int64_t block = blocks.begin; block < blocks.end; ++block)
      for (int group = 0; group < groups; ++group)
        if (!shared.is_long(group, block)) rows.push_back({group, block, {0, shared.partition.blocks()}, -1});
  return rows;
}

int step_of(const Shared& shared, const RankPlan& plan, const Stripe& stripe, int64_t block) {
  if (shared.own_keys_first && contains(plan.own, block)) return 0;
  const auto next = std::upper_bound(stripe.bounds.begin(), stripe.bounds.end(), block) - stripe.bounds.begin();
  const auto group = static_cast<size_t>(std::max<int64_t>(0, next - 1));
  const size_t before = group < stripe.first_group ? stripe.bounds.size() - 1 : 0;
  return static_cast<int>(before + group - stripe.first_group) + (shared.own_keys_first ? 1 : 0);
}

namespace {

size_t first_group_of(const Stripe& stripe) {
  if (stripe.groups.size() < 3 || stripe.begins_before == 0) return 0;
  const auto next = std::lower_bound(stripe.groups.begin() + 1, stripe.groups.end(), stripe.begins_before);
  return static_cast<size_t>(next - stripe.groups.begin()) - 1;
}

// Groups side by side that bring nothing become one step: all of their keys are here. Of groups 0 … 4 of which 1 alone brings some, steps
// are {0}, {1}, {2, 3, 4}. `first`: the first group's place in stripe.fetch. What comes first and what last is not joined: the order stays.
void join_idle_groups(Stripe& stripe, size_t first, size_t first_group) {
  stripe.bounds = stripe.groups, stripe.first_group = 0;
  if (stripe.groups.size() < 3) return;
  std::vector<bool> brings;  // by group
  for (size_t step = first; step < stripe.fetch.size(); ++step)
    brings.push_back(std::any_of(stripe.fetch[step].begin(), stripe.fetch[step].end(), [](const Intervals& of) { return !of.empty(); }));
  stripe.bounds = {stripe.groups.front()};
  std::vector<std::vector<Intervals>> fetch(stripe.fetch.begin(), stripe.fetch.begin() + static_cast<int64_t>(first) + 1);
  for (size_t group = 1; group < brings.size(); ++group) {
    if (group == first_group) stripe.first_group = stripe.bounds.size();
    if (!brings[group] && !brings[group - 1] && group != first_group) continue;
    stripe.bounds.push_back(stripe.groups[group]);
    fetch.push_back(std::move(stripe.fetch[first + group]));
  }
  stripe.bounds.push_back(stripe.groups.back());
  const auto begin = fetch.begin() + static_cast<int64_t>(first);
  std::rotate(begin, begin + static_cast<int64_t>(stripe.first_group), fetch.end());
  stripe.fetch = std::move(fetch);
}

// Units that may stay for later stripes beside the largest group and the next one.
int64_t room_to_keep(const Shared& shared, const RankPlan& plan) {
  int64_t largest_group = shared.shape.kv_heads * plan.unit_bytes;
  for (const Stripe& stripe : plan.stripes) {
    std::vector<Intervals> all(shared.classes.size());
    for (size_t c = 0; c < all.size(); ++c) all[c] = fetchable(shared, plan, stripe.need[c]);
    largest_group = std::max(largest_group, group_bytes_of(shared, stripe, all, plan.unit_bytes, shared.memory.received));
  }
  return std::max<int64_t>(0, shared.memory.received - 2 * largest_group) / plan.unit_bytes;
}

// Stripe::begins_before. Four ranks or groups of neighbours, which often share a host and then fetch the same keys in the same step, have
// an order of their own: the keys of others mostly come in four groups.
int64_t begins_before(const Shared& shared, int rank) {
  constexpr int kOrders = 4;
  const int ranks = shared.partition.ranks(), order = static_cast<int>(int64_t{rank} * kOrders / ranks);
  const int first = (order * ranks + kOrders - 1) / kOrders;  // of the ranks that have it
  const Intervals blocks = shared.partition.blocks_of(first);
  return blocks.empty() || blocks.front().begin == 0 ? shared.partition.blocks() : blocks.front().begin;
}

}  // namespace

void plan_fetches(const Shared& shared, RankPlan& plan) {
  const size_t classes = shared.classes.size(), stripes = plan.stripes.size();
  std::vector<LastUse> last_use;
  for (size_t c = 0; c < classes; ++c) last_use.emplace_back(shared, plan, c);

  const int64_t keep_room = room_to_keep(shared, plan);

  plan.bytes_read_again = 0;
  for (size_t c = 0; c < plan.halves.size(); ++c) {
    Intervals needed;  // stripes that have been emptied need nothing any more
    for (const Stripe& stripe : plan.stripes) needed = unite(needed, stripe.need[c]);
    plan.halves[c] = intersect(plan.halves[c], halves_of(needed));
  }
  std::vector<Intervals> kept(classes);
  for (size_t s = 0; s < stripes; ++s) {
    Stripe& stripe = plan.stripes[s];
    const size_t groups = std::max<size_t>(stripe.groups.size(), 1) - 1, first = shared.own_keys_first ? 1 : 0;
    stripe.fetch.assign(std::max<size_t>(1, groups + first), std::vector<Intervals>(classes));
    stripe.keep.assign(classes, {});
    // What was kept before lies here until this stripe ends, needed later or not: new ones get the room that it leaves.
    int64_t room = keep_room;
    for (size_t c = 0; c < classes; ++c) room -= size_of(kept[c]) * heads_of_class(shared.classes[c]);
    for (size_t c = 0; c < classes; ++c) {
      const Intervals wanted = fetchable(shared, plan, stripe.need[c]);
      const Intervals missing = subtract(wanted, kept[c]);
      for (size_t g = 0; g < groups; ++g) stripe.fetch[g + first][c] = clipped(missing, {stripe.groups[g], stripe.groups[g + 1]});
      if (!shared.keys_stay) plan.bytes_read_again += size_of(missing) * heads_of_class(shared.classes[c]) * plan.unit_bytes;
      stripe.keep[c] = last_use[c].later_than(s, kept[c]);
      const Intervals more = subtract(last_use[c].later_than(s, wanted), stripe.keep[c]);
      const Intervals fits = first_of(more, std::max<int64_t>(0, room) / heads_of_class(shared.classes[c]));
      room -= size_of(fits) * heads_of_class(shared.classes[c]);
      stripe.keep[c] = unite(stripe.keep[c], fits);
    }
    kept = stripe.keep;
    join_idle_groups(stripe, first, first_group_of(stripe));
  }
  plan.bytes_moved = shared.keys_stay ? bytes_of_fetches(shared, plan) : 0;
}

int64_t most_fetched_units(const Shared& shared, const RankPlan& plan, int ahead, const std::vector<int>& steps) {
  std::vector<int64_t> arriving, leaving;
  std::vector<Intervals> kept(shared.classes.size());
  const auto units = [&](const std::vector<Intervals>& blocks, const std::vector<Intervals>* keep) {
    int64_t sum = 0;
    for (size_t c = 0; c < blocks.size(); ++c)
      sum += size_of(keep ? subtract(blocks[c], (*keep)[c]) : blocks[c]) * heads_of_class(shared.classes[c]);
    return sum;
  };
  for (size_t s = 0; s < plan.stripes.size(); ++s) {
    const Stripe& stripe = plan.stripes[s];
    const size_t count = s < steps.size() ? static_cast<size_t>(steps[s]) : stripe.fetch.size();
    for (size_t step = 0; step < count; ++step) {
      const bool planned = step < stripe.fetch.size();
      arriving.push_back(planned ? units(stripe.fetch[step], nullptr) : 0);
      leaving.push_back(planned ? units(stripe.fetch[step], &stripe.keep) : 0);
    }
    leaving.back() += units(kept, &stripe.keep);
    kept = stripe.keep;
  }
  const auto later = static_cast<size_t>(ahead);
  int64_t here = std::accumulate(arriving.begin(), arriving.begin() + static_cast<int64_t>(std::min(later, arriving.size())), int64_t{0});
  int64_t most = here;
  for (size_t t = 0; t < arriving.size(); ++t) {
    if (t + later < arriving.size()) here += arriving[t + later];
    most = std::max(most, here);
    here -= leaving[t];
  }
  return most;
}

int steps_ahead(const Shared& shared, const RankPlan& plan, const std::vector<int>& steps) {
  if (shared.options.step_bytes > 0) return 1;  // what messages may take elsewhere was reckoned with one step ahead
  // The groups into which a stripe's keys are divided; or stripes of one step, each of which takes less than its keys.
  int ahead = shared.short_stripes_first ? 8 : 4;
  while (ahead > 1 && most_fetched_units(shared, plan, ahead, steps) * plan.unit_bytes > shared.memory.received) --ahead;
  return ahead;
}

namespace {

// Of those in use and those made ahead, as the engine makes them: one stripe's in any case, more where there is room.
int64_t most_list_bytes(const Shared& shared, const RankPlan& plan) {
  int64_t most = 0;
  for (size_t s = 0; s < plan.stripes.size(); ++s) {
    int64_t bytes = 0;
    for (size_t ahead = 0; ahead <= kListsAhead && s + ahead < plan.stripes.size(); ++ahead) {
      const int64_t more = plan.stripes[s + ahead].list_bytes;
      if (ahead > 1 && bytes + more > shared.memory.lists) break;
      bytes += more;
    }
    most = std::max(most, bytes);
  }
  return most;
}

// Nothing when there would be more than kMostSteps.
std::optional<RankPlan> rank_plan_of(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, int rank) {
  RankPlan plan;
  plan.rank = rank;
  plan.own = shared.partition.blocks_of(rank);
  plan.unit_bytes = kernels::unit_bytes(shared.shape.type, shared.shape.head_dim);
  plan.memory = shared.memory;
  if (shared.in_halves) plan.halves.resize(shared.classes.size());
  TileLists lists(pattern, blocks);

  const int64_t rows_total = size_of(plan.own);
  const int64_t by_count = std::max<int64_t>(8, (rows_total + shared.options.stripes - 1) / std::max(1, shared.options.stripes));
  const int64_t by_memory = std::max<int64_t>(1, shared.memory.stripe / block_row_bytes(shared.shape, shared.options.output_type));
  const int64_t whole_stripe = shared.options.stripes <= 1 ? by_memory : std::min(by_count, by_memory);
  int own_stripes = 0;
  // The first stripes are a quarter, a quarter and a half of one, where that leaves a GPU work for all of it. Rows that look at keys all
  // over need most of them early: a quarter of BigBird's rows needs half of all or more, an eighth or a sixteenth less.
  const auto most_blocks = [&] {
    constexpr int64_t kParts[] = {4, 4, 2}, kLeast = 64;
    const bool is_short = shared.short_stripes_first && own_stripes < 3;
    return is_short ? std::min(whole_stripe, std::max(kLeast, whole_stripe / kParts[own_stripes])) : whole_stripe;
  };

  // A plan of more entries than can be listed is estimated from every `thin`-th row, a tenth of what would still be counted.
  const double entries = shared.mean_entries * static_cast<double>(rows_total);
  const double exact = static_cast<double>(shared.options.exact_tiles);
  const int64_t thin = entries > exact ? static_cast<int64_t>(10 * entries / exact) + 1 : 1;

  std::vector<kernels::Tile> tiles;
  const auto fill = [&](Stripe& stripe, const std::vector<StripeRow>& rows, NeedCollector& need) {
    const StripeRow* before = nullptr;
    for (const StripeRow& row : rows) {
      const bool sampled = thin > 1 && row.piece < 0;
      if (sampled && row.block % thin != 0) continue;
      tiles.clear();
      const TileCount count = lists.append(row.group, row.block, row.key_blocks, tiles);
      need.add(row.group, tiles, sampled ? thin : 1, blocks.reach(row.block));
      const int64_t times = sampled ? thin : 1;
      const auto heads = static_cast<int64_t>(pattern.groups()[static_cast<size_t>(row.group)].heads.size());
      stripe.tiles += {count.full * times, count.partial * times, count.quarters * times};
      stripe.weighted_tiles += count.tiles() * heads * times;
      stripe.weighted_quarters += count.quarters * heads * times;
      if (!before || before->block != row.block || before->key_blocks.begin != row.key_blocks.begin) stripe.list_rows += times;
      before = &row;
      stripe.list_entries += static_cast<int64_t>(tiles.size()) * times;
      stripe.estimated = stripe.estimated || sampled;
    }
  };
  const auto close = [&](Stripe& stripe, NeedCollector& need) {
    stripe.need = need.take(plan.halves);
    stripe.list_bytes = stripe.list_entries * static_cast<int64_t>(sizeof(kernels::Tile)) + lists.masks().bytes();
    plan.stripes.push_back(std::move(stripe));
    lists.clear();
  };

  for (const Interval& batch : shared.batches) {
    Stripe stripe;
    stripe.pieces = batch;
    NeedCollector need(shared);
    fill(stripe, rows_of(shared, pattern, stripe, rank), need);
    close(stripe, need);
  }
  Stripe stripe;
  NeedCollector need(shared);
  // Half: the next stripe's lists are made while this one's are in use.
  const int64_t most_entries = std::max<int64_t>(1, shared.memory.lists / 2 / static_cast<int64_t>(sizeof(kernels::Tile)));
  for (const Interval& run : plan.own) {
    for (int64_t block = run.begin; block < run.end; ++block) {
      Stripe one;
      one.query_blocks = {{block, block + 1}};
      fill(stripe, rows_of(shared, pattern, one, rank), need);
      append(stripe.query_blocks, {block, block + 1});
      if (size_of(stripe.query_blocks) >= most_blocks() || (stripe.list_entries / thin) > most_entries) {
        close(stripe, need);
        stripe = Stripe();
        ++own_stripes;
      }
    }
  }
  if (!stripe.query_blocks.empty()) close(stripe, need);
  // States that come from other ranks have until others of this one's stripes are computed. (A job that is killed before that computes the
  // long rows again.)
  if (shared.short_stripes_first) {
    std::set<int64_t> awaited;  // query blocks
    for (const Piece& piece : shared.pieces)
      if (piece.rank != rank) awaited.insert(shared.long_rows[static_cast<size_t>(piece.row)].block);
    std::stable_partition(plan.stripes.begin(), plan.stripes.end(), [&](const Stripe& one) {
      return std::none_of(awaited.begin(), awaited.end(), [&](int64_t block) { return contains(one.query_blocks, block); });
    });
  }

  std::vector<Intervals> needed(shared.classes.size());
  for (const Stripe& done : plan.stripes)
    for (size_t c = 0; c < done.need.size(); ++c) needed[c] = unite(needed[c], done.need[c]);
  for (size_t c = 0; c < needed.size(); ++c) {
    plan.bytes_needed += travelling_bytes(shared, plan, c, needed[c]);
    plan.bytes_held += travelling_bytes(shared, plan, c, intersect(needed[c], plan.own));
  }
  // Where keys stay, later stripes bring little: one step of theirs is worth more than the order.
  bool in_turns = shared.own_keys_first && shared.keys_stay;
  int64_t units_of_others = 0;
  for (size_t c = 0; c < needed.size(); ++c) units_of_others += size_of(subtract(needed[c], plan.own)) * heads_of_class(shared.classes[c]);
  const bool all_stay = units_of_others <= room_to_keep(shared, plan);
  int64_t steps = 0;
  for (Stripe& done : plan.stripes) {
    std::vector<Intervals> fetched(done.need.size());
    for (size_t c = 0; c < done.need.size(); ++c) fetched[c] = fetchable(shared, plan, done.need[c]);
    if (in_turns && !done.is_long()) {
      done.begins_before = begins_before(shared, rank);
      in_turns = !all_stay;
    }
    const int64_t group_bytes = group_bytes_of(shared, done, fetched, plan.unit_bytes, shared.memory.received);
    done.groups = group_bounds(shared, fetched, plan.unit_bytes, group_bytes, done.begins_before);
    steps += static_cast<int64_t>(done.groups.size());
    // Work items: each row's, for each KV head, in each step.
    done.list_bytes += done.list_rows * shared.shape.kv_heads * static_cast<int64_t>(done.groups.size() * sizeof(kernels::Work));
    if (steps > kMostSteps) return std::nullopt;
  }
  plan_fetches(shared, plan);
  plan.memory.lists = most_list_bytes(shared, plan);
  // What this rank will use of its share.
  int64_t most_rows = 0;
  for (const Stripe& done : plan.stripes) most_rows = std::max(most_rows, size_of(done.query_blocks));
  plan.memory.home = shared.keys_stay ? rows_total * shared.shape.kv_heads * plan.unit_bytes : 0;
  plan.memory.received = most_fetched_units(shared, plan, steps_ahead(shared, plan)) * plan.unit_bytes;

  plan.memory.long_rows = 0;
  for (const LongRow& row : shared.long_rows) {
    if (shared.partition.rank_of(row.block) != rank) continue;
    const auto heads = static_cast<int64_t>(pattern.groups()[static_cast<size_t>(row.group)].heads.size());
    plan.memory.long_rows += blocks.rows(row.block) * heads * state_bytes(shared.shape);
  }
  int64_t most_queries = most_rows, most_states = most_rows, travelling = 0;  // of a stripe: blocks, blocks and bytes
  for (const Interval& batch : shared.batches) {
    std::set<int> rows_here;                         // a batch brings the queries of a row once
    std::set<int64_t> queries, own;                  // blocks whose queries are computed with here, and own ones
    std::set<std::pair<int64_t, int64_t>> computed;  // block and first key block of pieces,
    std::set<std::pair<int64_t, int64_t>> in_parts;  // and of parts
    for (int64_t p = batch.begin; p < batch.end; ++p) {
      const Piece& piece = shared.pieces[static_cast<size_t>(p)];
      const LongRow& row = shared.long_rows[static_cast<size_t>(piece.row)];
      const int home = shared.partition.rank_of(row.block);
      if (home == rank) own.insert(row.block);
      if (piece.rank == rank) {
        queries.insert(row.block), computed.emplace(row.block, piece.key_blocks.begin);
        for (const Interval& part : parts_of(shared, piece)) in_parts.emplace(row.block, part.begin);
      }
      if (piece.rank == home) continue;
      const int64_t states = blocks.rows(row.block) * static_cast<int64_t>(pattern.groups()[static_cast<size_t>(row.group)].heads.size());
      if (piece.rank == rank && rows_here.insert(piece.row).second)
        plan.row_bytes_moved += states * shared.shape.head_dim * static_cast<int64_t>(size_of(shared.shape.type));
      if (home == rank) plan.row_bytes_moved += states * state_bytes(shared.shape);
    }
    const auto count = [](const auto& set) { return static_cast<int64_t>(set.size()); };
    const auto is_computed = [&](int64_t block) { return queries.count(block) != 0; };
    const int64_t only_leaving = count(own) - std::count_if(own.begin(), own.end(), is_computed);
    most_queries = std::max(most_queries, count(queries));
    most_states = std::max(most_states, count(in_parts));
    // Queries that only leave; packed states, one that is being packed or merged, and two that arrive.
    travelling = std::max(travelling, only_leaving * block_query_bytes(shared.shape) +
                                          (count(computed) + (own.empty() ? 1 : 3)) * block_state_bytes(shared.shape));
  }
  // What travels for long rows lies where results will lie afterwards.
  plan.memory.stripe = (most_rows + most_queries) * block_query_bytes(shared.shape) + most_states * block_state_bytes(shared.shape) +
                       std::max(travelling, 2 * most_rows * block_result_bytes(shared.shape, shared.options.output_type));
  return plan;
}

}  // namespace

RankPlan make_rank_plan(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, int rank) {
  if (std::optional<RankPlan> plan = rank_plan_of(shared, pattern, blocks, rank)) return std::move(*plan);
  Options options = shared.options;
  do {
    options.memory *= 2;
  } while (!rank_plan_of(make_shared(pattern, blocks, shared.shape, shared.partition.ranks(), options), pattern, blocks, rank));
  throw Error({.code = ExitCode::usage,
               .what = fmt::format("too little memory: a rank would need more than {} steps", kMostSteps),
               .seen = mebibytes(shared.options.memory),
               .expected = "at least " + mebibytes(options.memory),
               .from = "option --memory",
               .mend = fmt::format("--memory {} would do; more ranks need less each", mebibytes(options.memory))});
}

int64_t RankPlan::weighted_tiles() const {
  return std::accumulate(stripes.begin(), stripes.end(), int64_t{0},
                         [](int64_t sum, const Stripe& stripe) { return sum + stripe.weighted_tiles; });
}
int64_t RankPlan::weighted_quarters() const {
  return std::accumulate(stripes.begin(), stripes.end(), int64_t{0},
                         [](int64_t sum, const Stripe& stripe) { return sum + stripe.weighted_quarters; });
}
TileCount RankPlan::tiles() const {
  TileCount count;
  for (const Stripe& stripe : stripes) count += stripe.tiles;
  return count;
}
bool RankPlan::estimated() const {
  return std::any_of(stripes.begin(), stripes.end(), [](const Stripe& stripe) { return stripe.estimated; });
}
int64_t RankPlan::most_steps() const {
  int64_t most = 0;
  for (const Stripe& stripe : stripes) most = std::max<int64_t>(most, stripe.steps());
  return most;
}
double RankPlan::flop(const Shape& shape) const { return 4.0 * shape.head_dim * 64 * 64 * static_cast<double>(weighted_quarters()); }
int64_t RankPlan::ring_bytes(const Shared& shared) const {
  return (shared.partition.blocks() - size_of(own)) * shared.shape.kv_heads * unit_bytes;
}

}  // namespace longspan::plan
