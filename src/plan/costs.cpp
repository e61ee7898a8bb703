#include "plan/costs.hpp"

#include <algorithm>
#include <cmath>
#include <map>

namespace longspan::plan {

namespace {

// The model's constants, recorded rather than measured so that all ranks and all runs choose alike. Their ratio is what matters: one
// tile of one head at D = 128 is 8.4 MFLOP; a mid-range node computes 1 TFLOP/s a rank and receives 5 GB/s.
constexpr double kFlopPerSecond = 1e12;
constexpr double kBytesPerSecond = 5e9;
constexpr double kRowOverheadTiles = 1;  // reading Q and writing O of one block and head, in tiles
constexpr double kTie = 0.02;

// One group for each rule stands for all of the rule's groups: lists per head differ in where they point, not in how long they are.
struct RuleSample {
  int group = 0;
  int heads = 0;
};

std::vector<RuleSample> rules_of(const pattern::BoundPattern& pattern) {
  std::vector<RuleSample> rules;
  std::vector<int> rule_numbers;
  const auto& groups = pattern.groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto found = std::find(rule_numbers.begin(), rule_numbers.end(), groups[g].rule);
    const auto heads = static_cast<int>(groups[g].heads.size());
    if (found == rule_numbers.end()) {
      rule_numbers.push_back(groups[g].rule);
      rules.push_back({static_cast<int>(g), heads});
    } else {
      rules[static_cast<size_t>(found - rule_numbers.begin())].heads += heads;
    }
  }
  return rules;
}

// Blocks that hold the first rows of a document under terms that single out rows: the only places where a formula makes long rows.
Intervals singled_out_blocks(const pattern::BoundPattern& pattern, const Blocks& blocks, int group, int64_t least_blocks) {
  Intervals found;
  for (const Blocks::Run& run : blocks.runs()) {
    if (run.shared || run.blocks <= least_blocks) continue;
    for (const Interval& rows : pattern.singled_out_rows(group, run.tokens.length()))
      append(found, {run.first_block + rows.begin / kBlock, run.first_block + (rows.end - 1) / kBlock + 1});
  }
  return found;
}

}  // namespace

