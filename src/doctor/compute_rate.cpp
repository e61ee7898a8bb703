#include "doctor/compute_rate.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "kernels/cpu/attention.hpp"

namespace longspan::doctor {

namespace {

using kernels::kTile;
using kernels::Tile;
using kernels::Work;

constexpr int kKvHeads = 2, kGroup = 4, kHeads = kKvHeads * kGroup;
constexpr int kKeyBlocks = 16;

// −1 … 1, the same on every rank.
std::vector<std::byte> numbers(int64_t count, ElementType type) {
  std::vector<std::byte> bytes(static_cast<size_t>(count) * size_of(type));
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;  // Numerical Recipes
    store_element(bytes.data(), type, static_cast<size_t>(i), static_cast<float>(state >> 8) / (1 << 23) - 1);
  }
  return bytes;
}

// Two items a thread, each one query block, the heads of one KV head, and kKeyBlocks tiles.
double seconds_per_quarter(ElementType type, int head_dim, bool full, kernels::cpu::ThreadPool& threads, double seconds) {
  const int blocks = threads.threads(), items = blocks * kKvHeads;
  const int64_t rows = int64_t{blocks} * kTile;
  const std::vector<std::byte> q = numbers(rows * kHeads * head_dim, type);
  const std::vector<std::byte> pool = numbers(int64_t{kKvHeads} * kKeyBlocks * 2 * kTile * head_dim, type);
  std::vector<int32_t> slots(size_t{kKvHeads} * kKeyBlocks), head_lists(kHeads);
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(i);
  for (int head = 0; head < kHeads; ++head) head_lists[static_cast<size_t>(head)] = head;
  const std::vector<int32_t> key_rows(kKeyBlocks, kTile);
  std::vector<Tile> tiles;
  if (full) {
    tiles.push_back(Tile::full_run(0, kKeyBlocks));
  } else {
    for (int key = 0; key < kKeyBlocks; ++key) {
      Tile tile;
      tile.key = key, tile.form = Tile::Form::band, tile.band = {-100, 100};  // something of all four quarters
      tiles.push_back(tile);
    }
  }
  std::vector<Work> work(static_cast<size_t>(items));
  for (int item = 0; item < items; ++item) {
    Work& one = work[static_cast<size_t>(item)];
    one.q_row = one.state_row = int64_t{item / kKvHeads} * kTile, one.rows = kTile;
    one.kv_head = item % kKvHeads, one.tile_count = static_cast<int64_t>(tiles.size());
    one.first_head = one.kv_head * kGroup, one.head_count = kGroup;
  }
  std::vector<float> m(static_cast<size_t>(rows * kHeads)), l(m.size()), o(m.size() * static_cast<size_t>(head_dim));
  kernels::cpu::clear_states(rows * kHeads, head_dim, m.data(), l.data(), o.data(), threads);
  kernels::Step step;
  step.type = type, step.heads = kHeads, step.kv_heads = kKvHeads, step.head_dim = head_dim, step.scale = 0.1f;
  step.q = q.data(), step.pool = pool.data(), step.slots = slots.data(), step.key_rows = key_rows.data(), step.resident = kKeyBlocks;
  step.work = work, step.tiles = tiles, step.head_lists = head_lists;
  step.m = m.data(), step.l = l.data(), step.o = o.data();

  using Clock = std::chrono::steady_clock;
  std::vector<double> runs;
  const auto start = Clock::now();
  for (double sum = 0; runs.size() < 4 || sum < seconds; sum = std::chrono::duration<double>(Clock::now() - start).count()) {
    const auto begin = Clock::now();
    kernels::cpu::forward(step, threads);
    runs.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  runs.erase(runs.begin());  // warms up
  std::sort(runs.begin(), runs.end());
  return runs[runs.size() / 2] / (static_cast<double>(items) * kKeyBlocks * 4 * kGroup);
}

}  // namespace

ComputeRate compute_rate(ElementType type, int head_dim, kernels::cpu::ThreadPool& threads, double seconds) {
  return {.full = seconds_per_quarter(type, head_dim, true, threads, seconds),
          .partial = seconds_per_quarter(type, head_dim, false, threads, seconds)};
}

}  // namespace longspan::doctor
