// What one tile allows, spelt out in the form the CPU kernels work with. The same for all query heads of a Work item.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/kernel.hpp"

namespace longspan::kernels::cpu {

constexpr int kSegment = 16;  // keys that are skipped together; 8 segments a tile
constexpr int kLeastPanel = 8, kMostPanel = 32;

// Runs of keys [begin, end), ascending, apart. Begins are multiples of kSegment.
struct KeyRuns {
  int count = 0;
  struct {
    int16_t begin, end;
  } run[kTile / kSegment];
};

inline bool is_live(const KeyRuns& live, int key) {
  for (int i = 0; i < live.count; ++i)
    if (key < live.run[i].end) return key >= live.run[i].begin;
  return false;
}

// A panel is `panel_rows` neighbouring rows that go through the products together, one per vector lane.
struct PanelMap {
  KeyRuns live;       // segments in which some row of the panel may look at some key: nothing else is computed
  bool full = false;  // every row may look at every live key
  // Bit r of rows[key]: row r of the panel may look at `key`. Lanes past the item's rows count as allowed where some row is (nobody reads
  // them). Only of live keys, and only where not `full`.
  std::array<uint32_t, kTile> rows;
};

struct TileMap {
  int panels = 0;
  std::array<PanelMap, kTile / kLeastPanel> panel;
  KeyRuns live;       // all panels together: the keys to make ready
  bool full = false;  // every panel is
};

// `rows` and `keys`: how many the item and the key block have, 1…128. Panels [first_row/panel_rows, …) up to `rows`; those before stay
// empty. panel_rows: 8, 16 or 32; first_row a multiple of it.
void map_tile(const Tile& tile, std::span<const MaskBits> masks, int first_row, int rows, int keys, int panel_rows, TileMap& map);

}  // namespace longspan::kernels::cpu
