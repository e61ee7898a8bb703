// What one rank does, made by that rank alone: its rows in stripes, the key blocks that each stripe needs, in which step they are used,
// when they come from where, and how long they stay. Nothing here grows with tokens², ranks² or the other ranks' tiles.
//
// Example: 4 ranks, window of two blocks, 8 blocks a rank, stripes of 4. Rank 1 owns blocks 8…15.
//   stripe 0: rows 8…11   needs 6…11: 8…11 are held (step 0), 6 and 7 come from rank 0 (step 1)
//   stripe 1: rows 12…15  needs 10…15: all held, one step
// needed 10 blocks, held 8, moved 2: the lower bound.
#pragma once

#include <cstdint>
#include <vector>

#include "longspan/shape.hpp"
#include "plan/costs.hpp"
#include "plan/partition.hpp"
#include "plan/tiles.hpp"

namespace longspan::plan {

// KV heads whose keys are needed by the same head groups, so that one list of blocks serves them all.
struct KeyClass {
  std::vector<int> kv_heads;  // ascending, consecutive
  std::vector<int> groups;
};

// A part of a long row's keys, computed where these keys are; the states come home and are merged in ascending order.
struct Piece {
  int row = 0;          // in Shared::long_rows
  Interval key_blocks;  // the row's tiles in here
  int rank = 0;         // computes it, in parts
};

// Bytes of a rank.
struct Memory {
  int64_t home = 0;       // the rank's own units
  int64_t stripe = 0;     // queries, states and results of a stripe, and the next and last one's; in a long one what travels
  int64_t long_rows = 0;  // finished states of own long rows (in Shared also what must be there for their travels)
  int64_t received = 0;   // room for units of others
  int64_t lists = 0;      // tile lists and masks of the largest stripe
  int64_t total() const { return home + stripe + long_rows + received + lists; }
};

// What every rank knows of the job: the same on all of them.
struct Shared {
  Shape shape;
  Options options;
  Partition partition;
  std::vector<KeyClass> classes;
  // Those whose queries travel, or that are cut at fixed places because the result must be reproducible, or that a GPU computes in parts.
  std::vector<LongRow> long_rows;
  std::vector<Piece> pieces;      // by row, then ascending keys
  int64_t part_blocks = 0;        // key blocks of a part of a piece, at most
  std::vector<Interval> batches;  // of pieces: the long stripes, cut so that no rank holds more states than it has memory for
  bool is_long(int group, int64_t block) const;
  bool keys_stay = true;  // the keys that a rank owns stay in its memory; otherwise every key is read from the file when needed
  // A stripe's first step is of own keys, while others come. Otherwise all its keys are in one order of steps: where that is to be
  // reproducible; and on a GPU whose rows look at few keys, of other ranks too, in one step: the keys come while the stripe before
  // computes.
  bool own_keys_first = true;
  // Where the first stripe's keys come beside nothing: so it is short. (Stripes with rows that come from elsewhere are last.)
  bool short_stripes_first = false;
  bool in_halves = false;                                       // of key blocks, ranks fetch the halves that they look at (halves.hpp)
  double mean_entries = 0;                                      // of the tile lists of a query block, all groups, from samples
  Memory memory;                                                // how Options::memory is shared out, from what all ranks know
  int64_t long_bytes_if_pulled = 0, long_bytes_travelling = 0;  // of all long rows: keys to their ranks, or queries and states to the keys
};

// Stripes whose tile lists are made ahead of the one in use, at most.
constexpr size_t kListsAhead = 4;

// Rows computed together; its number is the same on all ranks (a rank without such rows has an empty one).
struct Stripe {
  Interval pieces;         // a long stripe: the batch, of which this rank computes its own; otherwise empty
  Intervals query_blocks;  // a stripe of own rows
  bool is_long() const { return !pieces.empty(); }

