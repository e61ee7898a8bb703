// Halves of key blocks: which of a block's 2 × 64 tokens a rank needs, and so fetches. Half 2b is the first one of block b, 2b + 1 the
// second.
//
//   half      0 1 | 2 3 | 4 5 | 6 7       a rank whose tiles look at halves 1, 2, 3 and 6 fetches blocks 0, 1 and 3,
//   block      0  |  1  |  2  |  3        and of them four halves, not six
//
// Example: BigBird with blocks of 64 tokens. Where half of all random blocks that are another rank's are looked at by some row, and so are
// half of all halves, three quarters of the blocks of 128 are.
#pragma once

#include <cstdint>

#include "kernels/kernel.hpp"
#include "pattern/intervals.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::plan {

inline Interval halves_of(Interval blocks) { return {2 * blocks.begin, 2 * blocks.end}; }
Intervals halves_of(const Intervals& blocks);
Intervals blocks_of(const Intervals& halves);  // with one half or both

// Those that a tile, or a run of full ones, looks at: `key` and `count` being key blocks.
Interval halves_of(const kernels::Tile& tile);

// Whether ranks fetch so much less that lists of what travels may be four times as long: from sampled rows, by how much of a far key block
// a tile looks at, and how often a rank's rows look at the same one. The same on all ranks.
bool halves_pay(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks);

// What travels to the rank of key blocks that it fetches.
Intervals travelling_halves(const RankPlan& plan, size_t key_class, Interval blocks);
int64_t travelling_bytes(const Shared& shared, const RankPlan& plan, size_t key_class, const Intervals& blocks);
int64_t bytes_of_fetches(const Shared& shared, const RankPlan& plan);  // all of them, each time that they come

}  // namespace longspan::plan
