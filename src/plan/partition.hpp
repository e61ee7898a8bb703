// Which rank owns which query blocks, and so which key blocks it is home to. A partition is a list of chunks, at most two a rank, so every
// rank knows the whole of it.
//
//   contiguous, 3 ranks: 0 0 1 1 2 2      zigzag, 3 ranks: 0 1 2 2 1 0 (causal rows: every rank gets a cheap and a dear chunk)
//   balanced: contiguous chunks of equal cost rather than of equal length
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "pattern/intervals.hpp"
#include "pattern/pattern.hpp"
#include "plan/blocks.hpp"
#include "plan/options.hpp"

namespace longspan::plan {

class Partition {
 public:
  static Partition contiguous(int64_t blocks, int ranks);
  static Partition zigzag(int64_t blocks, int ranks);
  // Chunk r = [bounds[r], bounds[r + 1]) belongs to rank r.
  static Partition balanced(std::vector<int64_t> bounds);

  PartitionKind kind() const { return kind_; }
  int ranks() const { return ranks_; }
  int64_t blocks() const { return bounds_.back(); }
  int rank_of(int64_t block) const;
  Intervals blocks_of(int rank) const;
  int64_t most_blocks() const;  // of one rank
  // Calls f(home, part) for the parts of `blocks` with one home each, ascending.
  template <typename F>
  void for_each_home(const Intervals& blocks, F f) const {
    for (const Interval& run : blocks) {
      auto chunk = static_cast<size_t>(std::upper_bound(bounds_.begin(), bounds_.end(), run.begin) - bounds_.begin()) - 1;
      for (int64_t at = run.begin; at < run.end; ++chunk) {
        const Interval part{at, std::min(run.end, bounds_[chunk + 1])};
        if (part.empty()) continue;
        f(owners_[chunk], part);
        at = part.end;
      }
    }
  }
  // Chunk boundaries, ascending, 0 and blocks() included; owners()[c] owns [bounds()[c], bounds()[c + 1]).
  const std::vector<int64_t>& bounds() const { return bounds_; }
  const std::vector<int>& owners() const { return owners_; }

 private:
  Partition(PartitionKind kind, int ranks, std::vector<int64_t> bounds, std::vector<int> owners)
      : kind_(kind), ranks_(ranks), bounds_(std::move(bounds)), owners_(std::move(owners)) {}
  PartitionKind kind_;
  int ranks_;
  std::vector<int64_t> bounds_;
  std::vector<int> owners_;
};

}  // namespace longspan::plan
