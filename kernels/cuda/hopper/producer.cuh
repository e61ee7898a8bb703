// The producer warps of the Hopper kernel: warp 0 turns tile lists into entries of the ring and has their K copied, warps 1 and 2 have
// the consumers' Q rows copied, warp 3 the V of all entries. Each waits for its own slots only: an entry's V slots come free a step after
// its K slots. Short items are paced by this code, which is fetched anew for each, beside the consumers': one copy of everything.
#pragma once

#include "kernels/cuda/hopper/barrier.cuh"
#include "kernels/cuda/hopper/copy.cuh"
#include "kernels/cuda/hopper/ring.cuh"

namespace longspan::kernels::cuda::hopper {

// Which of a tile's quarters an item's consumers look at: those of `count` 64-row halves from `from_half` on are of consumers `first` on.
struct Share {
  int first, from_half, count;
  __device__ __forceinline__ uint32_t needs(uint32_t quarters) const {
    return ((quarters >> 2 * from_half) & ((1u << 2 * count) - 1)) << 2 * first;
  }
};

// Flags of a tile of list `list` (but for kTwoSlots, kSecondHalf, kLast and kPad), 0 if no one looks at it.
template <class S>
__device__ inline uint32_t describe(Tile::Form form, uint32_t quarters, uint64_t subtiles, int keys, int list, const Share& share,
                                    bool nonfinite) {
  if (form == Tile::Form::full) quarters = 0xf;
  if (form == Tile::Form::subtiles) {  // quarters that are allowed entirely need no mask
    const uint32_t upper = (quarters & 1 ? 0x0f0f0f0fu : 0) | (quarters & 2 ? 0xf0f0f0f0u : 0);
    const uint32_t lower = (quarters & 4 ? 0x0f0f0f0fu : 0) | (quarters & 8 ? 0xf0f0f0f0u : 0);
    if (subtiles == (uint64_t{lower} << 32 | upper)) form = Tile::Form::full;
  }
  if (keys <= kSlotKeys) quarters &= 0b0101;
  uint32_t needs = quarters & (share.count == 2 ? 0xf : 0x3);
  if constexpr (S::kLists == 2) needs = share.needs(quarters);
  if (needs == 0) return 0;
  const bool masked = form != Tile::Form::full || keys % kSlotKeys != 0;
  // With one list, what one consumer has whole and the other has not is not called so: ways that are taken once and left again cost more
  // than they save (10 % of a window of 512). With two lists it must be each one's own.
  const uint32_t both = S::kLists == 2 ? needs & needs >> 1 : needs == 0xf ? needs : 0;
  const uint32_t whole = (both & 1 ? kWhole : 0) | (both & 4 ? kWhole << 1 : 0) | (both & 16 ? kWhole << 2 : 0);
  return needs | static_cast<uint32_t>(form) << (6 + 2 * list) | (masked ? kMasked << list : whole) |
         (masked && nonfinite ? kNonfinite : 0);
}

// And what is loaded for all consumers.
__device__ inline uint32_t with_slots(uint32_t flags) {
  const uint32_t loaded = (flags | flags >> 2 | flags >> 4) & 3;
  return flags | (loaded == 3 ? kTwoSlots : 0) | (loaded == 2 ? kSecondHalf : 0);
}

// Copies K or V of entries into the ring, one after the other.
template <class S>
struct Copier {
  using Ring = Shared<S>;
  using Panels = uint16_t[Ring::kPanels][Ring::kSlots * kPanelElements];
  Ring& shared;
  const CUtensorMap &tile_map, &half_map;          // of the pool
  const CUtensorMap &tile_in_rows, &half_in_rows;  // of K or V
  Walk<Ring::kSlots> walk;

  // Until the entry's slots are free; the second one may be held by an entry of its own.
  __device__ __forceinline__ void wait_for(uint64_t* empty, uint32_t flags) const {
    wait(&empty[walk.slot], walk.parity(walk.slot) ^ 1);
    if (flags & kTwoSlots) wait(&empty[walk.slot + 1], walk.parity(walk.slot + 1) ^ 1);
  }

