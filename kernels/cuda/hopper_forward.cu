// One persistent CTA per multiprocessor takes (work, head) items off a queue. Three warp groups:
//   producer     warp 0 walks the items' tile lists and has K and V copied into a ring in shared memory; warps 1 and 2 load the Q rows;
//   consumers    two warp groups of 64 rows each: S = Q·Kᵀ, online softmax, O += P·V.
//
// The ring counts in slots of 64 keys. A list entry takes one slot or, from an even slot on, two: what neither consumer looks at is not
// loaded, and a consumer computes only the 64-key halves it looks at (Tile::quarters). With the copy of K comes a Message that says what
// the entry is, so consumers never read lists. Barriers of an entry are those of its first slot. Who holds what:
//   k_full, v_full    one arrival (the producer) and the bytes of the copy;
//   k_empty, v_empty  one arrival of each consumer warp; for V of an entry that a consumer does not look at, the producer arrives for it.
//
// A consumer issues Q·Kᵀ of one entry and P·V of the entry before together, and its softmax runs beside the other's products. Measured
// without gain: turns of the consumers (FlashAttention-3's ping-pong), exponentials while P·V is under way, no maximum at all until the
// probabilities show that it is needed.
//
// Bits: an entry maps the state (m, l, O) of a row to the next one, and nothing but the state passes from one entry to the next. So a
// list cut into steps gives the same bits. In particular l is summed over the four threads of a row in every entry, not at the end.
#include "kernels/cuda/hopper_forward.hpp"

#include <cuda.h>

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper/barrier.cuh"
#include "kernels/cuda/hopper/copy.cuh"
#include "kernels/cuda/hopper/softmax.cuh"
#include "kernels/cuda/hopper/wgmma.cuh"
#include "longspan/error.hpp"

