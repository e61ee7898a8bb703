// The units resident on a rank: its own, which stay, and fetched ones, which come into free slots and may leave them again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "kernels/device.hpp"
#include "pattern/intervals.hpp"
#include "plan/blocks.hpp"

namespace longspan::engine {

class KeyPool {
 public:
  // `own`: key blocks with a slot for good, of `blocks` in all, for each of `kv_heads`; `fetched`: slots for others. `in_parts`: not all of
  // a unit need come. The rest of its slot is what was there before; at first zeros on a GPU, where NaN would cost time.
  KeyPool(const Intervals& own, int64_t blocks, int kv_heads, int64_t fetched, int64_t unit_bytes, bool in_parts, kernels::Device& device);

  // From now on own units are attended where their rows lie, in order, from `keys` on: they stay until the steps of this run are over. Or
  // in the pool, as at first, if that is null.
  void leave_own_in_rows(const kernels::KeyRows& keys, const plan::Blocks& table);
  const kernels::KeysInRows& in_rows() const { return in_rows_; }  // without rows: they are in the pool
  // There: numbers of the 128 rows that some of these units touch (KeysInRows::nonfinite), ascending.
  std::vector<int32_t> parts_of_rows(const Intervals& own) const;

  kernels::Pool memory() const { return {memory_.get(), reinterpret_cast<uint8_t*>(nonfinite_.get()), slots_}; }
  int64_t bytes() const { return slots_ * unit_bytes_; }

  // Slot of an own or fetched unit, −1 if it is not here. Own ones: KV head by KV head, blocks ascending.
  int64_t slot(int kv_head, int64_t block) const { return slot_of_[static_cast<size_t>(unit(kv_head, block))]; }
  // Where kernels find those of KV heads × blocks, [kv_heads][blocks], as Step::slots.
  void slots_of(const Intervals& blocks, std::vector<int32_t>& slots) const;
  // Takes free slots for units that are on their way, and appends them. Internal error if there are too few: the plan counted them. A unit
  // that a step of a stripe uses and one of a later stripe fetches anew is here more than once for a while: slot() tells the oldest until
  // it is released.
  void take(int kv_head, Interval blocks, std::vector<int32_t>& slots);
  // Takes these slots for these units (of none of which one is here), as take() did in a run before: without looking for any. Whether they
  // are free: else nothing is taken.
  bool take_again(const std::vector<int64_t>& units, const std::vector<int32_t>& slots);
  int64_t unit(int kv_head, int64_t block) const { return kv_head * blocks_ + block; }  // its number
  void release(int kv_head, int64_t block);
  bool some_are_twice() const { return !newer_.empty(); }

 private:
  int kv_heads_;
  int64_t blocks_, own_slots_, slots_, unit_bytes_;
  kernels::Device& device_;
  Intervals own_;
  kernels::Buffer memory_, nonfinite_, nonfinite_rows_;
  kernels::KeysInRows in_rows_;
  std::vector<int32_t> place_in_rows_;  // by block, −1 of others' ones; once known
  // By unit. Tens of thousands of units come and go in a millisecond of the link's time: neither takes a search.
  std::vector<int32_t> slot_of_;
  std::unordered_map<int64_t, std::deque<int32_t>> newer_;  // further slots of units that are here more than once, oldest first
  // A bit per slot. The lowest free slot is taken, also when slots come back in any order: blocks fetched together lie together and go as
  // few pieces. No word before lowest_ has a bit set.
  std::vector<uint64_t> free_;
  size_t lowest_ = 0;
};

}  // namespace longspan::engine