  // What the entry needs of the K or V of unit `unit`, which begins at row `first_row` of it in the pool.
  __device__ __forceinline__ void copy(Panels& to, uint64_t* full, uint32_t flags, int unit, int first_row, int kv_head) const {
    const int halves = flags & kTwoSlots ? 2 : flags & kNeeds ? 1 : 0;
    arrive_expect(full, halves * kSlotKeys * S::kHeadDim * 2);
    const bool in_rows = S::kInRows && unit < 0;
    int row = in_rows ? KeysInRows::first_row(unit) : unit * 2 * kTile + first_row;
    if (flags & kSecondHalf) row += kSlotKeys;
    if (!halves) return;
    for (int panel = 0; panel < Ring::kPanels; ++panel) {
      uint16_t* there = &to[panel][walk.slot * kPanelElements];
      if constexpr (S::kInRows) {
        const CUtensorMap* map = halves == 2 ? (in_rows ? &tile_in_rows : &tile_map) : (in_rows ? &half_in_rows : &half_map);
        load_box(there, map, full, panel * kPanel, in_rows ? kv_head : 0, row);
      } else {
        load_box(there, halves == 2 ? &tile_map : &half_map, full, panel * kPanel, row);
      }
    }
  }

  // O of 64 rows from `row` on, 32 columns to each slot of a panel: as many bytes as the K or V of an entry.
  __device__ __forceinline__ void copy_states(Panels& to, uint64_t* full, const CUtensorMap& state_map, int head, int row) const {
    static_assert(2 * kSlotKeys * kPanel * 2 == kRows * 2 * kStateColumns * 4);
    arrive_expect(full, kRows * S::kHeadDim * 4);
    for (int part = 0; part < S::kHeadDim / kStateColumns; ++part)
      load_box(&to[part / 2][(walk.slot + part % 2) * kPanelElements], &state_map, full, part * kStateColumns, head, row);
  }
};

// An entry of the ring as warp 0 makes it.
template <class S>
struct Found {
  Message<S> message;
  int unit;  // a slot as in Step::slots
};

// The entries of a tile list, one after the other, found by 32 / kLists lanes: tiles are read that many at a time, one a lane, and so are
// the units of a run of full tiles. With two lists, each half of the warp walks one, and an entry that both have in turn is one for both.
template <class S>
struct Entries {
  static constexpr int kLanes = 32 / S::kLists;
  static constexpr uint32_t kAll = 0xffffffff, kEnd = 0xffffffff;
  const Arguments& a;
  const int list, lane;  // of kLanes
  const Tile* tiles;
  const int32_t* slots;
  int kv_head, tile_count;
  Share share;

  int next_chunk = 0;                            // the first tile that is not in the lanes yet
  int at = kLanes, run = 0;                      // the next of the tiles in the lanes; how many entries of the one before are still to come
  int run_at = kLanes;                           // the lane that has the first of them; kLanes: they are to be read
  uint32_t flags_of_tile = 0, flags_of_run = 0;  // this lane's tile; its entry of the run
  uint32_t payload_of_tile[2] = {};
  int keys_of_tile = 0, keys_of_run = 0, unit_of_tile = 0, unit_of_run = 0, key_of_tile = 0, length_of_tile = 0;

  // The list's next entry: none if key is kEnd. Only one list's may have been taken.
  uint32_t key = 0, flags = 0, payload[2];
  int keys = 0, unit = 0;
  bool taken = true;
  int streak = 0, streak_at = 0;  // entries after this one that differ in their unit only; the lane that has the next one's

  template <typename T>
  __device__ __forceinline__ T from(T value, int of) const {
    return __shfl_sync(kAll >> (32 - kLanes) << list * kLanes, value, of, kLanes);
  }

  // Whether V of the unit's 128 keys holds NaN or ∞ where some row may not look: the pool has zeros past a block's end, rows have others'.
  __device__ __forceinline__ bool nonfinite(Tile::Form form, int unit, int keys_here) const {
    if (!S::kInRows || unit >= 0) return a.nonfinite_v && form != Tile::Form::full && __ldg(a.nonfinite_v + unit);
    if (form == Tile::Form::full && keys_here % kSlotKeys == 0) return false;
    const int first = KeysInRows::first_row(unit), last = min(first + kTile, a.rows_of_keys) - 1;
    const auto of_row = [&](int row) { return __ldg(a.nonfinite_rows + int64_t{row / kTile} * a.kv_heads + kv_head); };
    return of_row(first) | of_row(last);  // both on their way at a time: an item's first entry waits for this
  }