namespace longspan::kernels::cuda {
namespace {

using namespace hopper;

constexpr int kGroup = 128;                // threads of a warp group
constexpr int kConsumers = 2;              // consumer warp groups
constexpr int kRows = kTile / kConsumers;  // rows of one
constexpr int kThreads = (1 + kConsumers) * kGroup;
// Registers a thread: setmaxnreg moves them from the producer to the consumers; kGroup times their sum is at most 64 Ki.
constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;
static_assert(kGroup * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536);
constexpr int kSlotKeys = 64;
constexpr int kPanelElements = kSlotKeys * kPanel;  // of one slot
constexpr int kItems = 2;                           // items announced at a time
constexpr uint32_t kConsumerWarps = kConsumers * kGroup / 32;
constexpr int kBothConsumers = 1, kOneConsumer = 2;  // named barriers: of both, of each

// What the kernel needs of a DeviceStep, without std::span.
struct Arguments {
  const Work* work;
  const Tile* tiles;
  const MaskBits* masks;
  const int32_t *slots, *key_rows;
  const uint8_t* nonfinite_v;
  const WorkHead* items;
  int64_t resident, item_count;
  int heads;
  float scale;  // · log2 e
  ElementType output_type;
  float *m, *l, *o;
  std::byte* out;
  float* lse;
  int32_t* counter;
};

// An announced item; rows = 0 ends the queue.
struct Item {
  int64_t q_row, state_row;
  int32_t rows, head;
  bool begins, ends;
};

// What a consumer must know of a list entry. Flags: bits 0-1 Tile::Form; bits 2-3 and 4-5 the key halves that consumer 0 and 1 look at;
// then the constants below.
struct alignas(16) Message {
  uint32_t flags;
  int32_t keys;         // keys at and past it are not looked at
  uint32_t payload[2];  // Tile's union
};
enum : uint32_t {
  kTwoSlots = 1 << 6,    // both halves are loaded
  kSecondHalf = 1 << 7,  // only the second half is loaded
  kMasked = 1 << 8,      // not every pair that is looked at is allowed
  kNonfinite = 1 << 9,   // masked, and V holds NaN or ∞
  kLast = 1 << 10,       // the item's last entry
  kPad = 1 << 11,        // the next slot stays unused
  kWhole = 1 << 12,      // both look at both halves, without a mask
};
__device__ inline uint32_t need(uint32_t flags, int consumer) { return flags >> (2 + 2 * consumer) & 3; }

template <int D>
struct alignas(1024) Shared {
  static constexpr int kPanels = D / kPanel;
  static constexpr int kSlots = D == 128 ? 6 : 12;
  uint16_t q[kConsumers][kPanels][kRows * kPanel];
  uint16_t k[kPanels][kSlots * kPanelElements];
  uint16_t v[kPanels][kSlots * kPanelElements];
  Message messages[kSlots];
  Item items[kItems];
  uint64_t k_full[kSlots], k_empty[kSlots], v_full[kSlots], v_empty[kSlots];
  uint64_t q_full[kConsumers], q_empty[kConsumers];
  uint64_t item_full[kItems], item_empty[kItems];
};

// A walk over the ring, the same in the producer and in each consumer: the next slot, and for every slot how often it has been an entry's
// first one, modulo 2 (the parity of its barriers).
template <int Slots>
struct Walk {
  int slot = 0;
  uint32_t uses = 0;
  __device__ uint32_t parity(int of) const { return uses >> of & 1; }
  __device__ void pass(uint32_t flags) {
    uses ^= 1u << slot;
    slot += (flags & kTwoSlots ? 2 : 1) + (flags & kPad ? 1 : 0);
    if (slot >= Slots) slot -= Slots;
  }
};

// ---- Producer --------------------------------------------------------------------------------------------------------------------

// Flags of a tile (but for kLast and kPad), 0 if no one looks at it.
__device__ uint32_t describe(Tile::Form form, uint32_t quarters, uint64_t subtiles, int keys, int rows, bool nonfinite) {
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

// ---- Consumers -------------------------------------------------------------------------------------------------------------------

// Where in the ring an entry lies: flags of its Message, its first slot, the parity of its barriers.
struct Place {
  uint32_t flags;
  int first_slot;
  uint32_t parity;
  // Of the halves that a consumer looks at.
  __device__ bool both(int consumer) const { return need(flags, consumer) == 3; }
  __device__ int first_key(int consumer) const { return need(flags, consumer) == 2 ? kSlotKeys : 0; }
  __device__ int slot(int consumer) const { return first_slot + (need(flags, consumer) == 2 && flags & kTwoSlots ? 1 : 0); }
};

// And what its mask is.
struct Entry : Place {
  int keys;
  uint32_t payload[2];
};

template <typename Element, int D>
struct Consumer {
  using Ring = Shared<D>;
  static constexpr uint32_t kPanelBytes = sizeof(Ring::k[0]);
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Arguments& a;
  Ring& shared;
  const int group, warp, lane;  // 0 or 1; in the group; in the warp
  const int row;                // of the block; the thread's other row is row + 8
  Walk<Ring::kSlots> walk;
  bool more = true;  // entries of this item may follow

  uint32_t p[32];  // probabilities of the latest entry rounded, as A of P·V
  float o[D / 2];
  float m[2], l[2];
  float sum[2];  // this thread's share of the latest entry's probabilities, not in l yet

  template <typename... Barriers>
  __device__ __forceinline__ void release(Barriers*... barriers) {
    __syncwarp();
    if (lane == 0) (arrive(barriers), ...);
  }

  // Waits for the item's next entry; whether this consumer looks at it.
  __device__ __forceinline__ bool look(Entry& entry) {
    const int slot = walk.slot;
    entry.first_slot = slot, entry.parity = walk.parity(slot);
    wait(&shared.k_full[slot], entry.parity);
    const Message message = shared.messages[slot];
    // In a uniform register: the compiler serialises products in branches that might diverge (ptxas C7520), and addresses cost less.
    const uint32_t flags = __reduce_or_sync(0xffffffff, message.flags);
    entry.flags = flags, entry.keys = message.keys, entry.payload[0] = message.payload[0], entry.payload[1] = message.payload[1];
    walk.pass(flags);
    more = !(flags & kLast);
    if (need(flags, group) == 0) {
      release(&shared.k_empty[slot]);
      wait(&shared.v_full[slot], entry.parity);  // a parity tells only neighbouring rounds apart: none is left out
      return false;
    }
    return true;
  }

  // Issues S = Q·Kᵀ for Keys keys.
  template <int Keys>
  __device__ __forceinline__ void scores(int slot, float (&s)[Keys / 2]) {
    const Matrix q(shared.q[group][0]), k = Matrix(shared.k[0]).moved(slot * kPanelElements * 2);
    products_begin();
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const uint32_t panel = step / 4, within = step % 4 * 32;
      multiply<Element, Keys>(s, q.at(panel * sizeof(shared.q[0][0]) + within), k.at(panel * kPanelBytes + within), step > 0);
    }
    products_commit();
  }

  // Issues O += P·V for Keys keys.
  template <int Keys>
  __device__ __forceinline__ void output(int slot) {
    const Matrix v = Matrix(shared.v[0], kPanelBytes).moved(slot * kPanelElements * 2);
    products_begin();
#pragma unroll
    for (int step = 0; step < Keys / 16; ++step)
      multiply<Element>(o, p[4 * step], p[4 * step + 1], p[4 * step + 2], p[4 * step + 3], v.at(step * 16 * kPanel * 2));
    products_commit();
  }

  static __device__ __forceinline__ Mask mask_of(const Entry& entry) {
    return {static_cast<int>(entry.flags & 3), entry.keys, {entry.payload[0], entry.payload[1]}};
  }
  __device__ __forceinline__ void look_up_mask(const Entry& entry, uint32_t (&allowed)[2][4]) const {
    const Mask mask = mask_of(entry);
#pragma unroll
    for (int r = 0; r < 2; ++r) mask.words(a.masks, row + 8 * r, entry.first_key(group), lane, allowed[r]);
  }

  // l takes the latest entry in.
  __device__ __forceinline__ void settle() {
#pragma unroll
    for (int r = 0; r < 2; ++r) l[r] += row_sum(sum[r]), sum[r] = 0;
  }

  // Rows whose maximum has moved too far get a new one. No product is under way.
  template <int Count>
  __device__ __forceinline__ void raise(const float (&s)[Count]) {
    float high[2], factor[2];
    largest(s, high);
    settle();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float most = row_maximum(high[r]) * a.scale;
      const bool far = most > highest_without_new_maximum(m[r], l[r]);
      factor[r] = far ? exp2_approximate(__fsub_rn(m[r], most)) : 1;  // not in one operation with the product here and in two there
      if (far) m[r] = most;
      l[r] *= factor[r];
    }
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] *= factor[i / 2 % 2];
  }