RowCosts::RowCosts(const TileLists& lists, const pattern::BoundPattern& pattern, const Blocks& blocks, const Options& options) {
  const std::vector<RuleSample> rules = rules_of(pattern);
  const Interval all{0, blocks.count()};
  bool smooth = blocks.runs().size() == 1;  // one document under rules of distance: cost is a smooth function of the row
  for (const RuleSample& rule : rules) smooth = smooth && pattern.translation_invariant(rule.group);
  int64_t samples = std::min<int64_t>(blocks.count(), smooth ? 256 : 4096);
  // Rows of many intervals (a stride over millions of keys) are sampled more thinly, for the same total work.
  int64_t dearest = 1;
  for (const RuleSample& rule : rules) {
    for (const int64_t block : {blocks.count() / 2, blocks.count() - 1}) {
      int64_t listed = 0;
      const auto intervals = static_cast<int64_t>(lists.candidates(rule.group, block, all, &listed).size());
      dearest += std::max(intervals, listed);
    }
  }
  samples = std::min(samples, std::max<int64_t>(64, 2'000'000 / dearest));
  samples = std::min(samples, blocks.count());
  for (int64_t s = 0; s <= samples; ++s) starts_.push_back(blocks.count() * s / samples);

  std::vector<std::vector<int64_t>> tiles(rules.size());
  double entries = 0;
  for (size_t r = 0; r < rules.size(); ++r) {
    const auto& groups = pattern.groups();
    const auto same_rule = std::count_if(groups.begin(), groups.end(),
                                         [&](const auto& group) { return group.rule == groups[static_cast<size_t>(rules[r].group)].rule; });
    for (int64_t s = 0; s < samples; ++s) {
      int64_t listed = 0;
      tiles[r].push_back(size_of(lists.candidates(rules[r].group, starts_[static_cast<size_t>(s)], all, &listed)));
      entries += static_cast<double>(listed) * static_cast<double>(same_rule) / static_cast<double>(samples);
    }
  }
  mean_entries_ = entries;

  for (size_t r = 0; r < rules.size(); ++r) {
    double mean = 0;
    for (int64_t count : tiles[r]) mean += static_cast<double>(count) / static_cast<double>(samples);
    const double limit = std::max(options.long_row_factor * mean, static_cast<double>(options.longest_part()));
    const Intervals suspects = singled_out_blocks(pattern, blocks, rules[r].group, options.longest_part());
    if (size_of(suspects) > blocks.count() / 4) continue;  // so many cannot exceed the mean by that factor
    const auto& groups = pattern.groups();
    for (size_t g = 0; g < groups.size(); ++g) {
      if (groups[g].rule != groups[static_cast<size_t>(rules[r].group)].rule) continue;
      for (const Interval& range : suspects) {
        for (int64_t block = range.begin; block < range.end; ++block) {
          Intervals keys = lists.candidates(static_cast<int>(g), block, all);
          if (static_cast<double>(size_of(keys)) > limit) long_rows_.push_back({static_cast<int>(g), block, std::move(keys)});
        }
      }
    }
  }
  std::sort(long_rows_.begin(), long_rows_.end(),
            [](const LongRow& a, const LongRow& b) { return std::pair(a.block, a.group) < std::pair(b.block, b.group); });

  // The tiles of long rows are computed where their keys are: how many heads' long rows look at the blocks from here on.
  std::map<int64_t, double> change;
  for (const LongRow& row : long_rows_) {
    const auto heads = static_cast<double>(pattern.groups()[static_cast<size_t>(row.group)].heads.size());
    for (const Interval& run : row.key_blocks) change[run.begin] += heads, change[run.end] -= heads;
  }
  auto next_change = change.begin();
  double looked_at = 0;
  const auto long_cost = [&](Interval span) {  // spans in ascending order, none left out
    double cost = 0;
    for (; next_change != change.end() && next_change->first < span.end; ++next_change) {
      cost += looked_at * static_cast<double>(next_change->first - span.begin);
      span.begin = next_change->first;
      looked_at += next_change->second;
    }
    return cost + looked_at * static_cast<double>(span.length());
  };

  prefix_.push_back(0);
  for (size_t s = 0; s < static_cast<size_t>(samples); ++s) {
    const Interval span{starts_[s], starts_[s + 1]};
    double cost = long_cost(span);
    for (size_t r = 0; r < rules.size(); ++r) {
      // A sampled long row stands for nobody but itself: its neighbours are like the next sample that is none.
      size_t like = s;
      while (like < tiles[r].size() && is_long(rules[r].group, starts_[like])) ++like;
      const auto count = static_cast<double>(like < tiles[r].size() ? tiles[r][like] : 0);
      const auto rows = static_cast<double>(span.length() - long_rows_in(rules[r].group, span));
      cost += rules[r].heads * (rows * count + static_cast<double>(span.length()) * kRowOverheadTiles);
    }
    prefix_.push_back(prefix_.back() + cost);
  }
}

int64_t RowCosts::long_rows_in(int group, Interval blocks) const {
  const auto before = [](const LongRow& row, int64_t block) { return row.block < block; };
  const auto begin = std::lower_bound(long_rows_.begin(), long_rows_.end(), blocks.begin, before);
  const auto end = std::lower_bound(begin, long_rows_.end(), blocks.end, before);
  return std::count_if(begin, end, [&](const LongRow& row) { return row.group == group; });
}

bool RowCosts::is_long(int group, int64_t block) const {
  const auto found =
      std::lower_bound(long_rows_.begin(), long_rows_.end(), std::pair(block, group),
                       [](const LongRow& row, const std::pair<int64_t, int>& key) { return std::pair(row.block, row.group) < key; });
  return found != long_rows_.end() && found->block == block && found->group == group;
}

double RowCosts::before(int64_t block) const {
  const auto next = std::upper_bound(starts_.begin(), std::prev(starts_.end()), block) - starts_.begin();
  const auto s = static_cast<size_t>(next) - 1;
  const double share = static_cast<double>(block - starts_[s]) / static_cast<double>(std::max<int64_t>(1, starts_[s + 1] - starts_[s]));
  return prefix_[s] + (prefix_[s + 1] - prefix_[s]) * share;
}

int64_t RowCosts::block_at(double share) const {
  const double wanted = share * prefix_.back();
  const auto next = std::upper_bound(prefix_.begin(), std::prev(prefix_.end()), wanted) - prefix_.begin();
  const auto s = static_cast<size_t>(std::max<int64_t>(next, 1)) - 1;
  const double span = prefix_[s + 1] - prefix_[s];
  const double part = span > 0 ? std::clamp((wanted - prefix_[s]) / span, 0.0, 1.0) : 0;
  return starts_[s] + static_cast<int64_t>(std::llround(part * static_cast<double>(starts_[s + 1] - starts_[s])));
}