  __device__ __forceinline__ void read_tiles() {
    flags_of_tile = 0, length_of_tile = 1;
    if (next_chunk + lane < tile_count) {
      const int4 raw = __ldg(reinterpret_cast<const int4*>(tiles + next_chunk + lane));
      const auto form = static_cast<Tile::Form>(raw.y & 0xff);
      payload_of_tile[0] = raw.z, payload_of_tile[1] = raw.w;
      key_of_tile = raw.x;
      if (form == Tile::Form::full) length_of_tile = raw.z;
      unit_of_tile = __ldg(slots + key_of_tile), keys_of_tile = __ldg(a.key_rows + key_of_tile);
      flags_of_tile = describe<S>(form, raw.y >> 8 & 0xf, uint64_t{payload_of_tile[1]} << 32 | payload_of_tile[0], keys_of_tile, list,
                                  share, nonfinite(form, unit_of_tile, keys_of_tile));
    }
    next_chunk += kLanes, at = 0;
  }

  // The next entries of a run, which come after block `key`.
  __device__ __forceinline__ void read_run() {
    if (lane < run) unit_of_run = __ldg(slots + key + 1 + lane), keys_of_run = __ldg(a.key_rows + key + 1 + lane);
    const bool odd = S::kInRows && lane < run && nonfinite(Tile::Form::full, unit_of_run, keys_of_run);
    flags_of_run = describe<S>(Tile::Form::full, 0, 0, keys_of_run, list, share, odd);
    run_at = 0;
  }

  // To the next entry that someone looks at.
  __device__ __forceinline__ void advance() {
    do {
      if (run > 0) {
        if (run_at == kLanes) read_run();
        ++key;
        flags = from(flags_of_run, run_at), keys = from(keys_of_run, run_at), unit = from(unit_of_run, run_at);
        payload[0] = payload[1] = 0;
        ++run_at, --run;
      } else {
        if (at == kLanes || next_chunk - kLanes + at >= tile_count) {
          if (next_chunk >= tile_count) {
            key = kEnd, flags = 0;
            return;
          }
          read_tiles();
        }
        flags = from(flags_of_tile, at), keys = from(keys_of_tile, at), unit = from(unit_of_tile, at), key = from(key_of_tile, at);
        payload[0] = from(payload_of_tile[0], at), payload[1] = from(payload_of_tile[1], at);
        run = from(length_of_tile, at) - 1, run_at = kLanes;
        ++at;
      }
    } while (flags == 0);
  }

  // How many entries after this one are the same but for the key block: where the lists taken are in runs of whole blocks, before the other
  // one has its next. They are counted as taken at once; next_of_streak() has their units. (Where a NaN keeps the two lists' entries of one
  // block apart, the first list goes on to the end of its streak.)
  __device__ __forceinline__ void begin_streak(uint32_t key_there, int source) {
    if (taken && run > 0 && run_at == kLanes) read_run();
    __syncwarp();
    const uint32_t partial = __ballot_sync(kAll, keys_of_run != kTile) >> list * kLanes & ((1u << kLanes) - 1);
    int count = min(run, kLanes - run_at);
    if (partial >> run_at) count = min(count, __ffs(partial >> run_at) - 1);
    if (!taken) count = kLanes;  // only the other list's counts
    if (taken && key_there > key) count = min(static_cast<uint32_t>(count), key_there - key - 1);
    if (taken && keys != kTile) count = 0;
    count = min(count, __shfl_xor_sync(kAll, count, kLanes));
    streak_at = source + __shfl_sync(kAll, run_at, source);
    streak = count;
    if (taken) run -= count, run_at += count, key += count;
  }

  __device__ __forceinline__ int next_of_streak() { return __shfl_sync(kAll, unit_of_run, streak_at++); }

