// Tile lists: which key blocks a query block looks at, as the kernels want them. Made on demand, a query block at a time, in time
// proportional to the list: runs of full tiles stay runs.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/kernel.hpp"
#include "pattern/pattern.hpp"
#include "plan/blocks.hpp"

namespace longspan::plan {

// Keeps each 128×128-bit mask once.
class MaskPool {
 public:
  int64_t keep(const kernels::MaskBits& mask);  // its number
  const std::vector<kernels::MaskBits>& masks() const { return masks_; }
  int64_t bytes() const { return static_cast<int64_t>(masks_.size() * sizeof(kernels::MaskBits)); }

 private:
  std::vector<kernels::MaskBits> masks_;
  std::unordered_multimap<uint64_t, int64_t> numbers_;  // by hash
};

// How much a list holds.
struct TileCount {
  int64_t full = 0, partial = 0;
  int64_t quarters = 0;  // non-empty 64×64 quarters, full tiles with their four
  int64_t tiles() const { return full + partial; }
  TileCount& operator+=(const TileCount& other) {
    full += other.full, partial += other.partial, quarters += other.quarters;
    return *this;
  }
};

class TileLists {
 public:
  TileLists(const pattern::BoundPattern& pattern, const Blocks& blocks) : pattern_(pattern), blocks_(blocks) {}

  // Appends the tiles of `query_block` under head group `group` with keys in `key_blocks`, by ascending key block; Tile::key is the number
  // of the key block. Masks of form `bits` go to the pool.
  TileCount append(int group, int64_t query_block, Interval key_blocks, std::vector<kernels::Tile>& tiles);

  // Key blocks that the row may look at (a superset by what composition costs; exact for single terms). Costs no tile classification.
  // `entries`: at most how many entries append() would make.
  Intervals candidates(int group, int64_t query_block, Interval key_blocks, int64_t* entries = nullptr) const;

  const MaskPool& masks() const { return masks_; }
  // Forgets masks and what was memoised; lists made before keep no meaning.
  void clear();

 private:
  struct Known {
    pattern::Coverage coverage;
    kernels::Tile tile;
  };
  Known classify(int group, int64_t document, Interval rows, Interval keys);
  Known shared(int group, const Blocks::Run& run);
  Known described(pattern::Coverage coverage, const pattern::TileMask& mask);

  const pattern::BoundPattern& pattern_;
  const Blocks& blocks_;
  MaskPool masks_;
  std::unordered_map<uint64_t, Known> known_;
};

}  // namespace longspan::plan
