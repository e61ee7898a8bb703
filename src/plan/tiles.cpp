#include "plan/tiles.hpp"

#include <algorithm>
#include <bit>

namespace longspan::plan {

using kernels::Tile;
using pattern::Coverage;

namespace {

uint64_t mixed(uint64_t x) {  // the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t hash_of(const kernels::MaskBits& mask) {
  uint64_t hash = 0;
  for (uint64_t word : mask.words) hash = mixed(hash ^ word) + 0x9e3779b97f4a7c15;
  return hash;
}

// Blocks of a long document whose keys are all in `keys` (positions): its short last block counts when the keys reach the document's end.
Intervals whole_blocks(const Intervals& keys, int64_t length, int64_t first_block) {
  Intervals blocks;
  for (const Interval& run : keys) {
    const int64_t begin = (run.begin + kBlock - 1) / kBlock;
    const int64_t end = run.end == length ? (run.end + kBlock - 1) / kBlock : run.end / kBlock;
    append(blocks, {first_block + begin, first_block + end});
  }
  return blocks;
}

Intervals touched_blocks(const Intervals& keys, int64_t first_block) {
  Intervals blocks;
  for (const Interval& run : keys) append(blocks, {first_block + run.begin / kBlock, first_block + (run.end - 1) / kBlock + 1});
  return blocks;
}

}  // namespace

int64_t MaskPool::keep(const kernels::MaskBits& mask) {
  const uint64_t hash = hash_of(mask);
  const auto [first, last] = numbers_.equal_range(hash);
  for (auto it = first; it != last; ++it)
    if (masks_[static_cast<size_t>(it->second)] == mask) return it->second;
  const auto number = static_cast<int64_t>(masks_.size());
  masks_.push_back(mask);
  numbers_.emplace(hash, number);
  return number;
}

void TileLists::clear() {
  masks_ = {};
  known_.clear();
}

TileLists::Known TileLists::described(Coverage coverage, const pattern::TileMask& mask) {
  Known known{coverage, Tile()};
  if (coverage != Coverage::some) return known;
  known.tile.quarters = mask.quarters;
  switch (mask.form) {
    case pattern::TileMask::Form::band:
      known.tile.form = Tile::Form::band;
      known.tile.band = {mask.lo, mask.hi};
      break;
    case pattern::TileMask::Form::subtiles:
      known.tile.form = Tile::Form::subtiles;
      known.tile.subtiles = mask.subtiles;
      break;
    case pattern::TileMask::Form::bits: {
      kernels::MaskBits bits;
      for (size_t row = 0; row < mask.bits.rows.size(); ++row)
        bits.words[2 * row] = mask.bits.rows[row][0], bits.words[2 * row + 1] = mask.bits.rows[row][1];
      known.tile.form = Tile::Form::bits;
      known.tile.mask = masks_.keep(bits);
      break;
    }
  }
  return known;
}

TileLists::Known TileLists::classify(int group, int64_t document, Interval rows, Interval keys) {
  // Tiles with the same signature and size have the same mask, so most tiles of a regular pattern cost one look-up.
  const uint64_t signature = pattern_.signature(group, document, rows, keys);
  const uint64_t slot = mixed(signature ^ (static_cast<uint64_t>(rows.length()) << 8 | static_cast<uint64_t>(keys.length())));
  if (signature != 0) {
    const auto found = known_.find(slot);
    if (found != known_.end()) return found->second;
  }
  pattern::TileMask mask;
  const Coverage coverage = pattern_.tile(group, document, rows, keys, mask);
  const Known known = described(coverage, mask);
  if (signature != 0) {
    // A pattern with millions of different tiles must not remember them all.
    if (known_.size() >= (size_t{1} << 18)) known_.clear();
    known_.emplace(slot, known);
  }
  return known;
}

TileLists::Known TileLists::shared(int group, const Blocks::Run& run) {
  pattern::TileBits bits;
  const Documents& documents = pattern_.documents();
  for (int64_t document = run.documents.begin; document < run.documents.end; ++document) {
    const int64_t length = documents.length(document);
    if (length == 0) continue;
    const int64_t corner = documents.begin(document) - run.tokens.begin;
    pattern::TileMask mask;
    const Coverage coverage = pattern_.tile(group, document, {0, length}, {0, length}, mask);
    if (coverage == Coverage::none) continue;
    for (int64_t row = 0; row < length; ++row) {
      for (int64_t key = 0; key < length; ++key) {
        const bool set =
            coverage == Coverage::all || ((mask.bits.rows[static_cast<size_t>(row)][static_cast<size_t>(key / 64)] >> (key % 64)) & 1);
        if (set)
          bits.rows[static_cast<size_t>(corner + row)][static_cast<size_t>((corner + key) / 64)] |= uint64_t{1} << ((corner + key) % 64);
      }
    }
  }
  pattern::TileMask mask;
  const int rows = static_cast<int>(run.tokens.length());
  const Coverage coverage = pattern::describe(bits, rows, rows, mask);
  return described(coverage, mask);
}

Intervals TileLists::candidates(int group, int64_t query_block, Interval key_blocks, int64_t* entries) const {
  const Blocks::Run& run = blocks_.run_of(query_block);
  const Interval reach = overlap(key_blocks, {run.first_block, run.first_block + run.blocks});
  if (entries != nullptr) *entries = reach.empty() ? 0 : 1;
  if (reach.empty()) return {};
  if (run.shared) return {reach};
  const int64_t length = run.tokens.length();
  const auto positions = [&](Interval blocks) {
    return Interval{(blocks.begin - run.first_block) * kBlock, std::min((blocks.end - run.first_block) * kBlock, length)};
  };
  const pattern::BoundPattern::Keys keys =
      pattern_.keys(group, run.documents.begin, positions({query_block, query_block + 1}), positions(reach));
  Intervals touched = touched_blocks(keys.may, run.first_block);
  if (entries != nullptr) {
    const Intervals full = whole_blocks(keys.must, length, run.first_block);
    *entries = size_of(touched) - size_of(full) + static_cast<int64_t>(full.size());
  }
  return touched;
}

TileCount TileLists::append(int group, int64_t query_block, Interval key_blocks, std::vector<Tile>& tiles) {
  TileCount count;
  const auto add = [&](int64_t key_block, const Known& known) {
    if (known.coverage == Coverage::none) return;
    if (known.coverage == Coverage::all) {
      ++count.full;
      count.quarters += 4;
      if (!tiles.empty() && tiles.back().form == Tile::Form::full && count.full > 1 && tiles.back().key + tiles.back().count == key_block) {
        ++tiles.back().count;
      } else {
        tiles.push_back(Tile::full_run(static_cast<int32_t>(key_block), 1));
      }
      return;
    }
    ++count.partial;
    count.quarters += std::popcount(known.tile.quarters);
    tiles.push_back(known.tile);
    tiles.back().key = static_cast<int32_t>(key_block);
  };

  const Blocks::Run& run = blocks_.run_of(query_block);
  const Interval reach = overlap(key_blocks, {run.first_block, run.first_block + run.blocks});
  if (reach.empty()) return count;
  if (run.shared) {
    add(query_block, shared(group, run));
    return count;
  }
  const int64_t document = run.documents.begin, length = run.tokens.length();
  const auto positions = [&](int64_t first, int64_t last) {
    return Interval{(first - run.first_block) * kBlock, std::min((last - run.first_block) * kBlock, length)};
  };
  const Interval rows = positions(query_block, query_block + 1);
  const pattern::BoundPattern::Keys keys = pattern_.keys(group, document, rows, positions(reach.begin, reach.end));
  const Intervals full = whole_blocks(keys.must, length, run.first_block);
  const Intervals mixed_blocks = subtract(touched_blocks(keys.may, run.first_block), full);
  size_t f = 0, m = 0;
  while (f < full.size() || m < mixed_blocks.size()) {
    if (m == mixed_blocks.size() || (f < full.size() && full[f].begin < mixed_blocks[m].begin)) {
      const Interval blocks = full[f++];
      count.full += blocks.length();
      count.quarters += 4 * blocks.length();
      if (!tiles.empty() && tiles.back().form == Tile::Form::full && count.full > blocks.length() &&
          tiles.back().key + tiles.back().count == blocks.begin) {
        tiles.back().count += blocks.length();
      } else {
        tiles.push_back(Tile::full_run(static_cast<int32_t>(blocks.begin), blocks.length()));
      }
    } else {
      const Interval blocks = mixed_blocks[m++];
      for (int64_t key = blocks.begin; key < blocks.end; ++key) add(key, classify(group, document, rows, positions(key, key + 1)));
    }
  }
  return count;
}

}  // namespace longspan::plan
