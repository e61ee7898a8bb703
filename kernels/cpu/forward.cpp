#include "kernels/cpu/forward.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

namespace longspan::kernels::cpu {

namespace {

// Tiles × heads of an item, partial tiles by their non-empty quarters.
double cost_of(const Step& step, const Work& work) {
  int64_t quarters = 0;
  for (int64_t t = work.first_tile; t < work.first_tile + work.tile_count; ++t) {
    const Tile& tile = step.tiles[static_cast<size_t>(t)];
    quarters += tile.form == Tile::Form::full ? 4 * tile.count : std::popcount(static_cast<unsigned>(tile.quarters & 0xf));
  }
  return static_cast<double>(quarters) / 4 * work.head_count;
}

// The kernels want a positive factor of the scores: a negative one turns the queries' signs, and 0 makes them 0 (NaN and ∞ become NaN).
// `words` floats, or pairs of 16-bit elements (bfloat16).
void fold_sign(float scale, bool pairs, float* queries, int64_t words) {
  if (scale > 0) return;
  for (int64_t i = 0; i < words; ++i) {
    uint32_t bits;
    std::memcpy(&bits, queries + i, 4);
    if (scale < 0) {
      bits ^= pairs ? 0x80008000u : 0x80000000u;
    } else if (pairs) {
      const auto zero_of = [](uint32_t half) { return (half & 0x7f80) == 0x7f80 ? 0x7fc0u : 0u; };
      bits = zero_of(bits & 0xffff) | zero_of(bits >> 16) << 16;
    } else {
      bits = (bits & 0x7f800000) == 0x7f800000 ? 0x7fc00000u : 0u;
    }
    std::memcpy(queries + i, &bits, 4);
  }
}

// What of the next tile's unit is brought near, a slice with each panel, while this tile is in work: its keys [begin, end), then their
// values.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const std::byte* unit, int64_t unit_bytes, int begin, int end)
      : at_(unit + unit_bytes / 2 * begin / kTile),
        left_(unit_bytes / 2 * (end - begin) / kTile),
        values_(at_ + unit_bytes / 2),
        bytes_(left_) {}
  int64_t size() const { return 2 * bytes_; }
  void take(int64_t slice, PanelStep& panel) {
    if (left_ == 0 && values_ != nullptr) at_ = std::exchange(values_, nullptr), left_ = bytes_;
    panel.ahead = at_;
    panel.ahead_bytes = std::min(slice, left_);
    if (left_ > 0) at_ += panel.ahead_bytes, left_ -= panel.ahead_bytes;
  }

 private:
  const std::byte* at_ = nullptr;
  int64_t left_ = 0;
  const std::byte* values_ = nullptr;  // until it is their turn
  int64_t bytes_ = 0;
};

Ahead ahead_of(const Tile& tile, const std::byte* unit, int64_t unit_bytes) {
  const bool all = tile.form == Tile::Form::full, low = all || (tile.quarters & 0b0101) != 0, high = all || (tile.quarters & 0b1010) != 0;
  return {unit, unit_bytes, low ? 0 : kTile / 2, high ? kTile : kTile / 2};
}

}  // namespace

std::vector<Piece> cut_into_pieces(const Step& step, int threads) {
  constexpr double kShare = 4;  // a piece is at most 1/kShare of what each thread still has to do when it is taken
  std::vector<double> costs;
  double left = 0;
  for (const Work& work : step.work) {
    costs.push_back(work.head_count <= 0 || work.tile_count <= 0 || work.rows <= 0 ? 0 : cost_of(step, work));
    left += costs.back();
  }
  std::vector<int64_t> order(costs.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return costs[static_cast<size_t>(a)] > costs[static_cast<size_t>(b)]; });

  std::vector<Piece> pieces;
  for (int64_t index : order) {
    const Work& work = step.work[static_cast<size_t>(index)];
    const double cost = costs[static_cast<size_t>(index)];
    if (work.head_count <= 0 || work.tile_count <= 0 || work.rows <= 0) continue;
    // Heads are parted first: for float32 that costs nothing.
    int parts = threads == 1 ? 1 : static_cast<int>(std::clamp(std::ceil(cost * kShare * threads / std::max(left, 1e-9)), 1.0, 1e6));
    const int groups = std::clamp(parts, (work.head_count + kHeadGroup - 1) / kHeadGroup, work.head_count);
    parts = (parts + groups - 1) / groups;
    const int bands = (work.rows + kMostPanel - 1) / kMostPanel;
    const int bands_each = (bands + std::min(parts, bands) - 1) / std::min(parts, bands);
    for (int g = 0; g < groups; ++g) {
      const int begin = static_cast<int>(int64_t{work.head_count} * g / groups),
                end = static_cast<int>(int64_t{work.head_count} * (g + 1) / groups);
      for (int row = 0; row < work.rows; row += bands_each * kMostPanel)
        pieces.push_back({index, begin, end - begin, row, std::min(row + bands_each * kMostPanel, work.rows)});
    }
    left -= cost;
  }
  return pieces;
}

