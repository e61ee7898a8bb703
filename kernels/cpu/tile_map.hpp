// What one tile allows, spelt out row by row in the form the CPU kernel works with. The same for all query heads of a Work item.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/kernel.hpp"

namespace longspan::kernels::cpu {

constexpr int kRowBlock = 8;  // rows that go through the products together
constexpr int kRowBlocks = kTile / kRowBlock;
constexpr int kSegment = 16;  // keys that are skipped together; 8 segments a tile

struct TileMap {
  // Allowed keys of row r: bit k%64 of words[r][k/64]. Keys past the block's end and rows past the item's are 0.
  std::array<std::array<uint64_t, 2>, kTile> words;
  // live[r/8]: bit s says that some row of the eight may look at some key of [16·s, 16·s+16). Nothing else is computed.
  std::array<uint8_t, kRowBlocks> live;
  uint8_t used = 0;   // all of `live` together: the keys to convert
  bool full = false;  // every row may look at every key below `keys`
  int keys = 0;       // keys in the block
};

// `rows` and `keys`: how many the item and the key block have, 1…128.
TileMap map_tile(const Tile& tile, std::span<const MaskBits> masks, int rows, int keys);

}  // namespace longspan::kernels::cpu