  std::vector<Intervals> need;  // [class] key blocks that some tile of the stripe touches, own and others'
  std::vector<int64_t> groups;  // bounds of ascending key blocks that may be fetched at once
  std::vector<int64_t> bounds;  // of groups as they are fetched: one, or several side by side that bring nothing
  // If not 0, steps begin with the group before this block, go on to the last one, and then from the first one on: key block b with
  // bounds[g] <= b < bounds[g + 1] belongs to step (g - first_group) mod groups of other ranks' keys. Example: 4 ranks of 4 blocks look at
  // all keys before them. If all began with block 0, the link of rank 0 would be the limit for ranks 1, 2 and 3; so these begin with the
  // groups before their own blocks 4, 8 and 12, at ranks 0, 1 and 2.
  int64_t begins_before = 0;
  size_t first_group = 0;                     // of those between `bounds`: the first step of other ranks' keys
  std::vector<std::vector<Intervals>> fetch;  // [step][class] blocks that come in for this step: not held, not kept from an earlier stripe
  std::vector<Intervals> keep;                // [class] fetched blocks that stay for later stripes
  TileCount tiles;                            // over head groups, not weighted
  int64_t weighted_quarters = 0;              // quarters × query heads
  int64_t weighted_tiles = 0;                 // tiles × query heads
  int64_t list_rows = 0;                      // query blocks and parts of long rows; head groups of a query block do not count
  int64_t list_entries = 0;                   // of the tile lists of all head groups
  int64_t list_bytes = 0;                     // what these take, with masks and work items, about
  bool estimated = false;                     // counts and needs come from sampled rows

  int steps() const { return static_cast<int>(fetch.size()); }
};

struct RankPlan {
  int rank = 0;
  Intervals own;                // query blocks, and key blocks the rank is home to
  std::vector<Stripe> stripes;  // long ones first
  Memory memory;
  // [class] halves of key blocks that some tile of the rank looks at, in any stripe: what it fetches of a block, from whichever stripe on.
  // (engine::agree_on_schedule adds what it fetches for others.) Empty where blocks travel whole.
  std::vector<Intervals> halves;
  int64_t unit_bytes = 0;                                     // a block of one KV head
  int64_t bytes_needed = 0, bytes_held = 0, bytes_moved = 0;  // needed: distinct; held: those of them at home; moved: all fetches
  int64_t bytes_read_again = 0;                               // when keys do not stay: read from the file, own ones included
  int64_t row_bytes_moved = 0;                                // queries and states of long rows that this rank receives
  int64_t weighted_tiles() const;
  int64_t weighted_quarters() const;
  TileCount tiles() const;
  bool estimated() const;
  int64_t most_steps() const;
  double flop(const Shape& shape) const;  // 4·head_dim for each pair of the visited 64×64 quarters
  int64_t bytes_lower_bound() const { return bytes_needed - bytes_held; }
  int64_t ring_bytes(const Shared& shared) const;  // what a ring that passes all keys around would bring here
};

// Everything the ranks have in common. Throws Error(usage) when `memory` is too small for any plan (says what would do).
Shared make_shared(const pattern::BoundPattern& pattern, const Blocks& blocks, const Shape& shape, int ranks, const Options& options);

// One rank's plan. Throws Error(usage) when the memory is so small that there would be more than a million steps (says what would do):
// on this rank alone, so ranks have to agree on it.
RankPlan make_rank_plan(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, int rank);

// Step of `stripe` in which key block `block` is used. Other steps where other blocks are kept, in the same order: the same bits.
int step_of(const Shared& shared, const RankPlan& plan, const Stripe& stripe, int64_t block);

// The fetches of stripes [first, …) again, after stripes that are already done have been emptied (a job that goes on): what was to be kept
// from them has to come when it is first needed.
void plan_fetches(const Shared& shared, RankPlan& plan);

// Largest number of fetched units that are there at one time: a step's, those of the next `ahead` steps on their way, and those kept for
// later stripes. `steps`: of each stripe, when other ranks make it have more than this rank's plan.
int64_t most_fetched_units(const Shared& shared, const RankPlan& plan, int ahead, const std::vector<int>& steps = {});

// How many steps ahead their keys may be on their way: at least the next one's, and as many more, up to the few that a stripe has (or
// short stripes together), as the memory for received keys takes. Where a rank moves much for what it computes, no single step hides the
// next one's exchange.
int steps_ahead(const Shared& shared, const RankPlan& plan, const std::vector<int>& steps = {});

// What `piece` is computed in, ascending: each part has states of its own, which are merged before they go home. Of a piece of key blocks
// 512 to 1100 in parts of 256: 512 … 767, 768 … 1023, 1024 … 1099; those in which the row looks at nothing are left out.
std::vector<Interval> parts_of(const Shared& shared, const Piece& piece);

// The rows of a stripe that `rank` computes, in order: own query blocks under every head group (long rows left out), or the parts of its
// pieces of long rows.
struct StripeRow {
  int group = 0;
  int64_t block = 0;
  Interval key_blocks;  // tiles outside are another part's
  int piece = -1;       // in Shared::pieces
};
std::vector<StripeRow> rows_of(const Shared& shared, const pattern::BoundPattern& pattern, const Stripe& stripe, int rank);

}  // namespace longspan::plan
