// Halves of key blocks: which of a block's 2 × 64 tokens a rank needs, and so fetches. Half 2b is the first one of block b, 2b + 1 the
// second.
//
//   half      0 1 | 2 3 | 4 5 | 6 7       a rank whose tiles look at halves 1, 2, 3 and 6 fetches blocks 0, 1 and 3,
//   block      0  |  1  |  2  |  3        and of them four halves, not six
//
// Example: BigBird with blocks of 64 tokens. A rank whose rows look at half of the others' halves, as if by chance, looks at something in
// three quarters of their blocks.
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

// Whether ranks fetch so much less that lists of what travels may be four times as long: by how much of far key blocks the tiles of sampled
// rows look at, if all rows of a rank together do not look at nearly all. The same on all ranks.
bool halves_pay(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks);

// What travels to the rank of key blocks that it fetches.
Intervals travelling_halves(const RankPlan& plan, size_t key_class, Interval blocks);
int64_t travelling_bytes(const Shared& shared, const RankPlan& plan, size_t key_class, const Intervals& blocks);
int64_t bytes_of_fetches(const Shared& shared, const RankPlan& plan);  // all of them, each time that they come

}  // namespace longspan::plan
