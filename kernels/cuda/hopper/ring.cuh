// What the warps of a CTA of the Hopper kernel share: the ring of K and V, the items announced, the barriers.
//
// The ring counts in slots of 64 keys. A list entry takes one slot or, from an even slot on, two: what neither consumer looks at is not
// loaded, and a consumer computes only the 64-key halves it looks at (Tile::quarters). With the copy of K comes a Message that says what
// the entry is, so consumers never read lists. Barriers of an entry are those of its first slot. They complete with
//   announced         one arrival: the message and the unit are there for warp 3, which has V copied;
//   k_full, v_full    one arrival and the bytes of the copy;
//   k_empty           one arrival of each consumer warp and one of warp 3, which has read the message;
//   v_empty           one arrival of each consumer warp, or of warp 3 for those that do not look at the entry.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/hopper/wgmma.cuh"
#include "kernels/cuda/step.hpp"

namespace longspan::kernels::cuda::hopper {

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
  kStop = 1 << 13,       // no entry: the queue is at its end
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
  int units[kSlots];  // of the pool: where the entry's K and V are
  Item items[kItems];
  uint64_t announced[kSlots], k_full[kSlots], k_empty[kSlots], v_full[kSlots], v_empty[kSlots];
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

}  // namespace longspan::kernels::cuda::hopper