void attend_piece(const Step& step, const Piece& piece, const PanelKernel& kernel, const Scratch& scratch) {
  const Work& work = step.work[static_cast<size_t>(piece.work)];
  const int32_t* heads = step.head_lists.data() + work.first_head + piece.first_head;
  const int head_dim = step.head_dim, panel_rows = kernel.rows;
  const int first_panel = piece.first_row / panel_rows, panels = (piece.end_row + panel_rows - 1) / panel_rows;
  const int64_t panel_floats = int64_t{panel_rows} * head_dim, query_words = kernel.pairs ? panel_floats / 2 : panel_floats;
  const float scale = static_cast<float>(static_cast<double>(step.scale) * 1.4426950408889634);

  const auto for_each_panel = [&](auto&& body) {
    for (int h = 0; h < piece.heads; ++h)
      for (int p = first_panel; p < panels; ++p) body(h, p, std::min(panel_rows, piece.end_row - p * panel_rows));
  };
  for_each_panel([&](int h, int p, int rows) {
    const int64_t first = int64_t{p} * panel_rows;
    float *m = scratch.m_of(h) + first, *l = scratch.l_of(h) + first, *q = scratch.q_of(h) + p * query_words;
    const int64_t query = ((work.q_row + first) * step.heads + heads[h]) * head_dim,
                  state = (work.state_row + first) * step.heads + heads[h];
    kernel.pack_queries(kernel, step.q + query * static_cast<int64_t>(size_of(step.type)), int64_t{step.heads} * head_dim, rows, head_dim,
                        q);
    fold_sign(scale, kernel.pairs, q, query_words);
    const int seen = work.begins ? 0 : rows;  // rows that have a state
    float* o = scratch.o_of(h) + p * panel_floats;
    if (seen == 0)
      std::fill_n(o, panel_floats, 0.0f);
    else
      kernel.pack_state(step.o + state * head_dim, int64_t{step.heads} * head_dim, rows, head_dim, o);
    for (int r = 0; r < panel_rows; ++r) {
      m[r] = r < seen ? step.m[state + int64_t{r} * step.heads] : -std::numeric_limits<float>::infinity();
      l[r] = r < seen ? step.l[state + int64_t{r} * step.heads] : 0;
    }
  });

  PanelStep panel;
  panel.head_dim = head_dim;
  panel.scale = scale == 0 ? 1 : std::abs(scale);
  panel.tile = scratch.tile;
  panel.scores = scratch.scores;
  const int64_t bytes = unit_bytes(step.type, head_dim);
  const auto unit_of = [&](int64_t resident) { return step.pool + step.slots[work.kv_head * step.resident + resident] * bytes; };
  TileMap& map = *scratch.map;
  const int64_t end_tile = work.first_tile + work.tile_count;
  for (int64_t t = work.first_tile; t < end_tile; ++t) {
    const Tile& tile = step.tiles[static_cast<size_t>(t)];
    const int64_t end = tile.key + (tile.form == Tile::Form::full ? tile.count : 1);
    int mapped_keys = -1;
    for (int64_t resident = tile.key; resident < end; ++resident) {
      const int keys = step.key_rows[resident];
      if (keys != mapped_keys) map_tile(tile, step.masks, piece.first_row, piece.end_row, keys, panel_rows, map);
      mapped_keys = keys;  // blocks of a run differ in nothing else
      if (map.live.count == 0) continue;
      kernel.pack_tile(unit_of(resident), head_dim, map.live, !map.full, scratch.k, scratch.v, *scratch.tile);
      Ahead ahead;
      if (resident + 1 < end)
        ahead = {unit_of(resident + 1), bytes, 0, kTile};
      else if (t + 1 < end_tile)
        ahead = ahead_of(step.tiles[static_cast<size_t>(t + 1)], unit_of(step.tiles[static_cast<size_t>(t + 1)].key), bytes);
      const auto live_panels = std::count_if(map.panel.begin() + first_panel, map.panel.begin() + panels,
                                             [](const PanelMap& mapped) { return mapped.live.count != 0; });
      const int64_t slice = ahead.size() / (piece.heads * live_panels) / 64 * 64 + 64;
      for_each_panel([&](int h, int p, int) {
        panel.map = &map.panel[static_cast<size_t>(p)];
        if (panel.map->live.count == 0) return;
        panel.q = scratch.q_of(h) + p * query_words;
        panel.o = scratch.o_of(h) + p * panel_floats;
        panel.m = scratch.m_of(h) + p * panel_rows, panel.l = scratch.l_of(h) + p * panel_rows;
        ahead.take(slice, panel);
        kernel.attend(panel);
      });
    }
  }

  for_each_panel([&](int h, int p, int rows) {
    const int64_t first = int64_t{p} * panel_rows, state = (work.state_row + first) * step.heads + heads[h];
    kernel.unpack_state(scratch.o_of(h) + p * panel_floats, int64_t{step.heads} * head_dim, rows, head_dim, step.o + state * head_dim);
    for (int r = 0; r < rows; ++r) {
      step.m[state + int64_t{r} * step.heads] = scratch.m_of(h)[first + r];
      step.l[state + int64_t{r} * step.heads] = scratch.l_of(h)[first + r];
    }
  });
}

}  // namespace longspan::kernels::cpu
