// The producer warps of the Hopper kernel: warp 0 turns tile lists into entries of the ring and has their K copied, warps 1 and 2 have the
// Q rows of a consumer copied, warp 3 the V of all entries. Each waits for its own slots only: an entry's V slots come free a step after
// its K slots. Short items are paced by this code, which is fetched anew for each, beside the consumers': one copy of everything.
#pragma once

#include "kernels/cuda/hopper/barrier.cuh"
#include "kernels/cuda/hopper/copy.cuh"
#include "kernels/cuda/hopper/ring.cuh"

namespace longspan::kernels::cuda::hopper {

// Flags of a tile (but for kLast and kPad), 0 if no one looks at it.
__device__ inline uint32_t describe(Tile::Form form, uint32_t quarters, uint64_t subtiles, int keys, int rows, bool nonfinite) {
  if (form == Tile::Form::full) quarters = 0xf;
  if (form == Tile::Form::subtiles) {  // quarters that are allowed entirely need no mask
    const uint32_t upper = (quarters & 1 ? 0x0f0f0f0fu : 0) | (quarters & 2 ? 0xf0f0f0f0u : 0);
    const uint32_t lower = (quarters & 4 ? 0x0f0f0f0fu : 0) | (quarters & 8 ? 0xf0f0f0f0u : 0);
    if (subtiles == (uint64_t{lower} << 32 | upper)) form = Tile::Form::full;
  }
  if (keys <= kSlotKeys) quarters &= 0b0101;
  if (rows <= kRows) quarters &= 0b0011;
  if (quarters == 0) return 0;
  const uint32_t first = quarters & 3, second = quarters >> 2, loaded = first | second;
  const bool masked = form != Tile::Form::full || keys % kSlotKeys != 0;
  return static_cast<uint32_t>(form) | first << 2 | second << 4 | (loaded == 3 ? kTwoSlots : 0) | (loaded == 2 ? kSecondHalf : 0) |
         (masked ? kMasked : 0) | (masked && nonfinite ? kNonfinite : 0) | (quarters == 0xf && !masked ? kWhole : 0);
}

// Copies K or V of entries into the ring, one after the other.
template <int D>
struct Copier {
  using Ring = Shared<D>;
  using Panels = uint16_t[Ring::kPanels][Ring::kSlots * kPanelElements];
  Ring& shared;
  const CUtensorMap &tile_map, &half_map;
  Walk<Ring::kSlots> walk;

  // Until the entry's slots are free; the second one may be held by an entry of its own.
  __device__ __forceinline__ void wait_for(uint64_t* empty, uint32_t flags) const {
    wait(&empty[walk.slot], walk.parity(walk.slot) ^ 1);
    if (flags & kTwoSlots) wait(&empty[walk.slot + 1], walk.parity(walk.slot + 1) ^ 1);
  }

  // Of the key block whose K or V begins at `row` of the pool, what the entry needs.
  __device__ __forceinline__ void copy(Panels& to, uint64_t* full, uint32_t flags, int row) const {
    const int halves = flags & kTwoSlots ? 2 : need(flags, 0) | need(flags, 1) ? 1 : 0;
    arrive_expect(full, halves * kSlotKeys * D * 2);
    if (flags & kSecondHalf) row += kSlotKeys;
    if (halves)
      for (int panel = 0; panel < Ring::kPanels; ++panel)
        load_box(&to[panel][walk.slot * kPanelElements], halves == 2 ? &tile_map : &half_map, full, panel * kPanel, row);
  }
};

// The entries of an item's tile list, one after the other, found by a whole warp: tiles are read 32 at a time, one a lane, and so are the
// units of a run of full tiles.
struct Entries {
  static constexpr uint32_t kAll = 0xffffffff;
  const Arguments& a;
  const Tile* tiles;
  const int32_t* slots;
  int64_t tile_count;
  int rows, lane;

  int64_t next_chunk = 0;    // the first tile that is not in the lanes yet
  int at = 32, run = 0;      // the next of the tiles in the lanes; how many entries of the one before are still to come
  int key = 0;               // of the first of them
  int run_at = 32;           // the lane that has it; 32: they are to be read
  Message mine{}, of_run{};  // a lane's tile; its entry of the run
  int mine_unit = 0, mine_key = 0, mine_run = 0, unit_of_run = 0;

  __device__ __forceinline__ void read_tiles() {
    mine.flags = 0, mine_run = 1;
    if (next_chunk + lane < tile_count) {
      const int4 raw = __ldg(reinterpret_cast<const int4*>(tiles + next_chunk + lane));
      const auto form = static_cast<Tile::Form>(raw.y & 0xff);
      mine.payload[0] = raw.z, mine.payload[1] = raw.w;
      mine_key = raw.x;
      if (form == Tile::Form::full) mine_run = raw.z;
      mine_unit = __ldg(slots + mine_key), mine.keys = __ldg(a.key_rows + mine_key);
      const bool nonfinite = a.nonfinite_v && form != Tile::Form::full && __ldg(a.nonfinite_v + mine_unit);
      mine.flags = describe(form, raw.y >> 8 & 0xf, uint64_t{mine.payload[1]} << 32 | mine.payload[0], mine.keys, rows, nonfinite);
    }
    next_chunk += 32, at = 0;
  }