namespace {

// Key blocks that a rank must fetch, estimated from a few of its rows: what their lists reach outside the rank's own blocks. Where later
// sampled rows still add blocks (random patterns), the growth is carried on to all rows of the rank.
double remote_blocks(const TileLists& lists, const std::vector<RuleSample>& rules, const RowCosts& costs, const Partition& partition,
                     int rank) {
  const Intervals own = partition.blocks_of(rank);
  const Interval all{0, partition.blocks()};
  constexpr int kHalf = 4, kRows = 2 * kHalf;
  double most = 0;
  for (const RuleSample& rule : rules) {
    for (const Interval& chunk : own) {
      Intervals half, whole;
      int64_t rows = 0;
      for (int r = 0; r < kRows; ++r) {
        // Outer rows first: they reach furthest beyond the chunk.
        const int64_t place = r % 2 == 0 ? r / 2 : kRows - 1 - r / 2;
        const int64_t block = chunk.begin + (chunk.length() - 1) * place / (kRows - 1);
        if (costs.is_long(rule.group, block)) continue;
        whole = unite(whole, subtract(lists.candidates(rule.group, block, all), own));
        if (++rows == kHalf) half = whole;
      }
      const auto reached = static_cast<double>(size_of(whole));
      const double growth = rows == kRows ? (reached - static_cast<double>(size_of(half))) / kHalf : 0;
      const double reach = whole.empty() ? 0 : static_cast<double>(whole.back().end - whole.front().begin);
      most = std::max(most, std::min(reached + growth * static_cast<double>(std::max<int64_t>(0, chunk.length() - kRows)), reach));
    }
  }
  return most;
}

}  // namespace

Partition choose_partition(const TileLists& lists, const pattern::BoundPattern& pattern, const Blocks& blocks, const Shape& shape,
                           const RowCosts& costs, int ranks, const Options& options) {
  const auto make = [&](PartitionKind kind) {
    if (kind == PartitionKind::contiguous) return Partition::contiguous(blocks.count(), ranks);
    if (kind == PartitionKind::zigzag) return Partition::zigzag(blocks.count(), ranks);
    std::vector<int64_t> bounds{0};
    for (int rank = 1; rank < ranks; ++rank) bounds.push_back(std::max(bounds.back(), costs.block_at(static_cast<double>(rank) / ranks)));
    bounds.push_back(blocks.count());
    return Partition::balanced(std::move(bounds));
  };
  if (options.partition != PartitionKind::automatic) return make(options.partition);
  if (ranks == 1) return make(PartitionKind::contiguous);

  const std::vector<RuleSample> rules = rules_of(pattern);
  const double tile_seconds = 4.0 * kBlock * kBlock * shape.head_dim / kFlopPerSecond;
  const double block_seconds = static_cast<double>(kernels::unit_bytes(shape.type, shape.head_dim)) * shape.kv_heads / kBytesPerSecond;
  std::optional<Partition> best;
  double best_seconds = 0;
  for (PartitionKind kind : {PartitionKind::contiguous, PartitionKind::zigzag, PartitionKind::balanced}) {
    Partition candidate = make(kind);
    double dearest = 0, farthest = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      double cost = 0;
      for (const Interval& chunk : candidate.blocks_of(rank)) cost += costs.cost(chunk);
      dearest = std::max(dearest, cost);
    }
    const int looked_at = std::min(ranks, 9);
    for (int k = 0; k < looked_at; ++k) {
      const int rank = looked_at == 1 ? 0 : static_cast<int>(static_cast<int64_t>(ranks - 1) * k / (looked_at - 1));
      farthest = std::max(farthest, remote_blocks(lists, rules, costs, candidate, rank));
    }
    const double seconds = std::max(dearest * tile_seconds, farthest * block_seconds) + 0.1 * farthest * block_seconds;
    if (!best || seconds < best_seconds * (1 - kTie)) best = std::move(candidate), best_seconds = seconds;
  }
  return *best;
}

// An H200 takes 29 ns longer to bring a unit of head_dim 128 into its pool than to look through its rows, and 11.7 ns for a tile, of which
// rows cost about 1 %. Where most units go to others there is little left to save.
bool keys_stay_in_rows(int64_t tiles, int64_t own, int64_t sent) {
  constexpr int64_t kManyTiles = 256;
  return own > 0 && 2 * sent <= own && tiles < kManyTiles * own;
}

}  // namespace longspan::plan
