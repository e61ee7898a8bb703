#include "engine/key_pool.hpp"

#include <algorithm>
#include <limits>

#include "longspan/error.hpp"

namespace longspan::engine {

KeyPool::KeyPool(Intervals own, int kv_heads, int64_t fetched, int64_t unit_bytes, kernels::Device& device)
    : own_(std::move(own)), unit_bytes_(unit_bytes), kv_heads_(kv_heads) {
  for (const Interval& run : own_) {
    own_before_.push_back(own_blocks_);
    own_blocks_ += run.length();
  }
  const int64_t own_slots = own_blocks_ * kv_heads;
  slots_ = own_slots + fetched;
  if (slots_ > std::numeric_limits<int32_t>::max()) internal_error("a pool has more slots than their numbers can say");
  memory_ = device.allocate(slots_ * unit_bytes);
  nonfinite_ = device.allocate(slots_);
  for (int64_t slot = own_slots; slot < slots_; ++slot) free_.push(slot);
}

int64_t KeyPool::own_index(int64_t block) const {
  const auto next = std::upper_bound(own_.begin(), own_.end(), block, [](int64_t b, const Interval& run) { return b < run.begin; });
  if (next == own_.begin()) return -1;
  const auto run = static_cast<size_t>(next - own_.begin()) - 1;
  return block < own_[run].end ? own_before_[run] + block - own_[run].begin : -1;
}

int64_t KeyPool::slot(int kv_head, int64_t block) const {
  const int64_t index = own_index(block);
  if (index >= 0) return kv_head * own_blocks_ + index;
  const auto found = fetched_.find(block * kv_heads_ + kv_head);
  return found == fetched_.end() ? -1 : found->second.slot;
}

int64_t KeyPool::take(int kv_head, int64_t block) {
  if (free_.empty()) internal_error("the plan asks for more resident units than it reserved");
  const int64_t slot = free_.top();
  free_.pop();
  Copies& copies = fetched_[block * kv_heads_ + kv_head];
  if (copies.newer >= 0) internal_error("a unit is fetched that is here twice");
  (copies.slot < 0 ? copies.slot : copies.newer) = slot;
  return slot;
}

void KeyPool::release(int kv_head, int64_t block) {
  const auto found = fetched_.find(block * kv_heads_ + kv_head);
  if (found == fetched_.end()) internal_error("a unit is released that is not here");
  free_.push(found->second.slot);
  if (found->second.newer >= 0) {
    found->second = {found->second.newer, -1};
  } else {
    fetched_.erase(found);
  }
}

}  // namespace longspan::engine
