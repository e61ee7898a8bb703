#include "engine/key_pool.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "longspan/error.hpp"

namespace longspan::engine {

KeyPool::KeyPool(const Intervals& own, int64_t blocks, int kv_heads, int64_t fetched, int64_t unit_bytes, bool in_parts,
                 kernels::Device& device)
    : kv_heads_(kv_heads),
      blocks_(blocks),
      own_slots_(size_of(own) * kv_heads),
      slots_(own_slots_ + fetched),
      unit_bytes_(unit_bytes),
      device_(device),
      own_(own),
      slot_of_(static_cast<size_t>(kv_heads * blocks), -1) {
  if (slots_ > std::numeric_limits<int32_t>::max() / (in_parts ? 4 : 1)) internal_error("a pool has more slots than their numbers can say");
  int32_t next = 0;
  for (int kv_head = 0; kv_head < kv_heads; ++kv_head)
    for (const Interval& run : own)
      for (int64_t block = run.begin; block < run.end; ++block) slot_of_[static_cast<size_t>(unit(kv_head, block))] = next++;
  memory_ = device.allocate(slots_ * unit_bytes);
  nonfinite_ = device.allocate(slots_);
  if (in_parts && !device.memory_is_host()) device.clear(memory_.get() + own_slots_ * unit_bytes, fetched * unit_bytes);
  free_.resize(static_cast<size_t>(slots_ / 64 + 1));
  for (int64_t slot = own_slots_; slot < slots_; ++slot) free_[static_cast<size_t>(slot / 64)] |= uint64_t{1} << slot % 64;
}

void KeyPool::leave_own_in_rows(const kernels::KeyRows& keys, const plan::Blocks& table) {
  in_rows_ = {};
  if (keys.k == nullptr) return;
  in_rows_.k = keys.k, in_rows_.v = keys.v;
  in_rows_.rows = size_of(table.tokens(own_));
  if (!nonfinite_rows_) nonfinite_rows_ = device_.allocate((in_rows_.rows + kernels::kTile - 1) / kernels::kTile * kv_heads_);
  in_rows_.nonfinite = reinterpret_cast<uint8_t*>(nonfinite_rows_.get());
  if (!place_in_rows_.empty()) return;
  place_in_rows_.assign(static_cast<size_t>(blocks_), -1);
  int64_t row = 0;
  for (const Interval& run : own_)
    for (int64_t block = run.begin; block < run.end; row += table.rows(block++))
      place_in_rows_[static_cast<size_t>(block)] = kernels::KeysInRows::slot(row);
}

std::vector<int32_t> KeyPool::parts_of_rows(const Intervals& own) const {
  std::vector<int32_t> parts;
  for (const Interval& run : own)
    for (int64_t block = run.begin; block < run.end; ++block) {
      const int64_t first = kernels::KeysInRows::first_row(place_in_rows_[static_cast<size_t>(block)]);
      const int64_t last = std::min(first + kernels::kTile, in_rows_.rows) - 1;
      for (int64_t part = first / kernels::kTile; part <= last / kernels::kTile; ++part)
        if (parts.empty() || parts.back() < part) parts.push_back(static_cast<int32_t>(part));
    }
  return parts;
}

void KeyPool::slots_of(const Intervals& blocks, std::vector<int32_t>& slots) const {
  slots.clear();
  for (int kv_head = 0; kv_head < kv_heads_; ++kv_head)
    for (const Interval& run : blocks)
      slots.insert(slots.end(), slot_of_.begin() + unit(kv_head, run.begin), slot_of_.begin() + unit(kv_head, run.end));
  if (in_rows_.rows == 0) return;
  auto slot = slots.begin();
  for (int kv_head = 0; kv_head < kv_heads_; ++kv_head)
    for (const Interval& run : blocks)
      for (int64_t block = run.begin; block < run.end; ++block, ++slot)
        if (const int32_t place = place_in_rows_[static_cast<size_t>(block)]; place != -1) *slot = place;
}

void KeyPool::take(int kv_head, Interval blocks, std::vector<int32_t>& slots) {
  const size_t end = free_.size();
  uint64_t word = lowest_ < end ? free_[lowest_] : 0;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    while (word == 0 && lowest_ < end) {
      free_[lowest_] = 0;
      word = ++lowest_ < end ? free_[lowest_] : 0;
    }
    if (word == 0) internal_error("the plan asks for more resident units than it reserved");
    const auto slot = static_cast<int32_t>(lowest_ * 64) + std::countr_zero(word);
    word &= word - 1;
    slots.push_back(slot);
    int32_t& older = slot_of_[static_cast<size_t>(unit(kv_head, block))];
    if (older < 0)
      older = slot;
    else
      newer_[unit(kv_head, block)].push_back(slot);
  }
  if (lowest_ < end) free_[lowest_] = word;
}

bool KeyPool::take_again(const std::vector<int64_t>& units, const std::vector<int32_t>& slots) {
  bool free = true;
  for (size_t i = 0; i < units.size(); ++i)
    free = free && (free_[static_cast<size_t>(slots[i] / 64)] >> slots[i] % 64 & 1) != 0 && slot_of_[static_cast<size_t>(units[i])] < 0;
  if (!free) return false;
  for (size_t i = 0; i < units.size(); ++i) {
    free_[static_cast<size_t>(slots[i] / 64)] &= ~(uint64_t{1} << slots[i] % 64);
    slot_of_[static_cast<size_t>(units[i])] = slots[i];
  }
  return true;
}

void KeyPool::release(int kv_head, int64_t block) {
  int32_t& slot = slot_of_[static_cast<size_t>(unit(kv_head, block))];
  if (slot < own_slots_) internal_error("a unit is released that is not here");
  const auto word = static_cast<size_t>(slot / 64);
  free_[word] |= uint64_t{1} << slot % 64;
  lowest_ = std::min(lowest_, word);
  slot = -1;
  if (newer_.empty()) return;
  if (const auto newer = newer_.find(unit(kv_head, block)); newer != newer_.end()) {
    slot = newer->second.front();
    newer->second.pop_front();
    if (newer->second.empty()) newer_.erase(newer);
  }
}

}  // namespace longspan::engine
