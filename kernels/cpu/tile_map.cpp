#include "kernels/cpu/tile_map.hpp"

#include <algorithm>

namespace longspan::kernels::cpu {
namespace {

using Rows = std::array<uint64_t, 2>;  // bit r%64 of word r/64

// The rows [0, count).
Rows first_rows(int64_t count) {
  const auto word = [](int64_t bits) { return bits <= 0 ? 0 : bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; };
  return {word(count), word(count - 64)};
}

// The rows [begin, end); bounds may lie outside the tile.
Rows rows_between(int64_t begin, int64_t end) {
  const Rows all = first_rows(end), out = first_rows(begin);
  return {all[0] & ~out[0], all[1] & ~out[1]};
}

// Transposes 64×64 bits in place: bit c of word r and bit r of word c change places. Halves, then quarters, … are exchanged (Warren,
// Hacker's Delight, section 7-3).
void transpose(std::array<uint64_t, 64>& words) {
  uint64_t low = 0x00000000ffffffff;
  for (size_t half = 32; half != 0; half /= 2, low ^= low << half) {
    for (size_t r = 0; r < 64; r = (r + half + 1) & ~half) {
      const uint64_t moved = (words[r] >> half ^ words[r + half]) & low;
      words[r] ^= moved << half;
      words[r + half] ^= moved;
    }
  }
}

// The rows that may look at each key, rows past the item's and keys past the block's not yet left out.
void look_up(const Tile& tile, std::span<const MaskBits> masks, std::array<Rows, kTile>& rows_of) {
  switch (tile.form) {
    case Tile::Form::full:
      rows_of.fill(first_rows(kTile));
      break;
    case Tile::Form::band:  // lo <= row − key <= hi, in 64 bits: a side without a bound may be the extreme int32
      for (int64_t key = 0; key < kTile; ++key)
        rows_of[static_cast<size_t>(key)] = rows_between(key + tile.band.lo, key + int64_t{tile.band.hi} + 1);
      break;
    case Tile::Form::subtiles:  // map_tile takes them whole
      break;
    case Tile::Form::bits: {
      const MaskBits& mask = masks[static_cast<size_t>(tile.mask)];
      std::array<uint64_t, 64> quarter;
      for (size_t q = 0; q < 4; ++q) {
        const size_t row = q / 2 * 64, word = q % 2;
        for (size_t r = 0; r < 64; ++r) quarter[r] = mask.words[2 * (row + r) + word];
        transpose(quarter);
        for (size_t key = 0; key < 64; ++key) rows_of[64 * word + key][q / 2] = quarter[key];
      }
      break;
    }
  }
}

KeyRuns runs_of(uint32_t segments, int keys) {
  KeyRuns runs;
  for (int segment = 0; segment < kTile / kSegment; ++segment) {
    if (!(segments >> segment & 1)) continue;
    const auto begin = static_cast<int16_t>(segment * kSegment), end = static_cast<int16_t>(std::min(begin + kSegment, keys));
    if (runs.count > 0 && runs.run[runs.count - 1].end == begin)
      runs.run[runs.count - 1].end = end;
    else
      runs.run[runs.count++] = {begin, end};
  }
  return runs;
}

}  // namespace

void map_tile(const Tile& tile, std::span<const MaskBits> masks, int first_row, int rows, int keys, int panel_rows, TileMap& map) {
  map.panels = (rows + panel_rows - 1) / panel_rows;
  map.full = true;
  uint32_t used = 0;
  const uint32_t every_segment = (1u << ((keys + kSegment - 1) / kSegment)) - 1;
  const bool in_squares = tile.form == Tile::Form::subtiles;
  std::array<Rows, kTile> rows_of;
  if (tile.form != Tile::Form::full && !in_squares) look_up(tile, masks, rows_of);
  for (int p = 0; p < map.panels; ++p) {
    PanelMap& panel = map.panel[static_cast<size_t>(p)];
    const int begin = p * panel_rows;
    panel.full = true;
    uint32_t segments = begin < first_row ? 0 : every_segment;
    if (segments != 0 && tile.form != Tile::Form::full) {
      const uint32_t lanes = static_cast<uint32_t>(rows_between(0, panel_rows)[0]);
      const uint32_t present = static_cast<uint32_t>(rows_between(0, std::min(panel_rows, rows - begin))[0]);
      const auto with_absent = [&](uint32_t allowed) { return allowed == 0 ? 0 : allowed | (lanes & ~present); };
      uint32_t all = lanes;
      segments = 0;
      if (in_squares) {
        for (int segment = 0; segment * kSegment < keys; ++segment) {
          const uint64_t squares = tile.subtiles >> (begin / 16 * 8 + segment);  // of 16 rows; the next 16 rows' is 8 bits up
          const uint32_t allowed = with_absent(((squares & 1 ? 0xffffu : 0) | (squares >> 8 & 1 ? 0xffff0000u : 0)) & present);
          if (allowed == 0) continue;
          segments |= 1u << segment, all &= allowed;
          std::fill_n(panel.rows.begin() + segment * kSegment, kSegment, allowed);
        }
        panel.live = runs_of(segments, keys);
      } else {
        for (int key = 0; key < keys; ++key) {
          const uint64_t rows_word = rows_of[static_cast<size_t>(key)][static_cast<size_t>(begin / 64)];
          const uint32_t allowed = with_absent(static_cast<uint32_t>(rows_word >> (begin % 64)) & present);
          if (allowed != 0) segments |= 1u << (key / kSegment);
          panel.rows[static_cast<size_t>(key)] = allowed;
        }
        panel.live = runs_of(segments, keys);
        for (int i = 0; i < panel.live.count; ++i)
          for (int key = panel.live.run[i].begin; key < panel.live.run[i].end; ++key) all &= panel.rows[static_cast<size_t>(key)];
      }
      panel.full = all == lanes;
    } else {
      panel.live = runs_of(segments, keys);
    }
    used |= segments;
    map.full &= panel.full;
  }
  map.live = runs_of(used, keys);
}

}  // namespace longspan::kernels::cpu
