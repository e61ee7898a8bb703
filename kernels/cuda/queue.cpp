#include "kernels/cuda/queue.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

namespace longspan::kernels::cuda {
namespace {

// K and V of as many KV heads as fit are worked on at a time, so that they come from the L2 cache (50 MB on Hopper) to all multiprocessors.
constexpr int64_t kSectionBytes = 32 << 20;
constexpr int kHalf = kTile / 2;

// Rows for every head of a Work; `place` is that of the dearest Work in it.
struct Rows {
  size_t place;
  Item item;  // but for the head
};

// One Work after the other.
std::vector<Rows> one_by_one(const Step& step) {
  std::vector<Rows> all(step.work.size());
  for (size_t w = 0; w < all.size(); ++w) all[w] = {w, {.work = static_cast<int32_t>(w)}};
  return all;
}

// Key blocks from the first to the last of an ascending list.
std::pair<int64_t, int64_t> range(const Step& step, const Work& work) {
  if (work.tile_count == 0) return {0, 0};
  const Tile &first = step.tiles[static_cast<size_t>(work.first_tile)],
             &last = step.tiles[static_cast<size_t>(work.first_tile + work.tile_count - 1)];
  return {first.key, last.key + (last.form == Tile::Form::full ? last.count : 1)};
}

// Whether `next` holds the rows after those of `work`, for the same heads, and may share keys with it: parts of long rows, which have a
// segment of the keys each, mostly do not.
bool follows(const Step& step, const Work& work, const Work& next) {
  const auto [begin, end] = range(step, work);
  const auto [next_begin, next_end] = range(step, next);
  return next_begin < end && begin < next_end && next.kv_head == work.kv_head && next.first_head == work.first_head &&
         next.head_count == work.head_count && next.q_row == work.q_row + work.rows;
}

std::vector<Rows> halves_together(const Step& step, int at_a_time) {
  std::vector<size_t> order(step.work.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto place_of = [&](size_t w) {
    const Work& work = step.work[w];
    return std::tuple(work.kv_head, work.first_head, work.q_row, work.state_row);
  };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return place_of(a) < place_of(b); });
  const auto halves = [&](size_t w) { return step.work[w].rows > kHalf ? 2 : 1; };
  std::vector<Rows> all;
  int from = 0;  // half of the next Work
  for (size_t at = 0; at < order.size();) {
    const size_t first = order[at];
    Rows rows{first, {.work = static_cast<int32_t>(first), .from_half = from}};
    const int left = at_a_time - (halves(first) - from);
    from = 0, ++at;
    if (left > 0 && at < order.size() && follows(step, step.work[first], step.work[order[at]])) {
      const size_t second = order[at];
      rows.item.second = static_cast<int32_t>(second);
      rows.place = std::min(first, second);
      left < halves(second) ? from = left : ++at;
    }
    all.push_back(rows);
  }
  std::stable_sort(all.begin(), all.end(), [](const Rows& a, const Rows& b) { return a.place < b.place; });
  return all;
}

}  // namespace

int halves_at_a_time(const Step& step) {
  if (step.head_dim != 64) return 2;
  int64_t blocks = 0;
  for (const Tile& tile : step.tiles) blocks += tile.form == Tile::Form::full ? tile.count : 1;
  return blocks >= 8 * static_cast<int64_t>(step.tiles.size()) ? 3 : 2;
}

std::vector<Item> queue(const Step& step, int halves_at_a_time) {
  const int64_t head_bytes = std::max<int64_t>(1, step.resident * unit_bytes(step.type, step.head_dim));
  const auto together = static_cast<int>(std::clamp<int64_t>(kSectionBytes / head_bytes, 1, step.kv_heads));
  std::vector<std::vector<Item>> sections(static_cast<size_t>((step.kv_heads + together - 1) / together));
  for (Rows& rows : halves_at_a_time > 2 ? halves_together(step, halves_at_a_time) : one_by_one(step)) {
    const Work& work = step.work[static_cast<size_t>(rows.item.work)];
    for (int h = 0; h < work.head_count; ++h) {
      rows.item.head = step.head_lists[static_cast<size_t>(work.first_head + h)];
      sections[static_cast<size_t>(work.kv_head / together)].push_back(rows.item);
    }
  }
  std::vector<Item> items;
  for (const std::vector<Item>& section : sections) items.insert(items.end(), section.begin(), section.end());
  return items;
}

}  // namespace longspan::kernels::cuda
