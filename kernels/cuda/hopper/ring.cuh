// What the warps of a CTA of the Hopper kernel share: the ring of K and V, the items announced, the barriers.
//
// The ring counts in slots of 64 keys. A list entry takes one slot or, from an even slot on, two: what no consumer looks at is not
// loaded, and a consumer computes only the 64-key halves it looks at (Tile::quarters). With the copy of K comes a Message that says what
// the entry is, so consumers never read lists. Barriers of an entry are those of its first slot. They complete with
//   item_full         one arrival of each lane of warp 0 that has written a part of the item;
//   announced         one arrival: the message and the unit are there for warp 3, which has V copied;
//   k_full, v_full    one arrival and the bytes of the copy;
//   k_empty           one arrival of each consumer thread and one of warp 3, which has read the message;
//   v_empty           one arrival of each consumer thread, or of warp 3 for those that do not look at the entry (an item's states are taken
//                     by all, those without rows, too).
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/hopper/wgmma.cuh"
#include "kernels/cuda/step.hpp"

namespace longspan::kernels::cuda::hopper {

constexpr int kGroup = 128;  // threads of a warp group
constexpr int kRows = 64;    // rows of a consumer

// A kernel's shape: consumers are warp groups, 64 rows each. With head_dim 64 a row's scores and output take 96 registers of a thread, not
// 128, so there is room for a third one (FlashAttention-3's shape), some rows being of another query block: products of short rows keep the
// tensor units busy only if several warps of a scheduler have some. What it costs: the producer has 32 registers, and takes several times
// as long for an entry that is not part of a run.
//
// A kernel of its own reads keys in rows (KeysInRows): one for both took 0.6 to 2 % longer for small windows and blocks of 64 that lie in
// the pool.
template <int HeadDim, int Consumers, bool Continues, bool Rows>
struct Shape {
  static constexpr int kHeadDim = HeadDim, kConsumers = Consumers;
  static constexpr bool kContinues = Continues;  // some items do not begin their rows' states
  static constexpr bool kInRows = Rows;          // some units lie in rows
  static constexpr int kLists = Consumers - 1;   // tile lists of an item, at most
  static constexpr uint32_t kConsumerThreads = Consumers * kGroup;
  static constexpr int kThreads = (1 + Consumers) * kGroup;
  // Registers a thread: setmaxnreg moves them from the producer to the consumers; kGroup times their sum is at most 64 Ki.
  static constexpr int kProducerRegisters = Consumers == 3 ? 32 : 56, kConsumerRegisters = Consumers == 3 ? 160 : 224;
  static_assert(kGroup * (kProducerRegisters + Consumers * kConsumerRegisters) <= 65536);
};
constexpr int kSlotKeys = 64;
constexpr int kPanelElements = kSlotKeys * kPanel;  // of one slot
constexpr int kStateColumns = 32;                   // of states in the ring, in one slot of a panel
constexpr int kItems = 2;                           // items announced at a time
constexpr int kQueryWarps = 2;                      // of the producer
constexpr int kTwoConsumers = 1, kOneConsumer = 3;  // named barriers: of consumers 0 and 1, 1 and 2; of each

// In a step that continues, an item begins with an entry that is no key block but the states of its rows, brought ahead as all entries are:
// consumer 0's O in the place of K, consumer 1's in that of V. (Measured on the second half of a dense job: 3 % slower than a half that
// begins where consumers read the states from global memory, 1 % so. A kernel of its own for steps that only begin is 1 to 3 % faster on
// small windows. Three consumers have no such entries: their rows may be of two Works.)

// What the kernel needs of a DeviceStep, without std::span.
struct Arguments {
  const Work* work;
  const Tile* tiles;
  const MaskBits* masks;
  const int32_t *slots, *key_rows;
  const uint8_t* nonfinite_v;
  const Item* items;
  int64_t resident, item_count;
  int heads;
  float scale;  // · log2 e
  ElementType output_type;
  float *m, *l, *o;
  std::byte* out;
  float* lse;
  uint32_t* counter;
  const uint8_t* nonfinite_rows;
  int rows_of_keys, kv_heads;
};

// What is copied from, in boxes of 64 rows (`half`) or 128, each [rows][heads][head_dim]; a pool, of 256 rows a slot, has one head, and
// only in a kernel that reads keys in rows, too, a dimension for it.
struct Maps {
  CUtensorMap q, tile, half, states, k_tile, k_half, v_tile, v_half;
};

// A consumer's rows of an item: none, or those of a 64-row half of a Work.
struct Part {
  int64_t q_row, state_row;  // of the first one
  int32_t rows;
  uint8_t half;  // of the query block
  uint8_t list;  // whose tiles are theirs: 0 the item's first Work's, 1 the second's
  bool begins, ends;
};

// An announced item.
template <class S>
struct Announced {
  Part parts[S::kConsumers];
  int32_t head;
  bool stop;  // no item: the queue is at its end
};

// What a consumer must know of a list entry. Flags: bits 0-1, 2-3 and 4-5 the key halves that consumers 0, 1 and 2 look at; bits 6-7 and
// 8-9 Tile::Form in list 0 and list 1; then the constants below.
template <class S>
struct alignas(16) Message {
  uint32_t flags;
  int32_t keys;                    // keys at and past it are not looked at
  uint32_t payload[S::kLists][2];  // Tile's union
};
enum : uint32_t {
  kNeeds = 0x3f,
  kMasked = 1 << 10,      // << list: not every pair of it that is looked at is allowed
  kWhole = 1 << 12,       // << consumer: it looks at both halves, without a mask
  kTwoSlots = 1 << 15,    // both halves are loaded
  kSecondHalf = 1 << 16,  // only the second half is loaded
  kNonfinite = 1 << 17,   // masked, and V holds NaN or ∞. Then the entry is one list's alone
  kLast = 1 << 18,        // the item's last entry
  kPad = 1 << 19,         // the next slot stays unused
  kStop = 1 << 20,        // no entry: the queue is at its end
  kState = 1 << 21,       // the states of the item: Message::keys is their head, the unit their first row
};
__device__ inline uint32_t need(uint32_t flags, int consumer) { return flags >> 2 * consumer & 3; }
__device__ inline uint32_t form_in(uint32_t flags, int list) { return flags >> (6 + 2 * list) & 3; }

template <class S>
struct alignas(1024) Shared {
  static constexpr int kPanels = S::kHeadDim / kPanel;
  static constexpr int kSlots = S::kHeadDim == 128 ? 6 : 12;
  uint16_t q[S::kConsumers][kPanels][kRows * kPanel];
  uint16_t k[kPanels][kSlots * kPanelElements];
  uint16_t v[kPanels][kSlots * kPanelElements];
  Message<S> messages[kSlots];
  int units[kSlots];  // where the entry's K and V are: a slot as in Step::slots
  Announced<S> items[kItems];
  uint64_t announced[kSlots], k_full[kSlots], k_empty[kSlots], v_full[kSlots], v_empty[kSlots];
  uint64_t q_full[S::kConsumers], q_empty[S::kConsumers];
  uint64_t item_full[kItems], item_empty[kItems];
  int kv_heads[S::kInRows ? kSlots : 1];  // of units
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

}  // namespace longspan::kernels::cuda::hopper