  // The item's next entry; false at the end. Of two lists the one whose next key block comes first is taken, or both if it is the same
  // one: lists ascend, or else less is found to be the same. A block with a NaN in V, which is treated in the ring, is each one's alone.
  __device__ __forceinline__ bool next(Found<S>& found) {
    if (taken) advance();
    if constexpr (S::kLists == 1) {
      if (key == kEnd) return false;
      found = {{with_slots(flags), keys, {{payload[0], payload[1]}}}, unit};
    } else {
      __syncwarp();
      const uint32_t key_there = __shfl_xor_sync(kAll, key, kLanes), flags_there = __shfl_xor_sync(kAll, flags, kLanes);
      if ((key & key_there) == kEnd) return false;
      taken = key < key_there || (key == key_there && (list == 0 || !((flags | flags_there) & kNonfinite)));
      const uint32_t mine = taken ? flags : 0;
      const int source = __shfl_sync(kAll, taken, 0) ? 0 : kLanes;
      found = {{with_slots(mine | __shfl_xor_sync(kAll, mine, kLanes)),
                __shfl_sync(kAll, keys, source),
                {{__shfl_sync(kAll, payload[0], 0), __shfl_sync(kAll, payload[1], 0)},
                 {__shfl_sync(kAll, payload[0], kLanes), __shfl_sync(kAll, payload[1], kLanes)}}},
               __shfl_sync(kAll, unit, source)};
      begin_streak(key_there, source);
    }
    return true;
  }
};

// Warp 0. An entry is sent when its successor is known: consumers must know which one is the item's last.
template <class S>
__device__ void produce(const Arguments& a, Shared<S>& shared, const Maps& maps) {
  constexpr uint32_t kAll = 0xffffffff;
  constexpr int kLanes = Entries<S>::kLanes;
  const int lane = threadIdx.x % 32, list = lane / kLanes;
  Copier<S> keys{shared, maps.tile, maps.half, maps.k_tile, maps.k_half, {}};
  int kv_head = 0;  // of the item, if it matters
  const auto announce = [&](const Found<S>& entry) {
    const int slot = keys.walk.slot;
    keys.wait_for(shared.k_empty, entry.message.flags);
    shared.messages[slot] = entry.message, shared.units[slot] = entry.unit;
    if constexpr (S::kInRows) shared.kv_heads[slot] = kv_head;
    arrive(&shared.announced[slot]);
  };
  int64_t index = blockIdx.x;
  for (int count = 0;; ++count) {
    const bool stop = index >= a.item_count;
    const Item item = stop ? Item{} : a.items[index];
    // Consumers take the halves of the first Work, then those of the second.
    const Work *first = a.work + item.work, *second = S::kLists == 2 && item.second >= 0 ? a.work + item.second : nullptr;
    const auto halves = [&](const Work* work) { return stop || !work ? 0 : work->rows > kRows ? 2 : 1; };
    const int of_first = max(halves(first) - item.from_half, 0), of_second = min(halves(second), S::kConsumers - of_first);
    int next = 0;
    if (lane == 0 && !stop) next = atomicInc(a.counter, a.item_count - 1);  // one for each item: 0 again after the last
    Announced<S>& announced = shared.items[count % kItems];
    wait(&shared.item_empty[count % kItems], count / kItems % 2 ^ 1);
    if (lane < S::kConsumers) {
      const bool mine = lane < of_first, its = !mine && lane - of_first < of_second;
      const Work* work = its ? second : first;
      const int half = its ? lane - of_first : item.from_half + lane, row = half * kRows;
      Part part{0, 0, 0, 0, 0, true, true};
      if (mine || its)
        part = {work->q_row + row, work->state_row + row, min(work->rows - row, kRows), static_cast<uint8_t>(half), its, work->begins,
                work->ends};
      announced.parts[lane] = part;
      if (lane == 0) announced.head = item.head, announced.stop = stop;
      arrive(&shared.item_full[count % kItems]);
    }
    if (stop && lane == 0) announce({.message = {.flags = kStop}});
    if (stop) return;

    if constexpr (S::kContinues && S::kLists == 1) {                                // at an even slot, as every item
      constexpr uint32_t flags = kState | kTwoSlots | 0xf;                          // a consumer without rows takes it, too
      const int row = first->begins ? -kTile : static_cast<int>(first->state_row);  // what lies before the tensor arrives as zeros
      if (lane == 0) {
        announce({{flags, item.head}, row});
        keys.copy_states(shared.k, &shared.k_full[keys.walk.slot], maps.states, item.head, row);
      }
      keys.walk.pass(flags);
    }
    if constexpr (S::kInRows) kv_head = first->kv_head;
    const Work* work = list == 0 ? first : second;
    const Share share = list == 0 ? Share{0, item.from_half, of_first} : Share{of_first, 0, of_second};
    Entries<S> entries{a,
                       list,
                       lane % kLanes,
                       a.tiles + (work ? work->first_tile : 0),
                       a.slots + first->kv_head * a.resident,
                       kv_head,
                       work ? static_cast<int>(work->tile_count) : 0,
                       share};
    Found<S> found, held{};  // the latest entry; the one before, which has not been sent. An item without entries sends an empty one
    for (bool more = true; more;) {
      more = entries.next(found);
      uint32_t& flags = held.message.flags;
      if (flags || !more) {
        const int after = keys.walk.slot + (flags & kTwoSlots ? 2 : 1);
        const bool two_follow = !more || found.message.flags & kTwoSlots;  // an item starts at an even slot
        flags |= (more ? 0 : kLast) | (two_follow && after % 2 ? kPad : 0);
        if (lane == 0) {
          announce(held);
          keys.copy(shared.k, &shared.k_full[keys.walk.slot], flags, held.unit, 0, kv_head);
        }
        keys.walk.pass(flags);
      }
      held = found;
      if constexpr (S::kLists == 2) {  // whole blocks in two slots each, so nothing is padded
        const uint32_t same = held.message.flags;
        int unit_here = held.unit;
        for (int left = more ? entries.streak : 0; left > 0; --left) {
          if (lane == 0) {
            announce({{same, kTile}, unit_here});
            keys.copy(shared.k, &shared.k_full[keys.walk.slot], same, unit_here, 0, kv_head);
          }
          keys.walk.pass(same);
          unit_here = entries.next_of_streak();
        }
        held.unit = unit_here;
      }
    }
    index = gridDim.x + int64_t{__shfl_sync(kAll, next, 0)};
  }
}

// One thread of warp 3.
template <class S>
__device__ void copy_values(Shared<S>& shared, const Maps& maps) {
  Copier<S> values{shared, maps.tile, maps.half, maps.v_tile, maps.v_half, {}};
  while (true) {
    const int slot = values.walk.slot;
    wait(&shared.announced[slot], values.walk.parity(slot));
    const uint32_t flags = shared.messages[slot].flags;
    const int unit = shared.units[slot];
    int head = 0;  // of states
    if constexpr (S::kContinues && S::kLists == 1) head = shared.messages[slot].keys;
    const int kv_head = S::kInRows ? shared.kv_heads[slot] : 0;
    arrive(&shared.k_empty[slot]);
    if (flags & kStop) return;
    values.wait_for(shared.v_empty, flags);
    int absent = 0;
    for (int consumer = 0; consumer < S::kConsumers; ++consumer) absent += !need(flags, consumer);
    if (absent) arrive(&shared.v_empty[slot], absent * kGroup);
    if (S::kContinues && S::kLists == 1 && flags & kState)
      values.copy_states(shared.v, &shared.v_full[slot], maps.states, head, unit + kRows);
    else
      values.copy(shared.v, &shared.v_full[slot], flags, unit, kTile, kv_head);
    values.walk.pass(flags);
  }
}

// One thread of warp 1 + query_warp: Q rows of every kQueryWarps-th consumer, as soon as it has done its last Q·Kᵀ of the item before.
template <class S>
__device__ void load_queries(Shared<S>& shared, const CUtensorMap& q_map, int query_warp) {
  for (int count = 0;; ++count) {
    wait(&shared.item_full[count % kItems], count / kItems % 2);
    const Announced<S> item = shared.items[count % kItems];
    arrive(&shared.item_empty[count % kItems]);
    if (item.stop) return;
#pragma unroll
    for (int consumer = 0; consumer < S::kConsumers; ++consumer) {
      if (consumer % kQueryWarps != query_warp) continue;
      const Part& part = item.parts[consumer];
      wait(&shared.q_empty[consumer], count % 2 ^ 1);
      arrive_expect(&shared.q_full[consumer], part.rows > 0 ? kRows * S::kHeadDim * 2 : 0);
      for (int panel = 0; part.rows > 0 && panel < Shared<S>::kPanels; ++panel)
        load_box(shared.q[consumer][panel], &q_map, &shared.q_full[consumer], panel * kPanel, item.head, static_cast<int>(part.q_row));
    }
  }
}

}  // namespace longspan::kernels::cuda::hopper
