#include "engine/key_loader.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "engine/timed.hpp"

namespace longspan::engine {

KeyLoader::~KeyLoader() {
  try {
    while (last_load_ > 0 && !device_.is_loaded(last_load_)) sched_yield();
  } catch (...) {  // nor does a device that has failed load anything
  }
}

kernels::KeyBlocks KeyLoader::described(int kv_heads, std::span<const int32_t> rows, std::span<const int32_t> slots,
                                        std::span<const kernels::KeyRows> in_place) const {
  return {.type = shape_.type, .head_dim = shape_.head_dim, .kv_heads = kv_heads, .rows = rows, .slots = slots, .in_place = in_place};
}

void KeyLoader::load(int kv_head, int kv_heads, const Intervals& blocks, std::span<const int32_t> slots) {
  const std::vector<int32_t> rows = blocks_.rows(blocks);
  std::vector<kernels::KeyRows> in_place;
  if (kv_heads == shape_.kv_heads) in_place = copies_.keys_in_kernels(blocks_, blocks);
  const Intervals tokens = blocks_.tokens(blocks);
  device_.load_units(
      described(kv_heads, rows, slots, in_place),
      [&](int64_t first, int64_t count, std::byte* k, std::byte* v) {
        return copies_.read_keys(tokens, first, count, kv_head, kv_heads, k, v);
      },
      pool_.memory());
}

std::vector<int32_t> KeyLoader::own_slots(const Intervals& blocks) const {
  std::vector<int32_t> slots;
  slots.reserve(static_cast<size_t>(size_of(blocks) * shape_.kv_heads));
  for (const Interval& run : blocks)
    for (int64_t block = run.begin; block < run.end; ++block)
      for (int kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) slots.push_back(static_cast<int32_t>(pool_.slot(kv_head, block)));
  return slots;
}

bool KeyLoader::is_the_devices(const Intervals& own) {
  if (!is_the_devices_) is_the_devices_ = device_.starts_loads() && copies_.keys_are_in_kernels(blocks_, own);
  return *is_the_devices_;
}

// A little at first, for which the device need not wait long, and twice as much each time: to say where 4,096 blocks lie and go took this
// thread 0.12 to 0.17 ms, and an H200 to load them, 4 heads of head_dim 128 each, 0.5.
void KeyLoader::start_on_device(const Intervals& blocks) {
  for (Intervals left = blocks; !left.empty();) {
    const Intervals piece = first_of(left, at_once_);
    const std::vector<int32_t> slots = own_slots(piece);
    last_load_ = device_.start_loading(described(shape_.kv_heads, blocks_.rows(piece), slots, copies_.keys_in_kernels(blocks_, piece)),
                                       pool_.memory());
    left = subtract(left, piece);
    if (size_of(piece) == at_once_) at_once_ *= 2;
  }
}

void KeyLoader::start_own(const Intervals& own, const std::vector<Intervals>& parts) {
  pool_.leave_own_in_rows({}, blocks_);
  Intervals rest = own;
  for (const Intervals& part : parts) rest = subtract(rest, part);
  start(is_the_devices(own), parts, rest, {});
}

bool KeyLoader::leave_in_rows(const Intervals& own) {
  const Intervals tokens = blocks_.tokens(own);
  if (!is_the_devices(own) || size_of(tokens) > kernels::KeysInRows::kMostRows) return false;
  const kernels::KeyRows keys = copies_.keys_in_one_piece(tokens);
  if (keys.k == nullptr) return false;
  pool_.leave_own_in_rows(keys, blocks_);
  return true;
}

void KeyLoader::start_in_rows(const std::vector<Intervals>& parts, const Intervals& rest, const Intervals& masked) {
  start(true, parts, rest, masked);
}

// What others get first comes first, so that it is on its way while the rest is loaded.
void KeyLoader::start(bool on_device, const std::vector<Intervals>& parts, const Intervals& rest, const Intervals& masked) {
  const auto load_part = [this, on_device](const Intervals& part) {
    if (on_device)
      start_on_device(part), started_.push_back(last_load_);
    else
      load(0, shape_.kv_heads, part, own_slots(part));
  };
  const auto load_all = [this, &parts, rest, masked, load_part, on_device] {
    begun_at_ = seconds_now();
    for (const Intervals& part : parts) {
      load_part(part);
      if (!on_device) parts_here_.fetch_add(1, std::memory_order_release);
    }
    load_part(rest);
    if (const kernels::KeysInRows& in_rows = pool_.in_rows(); in_rows.rows > 0)
      started_.back() = last_load_ =
          device_.start_checking(in_rows, shape_.type, shape_.kv_heads, shape_.head_dim, pool_.parts_of_rows(masked));
    if (on_device) return;
    const double now = seconds_now();
    seconds_ = now - begun_at_;
    here_at_ = now;
  };
  if (on_device)
    load_all();
  else
    task_ = io_.submit(load_all);
}

void KeyLoader::note_loads() {
  if (started_.empty() || !std::isinf(here_at_)) return;
  size_t here = parts_here_;
  while (here < started_.size() && device_.is_loaded(started_[here])) ++here;
  if (here == started_.size()) {
    here_at_ = seconds_now();
    seconds_ = here_at_ - begun_at_;
  }
  parts_here_ = std::min(here, started_.size() - 1);  // the last one is the rest
}

size_t KeyLoader::parts_here() {
  note_loads();
  return parts_here_.load(std::memory_order_acquire);
}

double KeyLoader::here_at() {
  note_loads();
  return here_at_;
}

bool KeyLoader::wait_for(double seconds) {
  if (task_.valid()) {
    if (task_.wait_for(std::chrono::duration<double>(seconds)) != std::future_status::ready) return false;
    task_.get();
    return true;
  }
  if (started_.empty()) return true;
  for (const double since = seconds_now(); std::isinf(here_at()); sched_yield())
    if (seconds_now() - since > seconds) return false;
  return true;
}

}  // namespace longspan::engine