  // The same in the rare case that there are such rows, while P·V of the entry before may be under way.
  template <int Count>
  __device__ __forceinline__ void keep_up(const float (&s)[Count]) {
    // The shuffles of settle() run beside the search for the maximum. Nothing but this tie to the scores keeps the assembler from putting
    // them between the products, which then wait for them. No bit changes: there are not that many heads.
    const uint32_t none = a.heads >> 31;
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = __uint_as_float(__float_as_uint(sum[r]) | (__float_as_uint(s[r]) & none));
    settle();
    float high[2];
    largest(s, high);
    if (__any_sync(0xffffffff, high[0] * a.scale > highest_without_new_maximum(m[0], l[0]) ||
                                   high[1] * a.scale > highest_without_new_maximum(m[1], l[1]))) {
      products_wait<0>();
      pin(o);
      raise(s);
    }
  }

  // An entry's scores become P. The exponentials take the longest, one every 8 cycles of a warp: all else that can runs beside them.
  template <int Count>
  __device__ __forceinline__ void soften(float (&s)[Count]) {
    const float shift[2] = {m[0] == -kInfinity ? 0 : m[0], m[1] == -kInfinity ? 0 : m[1]};  // not exp2(−∞ + ∞)
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = exp2_approximate(fmaf(s[i], a.scale, -shift[i / 2 % 2]));
      sum[i / 2 % 2] += s[i];
      if (i % 2) p[i / 2] = pack<Element>(s[i - 1], s[i]);
    }
  }

  // P of the item's first entry, or of one after finish().
  template <int Keys>
  __device__ __forceinline__ void first(const Entry& entry) {
    float s[Keys / 2];
    scores<Keys>(entry.slot(group), s);
    uint32_t allowed[2][4];
    const bool masked = entry.flags & kMasked;
    if (masked) look_up_mask(entry, allowed);
    products_wait<0>();
    pin(s);
    release(&shared.k_empty[entry.first_slot]);
    if (masked) forbid(s, allowed);
    raise(s);
    soften(s);
  }

  // What can be known of the next entry without waiting: its flags, 0 if its K is not there yet. Each warp finds that out for itself, so
  // that the four of a group may take different ways to the same products, in the same order. Products are for all four together and must
  // be the same instructions on all ways: the compiler may copy no call of scores() or output(). (It has not: 152 HGMMA in a kernel of
  // head_dim 128, 116 in one of 64, as many as the calls make.)
  __device__ __forceinline__ uint32_t glance() {
    const bool there = test(&shared.k_full[walk.slot], walk.parity(walk.slot));
    // In a uniform register: the compiler serialises products in branches that might diverge (ptxas C7520), and addresses cost less.
    return __reduce_and_sync(0xffffffff, there & more ? shared.messages[walk.slot].flags : 0);
  }

  // From P of `current`, CurrentKeys keys, to P of `following`; whether `upcoming` is the next entry then. All products that this issues
  // are over when it returns, and no branch but that around masks touches their registers while they are under way: else the compiler
  // serialises them (ptxas C7515).
  template <int CurrentKeys, int Keys>
  __device__ __forceinline__ bool step(const Place& current, const Entry& following, Entry& upcoming) {
    float s[Keys / 2];
    pin(p), pin(o);
    scores<Keys>(following.slot(group), s);
    wait(&shared.v_full[current.first_slot], current.parity);
    output<CurrentKeys>(current.slot(group));
    uint32_t allowed[2][4];
    const bool masked = following.flags & kMasked;
    if (masked) look_up_mask(following, allowed);
    products_wait<1>();
    pin(s);
    if (masked) forbid(s, allowed);
    keep_up(s);
    products_wait<0>();
    pin(p), pin(o);
    release(&shared.k_empty[following.first_slot], &shared.v_empty[current.first_slot]);
    const uint32_t flags = glance();
    soften(s);
    if (need(flags, group) == 0) return false;
    const Message& message = shared.messages[walk.slot];
    upcoming.keys = message.keys, upcoming.payload[0] = message.payload[0], upcoming.payload[1] = message.payload[1];
    static_cast<Place&>(upcoming) = take(flags);
    return true;
  }

  template <int Keys>
  __device__ __forceinline__ void finish(const Place& entry) {
    wait(&shared.v_full[entry.first_slot], entry.parity);
    pin(p), pin(o);
    output<Keys>(entry.slot(group));
    settle();
    products_wait<0>();
    pin(o);
    release(&shared.v_empty[entry.first_slot]);
  }
  __device__ __forceinline__ void finish(const Place& entry) { entry.both(group) ? finish<128>(entry) : finish<64>(entry); }

  // finish() for a masked entry whose V holds NaN or ∞: 0·NaN must not reach rows that do not look at the key. First every row takes what
  // it looks at of these values as it is, whatever its probability was rounded to; then they are set to zero in the ring, for both
  // consumers; and the product takes the rest, with the bits that it would have without them.
  __device__ __forceinline__ void finish_carefully(const Entry& entry) {
    wait(&shared.v_full[entry.first_slot], entry.parity);
    take_nonfinite(entry);
    const bool two = need(entry.flags, 0) && need(entry.flags, 1);
    const auto meet = [&] { two ? named_sync(kBothConsumers, kConsumers * kGroup) : named_sync(kOneConsumer + group, kGroup); };
    meet();                              // all have read
    constexpr int kPieces = kPanel / 8;  // of 16 bytes in a line
    const int lines = entry.flags & kTwoSlots ? 2 * kSlotKeys : kSlotKeys;
    for (int i = two ? threadIdx.x - kGroup : threadIdx.x % kGroup; i < Ring::kPanels * lines * kPieces; i += two ? 2 * kGroup : kGroup) {
      auto* piece = reinterpret_cast<uint4*>(shared.v[i / (lines * kPieces)] + entry.first_slot * kPanelElements) + i % (lines * kPieces);
      uint4 words = *piece;
      words.x = finite_only<Element>(words.x), words.y = finite_only<Element>(words.y);
      words.z = finite_only<Element>(words.z), words.w = finite_only<Element>(words.w);
      *piece = words;
    }
    written_for_products();
    meet();
    finish(entry);
  }

  __device__ __forceinline__ void take_nonfinite(const Entry& entry) {
    const Mask mask = mask_of(entry);
    const int keys = entry.both(group) ? 2 * kSlotKeys : kSlotKeys;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint32_t allowed[4];
      mask.words(a.masks, row + 8 * r, entry.first_key(group), 0, allowed);
#pragma unroll
      for (int w = 0; w < 4; ++w)
        for (int key = 32 * w; key < 32 * w + 32 && key < keys; ++key) {
          if (!(allowed[w] >> (key % 32) & 1)) continue;
#pragma unroll
          for (int n = 0; n < D / 8; ++n) {  // 16-byte pieces are swizzled
            const uint16_t* line = &shared.v[n / 8][entry.slot(group) * kPanelElements + key * kPanel];
            const float2 v = unpack<Element>(*reinterpret_cast<const uint32_t*>(line + ((n % 8) ^ (key % 8)) * 8 + 2 * (lane % 4)));
            if (!isfinite(v.x)) o[4 * n + 2 * r] += v.x;
            if (!isfinite(v.y)) o[4 * n + 2 * r + 1] += v.y;
          }
        }
    }
  }

  // Whether the next entry might need the slot of V that `current` holds: the producer would wait for it for ever.
  __device__ __forceinline__ bool crowded(const Place& current) const {
    const int free = current.first_slot - walk.slot;
    return (free < 0 ? free + Ring::kSlots : free) < 2;
  }

  __device__ __forceinline__ Place take(uint32_t flags) {
    const Place place{flags, walk.slot, walk.parity(walk.slot)};
    walk.pass(flags);
    more = !(flags & kLast);
    return place;
  }

  // Runs of whole entries: step() without its choices. P of `current` waits to be multiplied, and so it does at the end.
  __device__ __forceinline__ void run(Place& current, Place following) {
    bool v_there = false;
    while (true) {
      float s[64];
      pin(p), pin(o);
      scores<128>(following.first_slot, s);
      if (!v_there) wait(&shared.v_full[current.first_slot], current.parity);
      output<128>(current.first_slot);
      products_wait<1>();
      pin(s);
      keep_up(s);
      products_wait<0>();
      pin(p), pin(o);
      release(&shared.k_empty[following.first_slot], &shared.v_empty[current.first_slot]);
      v_there = test(&shared.v_full[following.first_slot], following.parity);
      const uint32_t flags = glance();
      soften(s);
      current = following;
      if (!(flags & kWhole)) return;
      following = {flags, walk.slot, walk.parity(walk.slot)};
      walk.pass(kTwoSlots);
      more = !(flags & kLast);
    }
  }

  // P of `following` next, P of `current` multiplied if it waits; whether `upcoming` has been found to be the next entry.
  __device__ __forceinline__ bool advance(const Place& current, const Entry& following, bool pending, Entry& upcoming) {
    if (!pending) {
      following.both(group) ? first<128>(following) : first<64>(following);
      return false;
    }
    if (current.both(group)) {
      return following.both(group) ? step<128, 128>(current, following, upcoming) : step<128, 64>(current, following, upcoming);
    }
    return following.both(group) ? step<64, 128>(current, following, upcoming) : step<64, 64>(current, following, upcoming);
  }

  __device__ __forceinline__ void entries() {
    Place current;
    Entry following;
    bool pending = false;  // P of `current` has not been multiplied with V yet
    bool found = false;    // `following` is the next entry
    more = true;
    while (more || found) {
      if (!found) {
        if (pending && crowded(current)) finish(current), pending = false;
        if (!look(following)) continue;
      }
      if (pending && current.flags & following.flags & kWhole) {
        run(current, following);
        found = false;
        continue;
      }
      if (following.flags & kNonfinite) {
        if (pending) finish(current);
        following.both(group) ? first<128>(following) : first<64>(following);
        finish_carefully(following);
        pending = found = false;
        continue;
      }
      Entry upcoming;
      found = advance(current, following, pending, upcoming);
      current = following, pending = true;
      following = upcoming;
    }
    release(&shared.q_empty[group]);
    if (pending) finish(current);
  }

  __device__ __forceinline__ void read_state(const Item& item) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      m[r] = -kInfinity, l[r] = 0, sum[r] = 0;
      const bool read = !item.begins && row + 8 * r < item.rows;
      const int64_t state = (item.state_row + row + 8 * r) * a.heads + item.head;
      if (read) m[r] = a.m[state], l[r] = a.l[state];
      const auto* from = reinterpret_cast<const float2*>(a.o + state * D) + lane % 4;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const float2 pair = read ? from[4 * n] : float2{0, 0};
        o[4 * n + 2 * r] = pair.x, o[4 * n + 2 * r + 1] = pair.y;
      }
    }
  }

  __device__ __forceinline__ void write_state(const Item& item) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row + 8 * r >= item.rows) continue;
      const int64_t state = (item.state_row + row + 8 * r) * a.heads + item.head;
      if (lane % 4 == 0) a.m[state] = m[r], a.l[state] = l[r];
      auto* to = reinterpret_cast<float2*>(a.o + state * D) + lane % 4;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) to[4 * n] = float2{o[4 * n + 2 * r], o[4 * n + 2 * r + 1]};
    }
  }

  template <typename Output>
  __device__ __forceinline__ void write_rounded(const Item& item) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Normalise normalise(l[r]);
      uint32_t pairs[D / 8];
