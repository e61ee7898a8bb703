// Rows of keys and values from the input into units of the pool: a rank's own at the start of a run, others again where keys do not stay.
// By the I/O thread; or, where all of the own ones are in reach of the device's kernels, by the device, which the caller's thread tells to:
// no other one has to wake up first.
#pragma once

#include <atomic>
#include <cstdint>
#include <future>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "engine/io_thread.hpp"
#include "engine/key_pool.hpp"
#include "engine/row_copies.hpp"
#include "kernels/device.hpp"
#include "longspan/shape.hpp"
#include "pattern/intervals.hpp"
#include "plan/blocks.hpp"

namespace longspan::engine {

class KeyLoader {
 public:
  // The references outlive this.
  KeyLoader(const Shape& shape, const plan::Blocks& blocks, RowCopies& copies, kernels::Device& device, KeyPool& pool, IoThread& io)
      : shape_(shape), blocks_(blocks), copies_(copies), device_(device), pool_(pool), io_(io) {}

  ~KeyLoader();  // what was started on the device is over
  KeyLoader(const KeyLoader&) = delete;
  KeyLoader& operator=(const KeyLoader&) = delete;

  // KV heads [kv_head, kv_head + kv_heads) of these blocks into their units, whose slots are [blocks][kv_heads]. The I/O thread's.
  void load(int kv_head, int kv_heads, const Intervals& blocks, std::span<const int32_t> slots);

  // Whether the device loads `own`, the same blocks at every call.
  bool is_the_devices(const Intervals& own);
  // Where the device loads `own`, and all its rows follow each other in memory: kernels attend them there from now on. Else false.
  bool leave_in_rows(const Intervals& own);
  // Then: starts to load `parts` and `rest` of them, which others get, into the pool, and after that to look for NaN and ∞ in those that
  // are `masked` (StepLists::masked()).
  void start_in_rows(const std::vector<Intervals>& parts, const Intervals& rest, const Intervals& masked);
  // Else: starts to load `own` into the pool, first `parts` of it, one after another, then the rest. Once, this or the one before.
  void start_own(const Intervals& own, const std::vector<Intervals>& parts);
  bool is_started() const { return task_.valid() || !started_.empty(); }
  size_t parts_here();            // so many of `parts`
  bool wait_for(double seconds);  // at most so long; whether all is here, or nothing was started. Rethrows what went wrong
  // When all was here, as seconds_now(), ∞ before; and how long it took.
  double here_at();
  double seconds() const { return seconds_; }

 private:
  kernels::KeyBlocks described(int kv_heads, std::span<const int32_t> rows, std::span<const int32_t> slots,
                               std::span<const kernels::KeyRows> in_place) const;
  std::vector<int32_t> own_slots(const Intervals& blocks) const;
  void start(bool on_device, const std::vector<Intervals>& parts, const Intervals& rest, const Intervals& masked);
  void start_on_device(const Intervals& blocks);
  void note_loads();

  const Shape& shape_;
  const plan::Blocks& blocks_;
  RowCopies& copies_;
  kernels::Device& device_;
  KeyPool& pool_;
  IoThread& io_;
  std::optional<bool> is_the_devices_;
  std::future<void> task_;        // not valid: none, or they are started on the device
  std::vector<int64_t> started_;  // there: the last load of each part, and of the rest
  int64_t last_load_ = 0;         // 0: none
  int64_t at_once_ = 512;         // blocks of the next one
  double begun_at_ = 0, seconds_ = 0;
  std::atomic<size_t> parts_here_ = 0;
  std::atomic<double> here_at_ = std::numeric_limits<double>::infinity();
};

}  // namespace longspan::engine
