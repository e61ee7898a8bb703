// The units resident on a rank: its own, which stay, and fetched ones, which come into free slots and leave them again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <unordered_map>
#include <vector>

#include "kernels/device.hpp"
#include "pattern/intervals.hpp"

namespace longspan::engine {

class KeyPool {
 public:
  // `own`: key blocks with a slot for good, for each of `kv_heads`; `fetched`: slots for others.
  KeyPool(Intervals own, int kv_heads, int64_t fetched, int64_t unit_bytes, kernels::Device& device);

  kernels::Pool memory() const { return {memory_.get(), reinterpret_cast<uint8_t*>(nonfinite_.get()), slots_}; }
  int64_t bytes() const { return slots_ * unit_bytes_; }

  // Slot of an own or fetched unit, −1 if it is not here. Own ones: KV head by KV head, blocks ascending.
  int64_t slot(int kv_head, int64_t block) const;
  // Takes a free slot for a unit that is on its way. Internal error if none is free: the plan counted them. A unit that the last step of a
  // stripe uses and the first of the next fetches anew is here twice for a while: slot() tells the older one until it is released.
  int64_t take(int kv_head, int64_t block);
  void release(int kv_head, int64_t block);
  bool is_own(int64_t block) const { return contains(own_, block); }

 private:
  int64_t own_index(int64_t block) const;

  Intervals own_;
  std::vector<int64_t> own_before_;  // own blocks before each interval of own_
  int64_t own_blocks_ = 0, slots_ = 0, unit_bytes_;
  int kv_heads_;
  kernels::Buffer memory_, nonfinite_;
  // The lowest first, also when slots come back in any order: blocks fetched together lie together and go as few pieces.
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> free_;
  struct Copies {
    int64_t slot = -1, newer = -1;
  };
  std::unordered_map<int64_t, Copies> fetched_;
};

}  // namespace longspan::engine