  // False at the end. `message.flags` are 0 for a tile that no one looks at.
  __device__ __forceinline__ bool next(Message& message, int& unit) {
    if (run > 0) {
      if (run_at == 32) {
        if (lane < run) unit_of_run = __ldg(slots + key + lane), of_run.keys = __ldg(a.key_rows + key + lane);
        of_run.flags = describe(Tile::Form::full, 0, 0, of_run.keys, rows, false);
        run_at = 0;
      }
      message = {__shfl_sync(kAll, of_run.flags, run_at), __shfl_sync(kAll, of_run.keys, run_at), {0, 0}};
      unit = __shfl_sync(kAll, unit_of_run, run_at);
      ++run_at, ++key, --run;
      return true;
    }
    if (at == 32 || next_chunk - 32 + at >= tile_count) {
      if (next_chunk >= tile_count) return false;
      read_tiles();
    }
    message = {__shfl_sync(kAll, mine.flags, at),
               __shfl_sync(kAll, mine.keys, at),
               {__shfl_sync(kAll, mine.payload[0], at), __shfl_sync(kAll, mine.payload[1], at)}};
    unit = __shfl_sync(kAll, mine_unit, at);
    run = __shfl_sync(kAll, mine_run, at) - 1, key = __shfl_sync(kAll, mine_key, at) + 1, run_at = 32;
    ++at;
    return true;
  }
};

// Warp 0. An entry is sent when its successor is known: consumers must know which one is the item's last.
template <int D>
__device__ void produce(const Arguments& a, Shared<D>& shared, const CUtensorMap& tile_map, const CUtensorMap& half_map) {
  constexpr uint32_t kAll = 0xffffffff;
  const int lane = threadIdx.x % 32;
  Copier<D> keys{shared, tile_map, half_map, {}};
  const auto announce = [&](const Message& message, int unit) {
    const int slot = keys.walk.slot;
    keys.wait_for(shared.k_empty, message.flags);
    shared.messages[slot] = message, shared.units[slot] = unit;
    arrive(&shared.announced[slot]);
  };
  int64_t index = blockIdx.x;
  for (int count = 0;; ++count) {
    const bool stop = index >= a.item_count;
    const WorkHead item = stop ? WorkHead{} : a.items[index];
    const Work* work = a.work + item.work;
    const int rows = stop ? 0 : work->rows;
    int next = 0;
    if (lane == 0) {
      if (!stop) next = atomicAdd(a.counter, 1);
      wait(&shared.item_empty[count % kItems], count / kItems % 2 ^ 1);
      shared.items[count % kItems] = stop ? Item{} : Item{work->q_row, work->state_row, rows, item.head, work->begins, work->ends};
      arrive(&shared.item_full[count % kItems]);
      if (stop) announce({.flags = kStop}, 0);
    }
    if (stop) return;

    Entries entries{a, a.tiles + work->first_tile, a.slots + work->kv_head * a.resident, work->tile_count, rows, lane};
    Message found, held{};  // the latest entry; the one before, which has not been sent. An item without entries sends an empty one
    int found_unit = 0, held_unit = 0;
    for (bool more = true; more;) {
      more = entries.next(found, found_unit);
      if (more && found.flags == 0) continue;
      if (held.flags || !more) {
        const int after = keys.walk.slot + (held.flags & kTwoSlots ? 2 : 1);
        const bool two_follow = !more || found.flags & kTwoSlots;  // an item starts at an even slot
        held.flags |= (more ? 0 : kLast) | (two_follow && after % 2 ? kPad : 0);
        if (lane == 0) {
          announce(held, held_unit);
          keys.copy(shared.k, &shared.k_full[keys.walk.slot], held.flags, held_unit * 2 * kTile);
        }
        keys.walk.pass(held.flags);
      }
      held = found, held_unit = found_unit;
    }
    index = gridDim.x + int64_t{__shfl_sync(kAll, next, 0)};
  }
}

// One thread of warp 3.
template <int D>
__device__ void copy_values(Shared<D>& shared, const CUtensorMap& tile_map, const CUtensorMap& half_map) {
  Copier<D> values{shared, tile_map, half_map, {}};
  while (true) {
    const int slot = values.walk.slot;
    wait(&shared.announced[slot], values.walk.parity(slot));
    const uint32_t flags = shared.messages[slot].flags;
    const int unit = shared.units[slot];
    arrive(&shared.k_empty[slot]);
    if (flags & kStop) return;
    values.wait_for(shared.v_empty, flags);
    const int absent = !need(flags, 0) + !need(flags, 1);
    if (absent) arrive(&shared.v_empty[slot], absent * kConsumerWarps / kConsumers);
    values.copy(shared.v, &shared.v_full[slot], flags, unit * 2 * kTile + kTile);
    values.walk.pass(flags);
  }
}

// One thread of warp 1 + consumer: the consumer's Q rows, as soon as it has done its last Q·Kᵀ of the item before.
template <int D>
__device__ void load_queries(Shared<D>& shared, const CUtensorMap& q_map, int consumer) {
  for (int count = 0;; ++count) {
    wait(&shared.item_full[count % kItems], count / kItems % 2);
    const Item item = shared.items[count % kItems];
    arrive(&shared.item_empty[count % kItems]);
    if (item.rows == 0) return;
    wait(&shared.q_empty[consumer], count % 2 ^ 1);
    arrive_expect(&shared.q_full[consumer], kRows * D * 2);
    for (int panel = 0; panel < Shared<D>::kPanels; ++panel)
      load_box(shared.q[consumer][panel], &q_map, &shared.q_full[consumer], panel * kPanel, item.head,
               static_cast<int>(item.q_row) + consumer * kRows);
  }
}

}  // namespace longspan::kernels::cuda::hopper
