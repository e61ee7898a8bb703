// A picture of which tiles of a pattern are full, partial or empty: for the terminal and as SVG.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspan::report {

// Tiles of blocks × blocks, counted in cells × cells squares of the picture. Cell c covers the blocks first_block(c) … first_block(c+1)-1.
struct BlockMap {
  static constexpr int64_t kMostCells = 512;

  BlockMap() = default;
  explicit BlockMap(int64_t blocks);

  int64_t blocks = 0;
  int64_t cells = 0;                   // min(blocks, 512)
  std::vector<int64_t> full, partial;  // [row of cells][column of cells]: tiles of that kind
  std::vector<int64_t> borders;        // blocks at which a document starts, but the first; at most 512 kept by the caller

  int64_t first_block(int64_t cell) const { return cell * blocks / cells; }
  int64_t cell_of(int64_t block) const { return ((block + 1) * cells - 1) / blocks; }
  int64_t tiles_in(int64_t row, int64_t column) const {
    return (first_block(row + 1) - first_block(row)) * (first_block(column + 1) - first_block(column));
  }
  // Adds the tiles of query block `row` × key blocks [begin, end).
  void add_full(int64_t row, int64_t begin, int64_t end) { add(full, row, begin, end); }
  void add_partial(int64_t row, int64_t begin, int64_t end) { add(partial, row, begin, end); }

 private:
  void add(std::vector<int64_t>& counts, int64_t row, int64_t begin, int64_t end);
};

// At most 64 columns and 32 lines, framed, with a legend below. Queries go down, keys to the right.
std::string terminal_picture(const BlockMap& map, int indent = 0);

struct MapPanel {
  std::string title;  // "heads 0-7"
  BlockMap map;
};
// One SVG document: `title` (wrapped), one square per panel, axes in tokens, document borders, a legend. The same input gives the same
// bytes.
std::string svg_picture(const std::string& title, const std::string& subtitle, const std::vector<MapPanel>& panels);

}  // namespace longspan::report