#pragma unroll
      for (int n = 0; n < D / 8; ++n) pairs[n] = pack<Output>(normalise(o[4 * n + 2 * r]), normalise(o[4 * n + 2 * r + 1]));
      // A row's four threads hold 2 columns of each 8: after the exchange each holds 8 columns of every fourth, 16 bytes to store.
      exchange(pairs, lane);
      if (row + 8 * r >= item.rows) continue;
      auto* to = reinterpret_cast<uint4*>(a.out + ((item.q_row + row + 8 * r) * a.heads + item.head) * D * 2) + lane % 4;
#pragma unroll
      for (int n = 0; n < D / 8; n += 4) to[n] = uint4{pairs[n], pairs[n + 1], pairs[n + 2], pairs[n + 3]};
    }
  }

  __device__ __forceinline__ void write_output(const Item& item) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = (item.q_row + row + 8 * r) * a.heads + item.head;
      if (lane % 4 == 0 && row + 8 * r < item.rows) a.lse[at] = natural_lse(m[r], l[r]);
    }
    if (a.output_type == ElementType::bfloat16) {
      write_rounded<__nv_bfloat16>(item);
    } else if (a.output_type == ElementType::float16) {
      write_rounded<__half>(item);
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (row + 8 * r >= item.rows) continue;
        const Normalise normalise(l[r]);
        auto* to = reinterpret_cast<float2*>(a.out + ((item.q_row + row + 8 * r) * a.heads + item.head) * D * 4) + lane % 4;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) to[4 * n] = float2{normalise(o[4 * n + 2 * r]), normalise(o[4 * n + 2 * r + 1])};
      }
    }
  }

  __device__ __forceinline__ void run() {
    for (int count = 0;; ++count) {
      wait(&shared.item_full[count % kItems], count / kItems % 2);
      const Item item = shared.items[count % kItems];
      release(&shared.item_empty[count % kItems]);
      if (item.rows == 0) return;
      read_state(item);
      wait(&shared.q_full[group], count % 2);
      entries();
      if (item.ends) {
        write_output(item);
      } else {
        write_state(item);
      }
    }
  }
};

