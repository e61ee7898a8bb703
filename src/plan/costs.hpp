// What rows cost, from a few sampled ones: the same on every rank, with recorded constants and never with live timings. Chooses the
// partition and finds the long rows; and, for one rank, from where a device reads its own keys.
#pragma once

#include <cstdint>
#include <vector>

#include "longspan/shape.hpp"
#include "plan/partition.hpp"
#include "plan/tiles.hpp"

namespace longspan::plan {

// A query block that looks at far more keys than the mean does, under one head group.
struct LongRow {
  int group = 0;
  int64_t block = 0;
  Intervals key_blocks;
};

class RowCosts {
 public:
  // Samples at most 4,096 query blocks, evenly.
  RowCosts(const TileLists& lists, const pattern::BoundPattern& pattern, const Blocks& blocks, const Options& options);

  // Tiles × query heads of all rows of `range`, and of the long rows' looks at the keys there; interpolated between samples.
  double cost(Interval range) const { return before(range.end) - before(range.begin); }
  double total() const { return prefix_.back(); }
  // The block before which `share` (0…1) of the total cost lies.
  int64_t block_at(double share) const;
  const std::vector<LongRow>& long_rows() const { return long_rows_; }
  bool is_long(int group, int64_t block) const;
  // Mean entries of a query block's tile lists, all groups (a run of full tiles is one entry).
  double mean_entries() const { return mean_entries_; }

 private:
  double before(int64_t block) const;
  int64_t long_rows_in(int group, Interval blocks) const;

  std::vector<int64_t> starts_;  // sampled blocks, ascending, and the number of blocks: what lies between two costs as the first does
  std::vector<double> prefix_;   // prefix_[s] = cost of all blocks before starts_[s]
  std::vector<LongRow> long_rows_;
  double mean_entries_ = 0;
};

// The partition asked for, or for `automatic` the one whose slowest rank finishes first: tiles at the model's compute rate, or the
// key/value bytes that the rank needs from others at the model's link rate, whichever takes longer (they overlap). Ties go to contiguous,
// then zigzag.
Partition choose_partition(const TileLists& lists, const pattern::BoundPattern& pattern, const Blocks& blocks, const Shape& shape,
                           const RowCosts& costs, int ranks, const Options& options);

// Whether a device that can attend own keys where a caller has their rows should, and not bring them into the pool first, from where
// kernels read them faster. `tiles`: of the rank's rows, for each query head, others' keys too; `own`: units, of which `sent` go to others
// by way of the pool, whatever this says.
bool keys_stay_in_rows(int64_t tiles, int64_t own, int64_t sent);

}  // namespace longspan::plan
