// The tile lists of one stripe as the kernels take them: per step, work items and tiles whose keys are resident indices.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cpu/thread_pool.hpp"
#include "kernels/kernel.hpp"
#include "pattern/pattern.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::engine {

struct StepLists {
  std::vector<kernels::Work> work;  // dearest first
  std::vector<kernels::Tile> tiles;
  Intervals resident;             // key blocks that some class uses in this step: resident index = place in here
  std::vector<int32_t> key_rows;  // of each
  int64_t resident_index(int64_t block) const { return numbering_.of(block); }
  Intervals masked() const;  // those of `resident` that are in a tile with a mask (kernels::has_mask)

 private:
  friend struct StripeLists;
  Numbering numbering_;  // of `resident`
};

// Query heads of a head group that read one KV head.
struct HeadSet {
  int32_t kv_head = 0, first_head = 0, head_count = 0;  // first_head: in HeadSets::heads
};
struct HeadSets {
  HeadSets(const pattern::BoundPattern& pattern, const Shape& shape);
  std::vector<int32_t> heads;
  std::vector<std::vector<HeadSet>> of_group;
};

struct StripeLists {
  struct Place {
    int64_t q_row = 0, state_row = 0;
  };
  // `place` says where the rows of a stripe row lie; called by any of `threads` at the same time. `between` is called now and then by the
  // calling thread (messages want to be moved). The lists do not depend on the number of threads.
  static StripeLists make(const plan::Shared& shared, const plan::RankPlan& plan, const pattern::BoundPattern& pattern,
                          const plan::Blocks& blocks, const plan::Stripe& stripe, int steps, const HeadSets& heads,
                          const std::function<Place(const plan::StripeRow&)>& place, const std::function<void()>& between,
                          kernels::cpu::ThreadPool* threads = nullptr);

  std::vector<StepLists> steps;
  std::vector<kernels::MaskBits> masks;
  bool some_rows_see_nothing = false;  // rows that have no tile under some head group, in no step
};

// Key blocks of `key_class` that the stripe uses in `step`.
Intervals step_blocks(const plan::Shared& shared, const plan::RankPlan& plan, const plan::Stripe& stripe, size_t key_class, int step);

}  // namespace longspan::engine