template <typename Element, int D>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ Arguments a, const __grid_constant__ CUtensorMap q_map,
                   const __grid_constant__ CUtensorMap tile_map, const __grid_constant__ CUtensorMap half_map) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<D>*>(memory);
  const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0);  // known to be the same in all lanes
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Shared<D>::kSlots; ++slot) {
      barrier_init(&shared.k_full[slot], 1), barrier_init(&shared.v_full[slot], 1);
      barrier_init(&shared.k_empty[slot], kConsumerWarps), barrier_init(&shared.v_empty[slot], kConsumerWarps);
    }
    for (int group = 0; group < kConsumers; ++group)
      barrier_init(&shared.q_full[group], 1), barrier_init(&shared.q_empty[group], kConsumerWarps / kConsumers);
    for (int item = 0; item < kItems; ++item)
      barrier_init(&shared.item_full[item], 1), barrier_init(&shared.item_empty[item], kConsumerWarps + kConsumers);
    barrier_init_done();
    prefetch(&q_map), prefetch(&tile_map), prefetch(&half_map);
  }
  __syncthreads();

  if (warp < kGroup / 32) {
    registers_decrease<kProducerRegisters>();
    if (warp == 0) {
      produce<D>(a, shared, tile_map, half_map);
    } else if (warp <= kConsumers) {
      load_queries<D>(shared, q_map, warp - 1);
    }
  } else {
    registers_increase<kConsumerRegisters>();
    const int group = warp / 4 - 1, lane = threadIdx.x % 32;
    Consumer<Element, D> consumer{a, shared, group, warp % 4, lane, group * kRows + warp % 4 * 16 + lane / 4};
    consumer.run();
  }
}

