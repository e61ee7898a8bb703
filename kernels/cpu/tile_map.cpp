#include "kernels/cpu/tile_map.hpp"

#include <algorithm>

namespace longspan::kernels::cpu {
namespace {

using Row = std::array<uint64_t, 2>;

// The keys [0, count).
Row first_keys(int64_t count) {
  const auto word = [](int64_t bits) { return bits <= 0 ? 0 : bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; };
  return {word(count), word(count - 64)};
}

// The keys [begin, end); bounds may lie outside the tile.
Row keys_between(int64_t begin, int64_t end) {
  const Row all = first_keys(end), out = first_keys(begin);
  return {all[0] & ~out[0], all[1] & ~out[1]};
}

// Every bit of `map` repeated 16 times: bit c covers the keys [16·c, 16·c+16).
Row widen(uint8_t map) {
  Row row{};
  for (int c = 0; c < kTile / kSegment; ++c)
    if (map >> c & 1) row[c / 4] |= uint64_t{0xffff} << (kSegment * (c % 4));
  return row;
}

Row allowed_keys(const Tile& tile, std::span<const MaskBits> masks, int64_t row) {
  switch (tile.form) {
    case Tile::Form::full:
      return {~uint64_t{0}, ~uint64_t{0}};
    case Tile::Form::band:  // lo <= row − key <= hi, in 64 bits: a side without a bound may be the extreme int32
      return keys_between(row - tile.band.hi, row - tile.band.lo + 1);
    case Tile::Form::subtiles:
      return widen(static_cast<uint8_t>(tile.subtiles >> (8 * (row / 16))));
    case Tile::Form::bits: {
      const MaskBits& mask = masks[static_cast<size_t>(tile.mask)];
      return {mask.words[static_cast<size_t>(2 * row)], mask.words[static_cast<size_t>(2 * row + 1)]};
    }
  }
  return {};
}

}  // namespace

TileMap map_tile(const Tile& tile, std::span<const MaskBits> masks, int rows, int keys) {
  TileMap map;
  map.keys = keys;
  map.full = tile.form == Tile::Form::full;
  const Row present = first_keys(keys);
  for (int block = 0; block < kRowBlocks; ++block) {
    Row any{};
    for (int row = block * kRowBlock; row < (block + 1) * kRowBlock; ++row) {
      Row& words = map.words[static_cast<size_t>(row)];
      words = {};
      if (row >= rows) continue;
      const Row allowed = allowed_keys(tile, masks, row);
      words = {allowed[0] & present[0], allowed[1] & present[1]};
      any[0] |= words[0], any[1] |= words[1];
    }
    uint8_t live = 0;
    for (int segment = 0; segment < kTile / kSegment; ++segment)
      if (any[segment / 4] >> (kSegment * (segment % 4)) & 0xffff) live |= static_cast<uint8_t>(1 << segment);
    map.live[static_cast<size_t>(block)] = live;
    map.used |= live;
  }
  return map;
}

}  // namespace longspan::kernels::cpu
