// The producer warps of the Hopper kernel: tile lists become entries of the ring, Q rows are loaded beside them.
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

template <int D>
struct Producer {
  using Ring = Shared<D>;
  Ring& shared;
  const CUtensorMap &tile_map, &half_map;
  Walk<Ring::kSlots> walk;
  // The entry before the one just found; it is sent when it is known whether it is the item's last.
  Message held{};
  int held_unit = 0;

  // Lane 0: has K and V of `unit` copied into the ring, as `message` says.
  __device__ void send(Message message, int unit) {
    const int slot = walk.slot;
    const uint32_t parity = walk.parity(slot), halves = message.flags & kTwoSlots                         ? 2
                                                        : need(message.flags, 0) | need(message.flags, 1) ? 1
                                                                                                          : 0;
    const uint32_t bytes = halves * kSlotKeys * D * 2;
    const CUtensorMap* map = halves == 2 ? &tile_map : &half_map;
    const int row = unit * 2 * kTile + (message.flags & kSecondHalf ? kSlotKeys : 0);
    const auto ready = [&](uint64_t* empty) {  // the second slot may be held by an entry of its own
      wait(&empty[slot], parity ^ 1);
      if (halves == 2) wait(&empty[slot + 1], walk.parity(slot + 1) ^ 1);
    };

    ready(shared.k_empty);
    shared.messages[slot] = message;
    arrive_expect(&shared.k_full[slot], bytes);
    if (halves)
      for (int panel = 0; panel < Ring::kPanels; ++panel)
        load_box(&shared.k[panel][slot * kPanelElements], map, &shared.k_full[slot], panel * kPanel, row);

    ready(shared.v_empty);
    const int absent = !need(message.flags, 0) + !need(message.flags, 1);
    if (absent) arrive(&shared.v_empty[slot], absent * kConsumerWarps / kConsumers);
    arrive_expect(&shared.v_full[slot], bytes);
    if (halves)
      for (int panel = 0; panel < Ring::kPanels; ++panel)
        load_box(&shared.v[panel][slot * kPanelElements], map, &shared.v_full[slot], panel * kPanel, row + kTile);
  }

  // All lanes: sends the held entry; `next_flags` are those of its successor, 0 at the end of the item. An item without entries sends an
  // empty one.
  __device__ void flush(uint32_t next_flags) {
    const int after = walk.slot + (held.flags & kTwoSlots ? 2 : 1);
    const bool two_follow = next_flags == 0 || next_flags & kTwoSlots;  // an item starts at an even slot
    held.flags |= (next_flags == 0 ? kLast : 0) | (two_follow && after % 2 ? kPad : 0);
    if (threadIdx.x % 32 == 0) send(held, held_unit);
    walk.pass(held.flags);
    held.flags = 0;
  }
  __device__ void add(Message message, int unit) {
    if (message.flags == 0) return;
    if (held.flags) flush(message.flags);
    held = message, held_unit = unit;
  }
};

template <int D>
__device__ void produce(const Arguments& a, Shared<D>& shared, const CUtensorMap& tile_map, const CUtensorMap& half_map) {
  constexpr uint32_t kAll = 0xffffffff;
  const int lane = threadIdx.x % 32;
  Producer<D> producer{shared, tile_map, half_map};
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
    }
    if (stop) return;
    const Tile* tiles = a.tiles + work->first_tile;
    const int64_t tile_count = work->tile_count;
    const int32_t* slots = a.slots + work->kv_head * a.resident;

    // 32 tiles at a time, one a lane; their (first) units are looked up together.
    for (int64_t base = 0; base < tile_count; base += 32) {
      Message mine{};
      int mine_unit = 0, mine_key = 0;
      int64_t mine_run = 1;
      if (base + lane < tile_count) {
        const int4 raw = __ldg(reinterpret_cast<const int4*>(tiles + base + lane));
        const auto form = static_cast<Tile::Form>(raw.y & 0xff);
        mine.payload[0] = raw.z, mine.payload[1] = raw.w;
        const uint64_t payload = uint64_t{mine.payload[1]} << 32 | mine.payload[0];
        mine_key = raw.x;
        if (form == Tile::Form::full) mine_run = static_cast<int64_t>(payload);
        mine_unit = __ldg(slots + mine_key), mine.keys = __ldg(a.key_rows + mine_key);
        const bool nonfinite = a.nonfinite_v && form != Tile::Form::full && __ldg(a.nonfinite_v + mine_unit);
        mine.flags = describe(form, raw.y >> 8 & 0xf, payload, mine.keys, rows, nonfinite);
      }
      const int found = static_cast<int>(tile_count - base < 32 ? tile_count - base : 32);
      for (int i = 0; i < found; ++i) {
        const Message message{__shfl_sync(kAll, mine.flags, i),
                              __shfl_sync(kAll, mine.keys, i),
                              {__shfl_sync(kAll, mine.payload[0], i), __shfl_sync(kAll, mine.payload[1], i)}};
        producer.add(message, __shfl_sync(kAll, mine_unit, i));
        // The rest of a run of full tiles, again 32 at a time.
        const int64_t run = __shfl_sync(kAll, mine_run, i);
        const int key = __shfl_sync(kAll, mine_key, i);
        for (int64_t done = 1; done < run; done += 32) {
          int unit = 0, keys = 0;
          if (done + lane < run) unit = __ldg(slots + key + done + lane), keys = __ldg(a.key_rows + key + done + lane);
          const uint32_t flags = describe(Tile::Form::full, 0, 0, keys, rows, false);
          const int here = static_cast<int>(run - done < 32 ? run - done : 32);
          for (int j = 0; j < here; ++j)
            producer.add(Message{__shfl_sync(kAll, flags, j), __shfl_sync(kAll, keys, j), {0, 0}}, __shfl_sync(kAll, unit, j));
        }
      }
    }
    producer.flush(0);
    index = gridDim.x + int64_t{__shfl_sync(kAll, next, 0)};
  }
}

// Warp 1 + consumer of the producer group: Q rows of one consumer, as soon as it has done its last Q·Kᵀ of the item before.
template <int D>
__device__ void load_queries(Shared<D>& shared, const CUtensorMap& q_map, int consumer) {
  if (threadIdx.x % 32 != 0) return;
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