// ---- Host ------------------------------------------------------------------------------------------------------------------------

[[noreturn]] void fail(const std::string& what, const char* seen) {
  throw Error(Problem{.code = ExitCode::device, .what = what, .seen = seen});
}
void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) fail(std::string(call) + " failed", cudaGetErrorString(status));
}

// A tensor of 16-bit elements with panels of 64 elements as boxes' rows. Dimensions fastest first; strides in bytes, from dimension 1 on.
template <size_t Rank>
CUtensorMap tensor_map(ElementType type, const std::byte* base, std::array<cuuint64_t, Rank> size, std::array<cuuint64_t, Rank - 1> stride,
                       std::array<cuuint32_t, Rank> box) {
  static const auto encode = [] {  // through the runtime, so that no program links with the driver's library
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found), "cudaGetDriverEntryPoint");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  CUtensorMap map;
  std::array<cuuint32_t, Rank> step;
  step.fill(1);
  const CUresult result =
      encode(&map, type == ElementType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, Rank,
             const_cast<std::byte*>(base), size.data(), stride.data(), box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) fail("cuTensorMapEncodeTiled failed", std::to_string(result).c_str());
  return map;
}

template <typename Element, int D>
void launch(const DeviceStep& in, cudaStream_t stream) {
  const Step& step = in.step;
  const auto kernel = forward_kernel<Element, D>;
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<D>)), "cudaFuncSetAttribute");

  const cuuint64_t row_bytes = D * 2, rows = static_cast<cuuint64_t>(in.pool_slots) * 2 * kTile;
  const CUtensorMap q = tensor_map<3>(step.type, step.q, {D, static_cast<cuuint64_t>(step.heads), static_cast<cuuint64_t>(in.q_rows)},
                                      {row_bytes, row_bytes * step.heads}, {kPanel, 1, kRows});
  const CUtensorMap tile = tensor_map<2>(step.type, step.pool, {D, rows}, {row_bytes}, {kPanel, kTile});
  const CUtensorMap half = tensor_map<2>(step.type, step.pool, {D, rows}, {row_bytes}, {kPanel, kSlotKeys});
  const Arguments arguments{.work = step.work.data(),
                            .tiles = step.tiles.data(),
                            .masks = step.masks.data(),
                            .slots = step.slots,
                            .key_rows = step.key_rows,
                            .nonfinite_v = in.nonfinite_v,
                            .items = in.items,
                            .resident = step.resident,
                            .item_count = in.item_count,
                            .heads = step.heads,
                            .scale = step.scale * 1.4426950408889634f,
                            .output_type = in.output_type,
                            .m = step.m,
                            .l = step.l,
                            .o = step.o,
                            .out = in.out,
                            .lse = in.lse,
                            .counter = in.counter};
  check(cudaMemsetAsync(in.counter, 0, sizeof(*in.counter), stream), "cudaMemsetAsync");
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(multiprocessors, in.item_count));
  kernel<<<blocks, kThreads, sizeof(Shared<D>), stream>>>(arguments, q, tile, half);
  check(cudaGetLastError(), "forward_hopper");
}

}  // namespace

bool hopper_supports(ElementType type, int head_dim, float scale, int device_major) {
  return type != ElementType::float32 && (head_dim == 64 || head_dim == 128) && scale > 0 && device_major == 9;
}

void forward_hopper(const DeviceStep& step, cudaStream_t stream) {
  if (step.item_count == 0) return;
  const bool bfloat16 = step.step.type == ElementType::bfloat16;
  if (step.step.head_dim == 128) {
    bfloat16 ? launch<__nv_bfloat16, 128>(step, stream) : launch<__half, 128>(step, stream);
  } else {
    bfloat16 ? launch<__nv_bfloat16, 64>(step, stream) : launch<__half, 64>(step, stream);
  }
}

}  // namespace longspan::kernels::cuda
