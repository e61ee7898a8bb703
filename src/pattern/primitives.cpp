#include "pattern/primitives.hpp"

#include <algorithm>

namespace longspan::pattern {
namespace {

bool single(Interval rows) { return rows.end - rows.begin == 1; }

// The intervals of `distances` that touch first…last, both inclusive.
std::pair<Intervals::const_iterator, Intervals::const_iterator> touching(const Intervals& distances, int64_t first, int64_t last) {
  const auto begin = std::partition_point(distances.begin(), distances.end(), [&](const Interval& d) { return d.end <= first; });
  const auto end = std::partition_point(begin, distances.end(), [&](const Interval& d) { return d.begin <= last; });
  return {begin, end};
}

// Bits 0, step, 2·step, … of a row.
RowBits comb_bits(int64_t step) {
  RowBits bits{0, 0};
  for (int64_t bit = 0; bit < kTile; bit += step) bits[static_cast<size_t>(bit / 64)] |= uint64_t{1} << (bit % 64);
  return bits;
}

// Keys first, first + step, … (each `width` keys) up to clip.end, cut to clip; first + width > clip.begin.
void append_comb(Intervals& set, int64_t first, int64_t step, int64_t width, Interval clip) {
  if (first >= clip.end) return;
  if (set.empty()) set.reserve(static_cast<size_t>((clip.end - first + step - 1) / step));
  for (int64_t begin = first; begin < clip.end; begin += step) append(set, overlap({begin, begin + width}, clip));
}

}  // namespace

void BlockDistance::keys(const Where&, Interval rows, Interval clip, KeySets& sets) const {
  const int64_t first_row = rows.begin / block, last_row = (rows.end - 1) / block;
  const Interval blocks{clip.begin / block, (clip.end - 1) / block + 1};
  const auto tokens = [&](int64_t begin, int64_t end) {
    const Interval seen = overlap({begin, end}, blocks);  // first, so that the product cannot overflow
    return seen.empty() ? seen : overlap({seen.begin * block, seen.end * block}, clip);
  };
  const auto [begin, end] = touching(distances, first_row - (blocks.end - 1), last_row - blocks.begin);
  for (auto d = end; d != begin;) {  // distances ascend, keys descend
    --d;
    // Row block I looks at the key blocks I − d.end + 1 … I − d.begin. Some row does for the widest reach, every row for the narrowest.
    append(sets.may, tokens(first_row - d->end + 1, last_row - d->begin + 1));
    if (!single(rows)) append(sets.must, tokens(last_row - d->end + 1, first_row - d->begin + 1));
  }
}

Coverage BlockDistance::coverage(const Where&, const Corner& tile) const {
  int64_t first, last;  // all distances between these occur in the tile
  if (block == 1) {
    first = tile.rows.begin - (tile.keys.end - 1), last = tile.rows.end - 1 - tile.keys.begin;
  } else {
    first = tile.rows.begin / block - (tile.keys.end - 1) / block, last = (tile.rows.end - 1) / block - tile.keys.begin / block;
  }
  const auto d = std::partition_point(distances.begin(), distances.end(), [&](const Interval& each) { return each.end <= first; });
  if (d == distances.end() || d->begin > last) return Coverage::none;
  return d->begin <= first && d->end > last ? Coverage::all : Coverage::some;
}

void BlockDistance::fill(const Where&, const Corner& tile, TileBits& bits) const {
  const int64_t first_key = tile.keys.begin / block, last_key = (tile.keys.end - 1) / block;
  const auto [begin, end] = touching(distances, tile.rows.begin / block - last_key, (tile.rows.end - 1) / block - first_key);
  for (int64_t i = tile.rows.begin; i < tile.rows.end;) {
    const int64_t row_block = i / block;
    RowBits row{0, 0};
    for (auto d = begin; d != end; ++d) {
      const Interval seen = overlap({row_block - d->end + 1, row_block - d->begin + 1}, {first_key, last_key + 1});
      if (!seen.empty()) row |= bits_in(seen.begin * block - tile.keys.begin, seen.end * block - tile.keys.begin);
    }
    for (const int64_t stop = std::min(tile.rows.end, (row_block + 1) * block); i < stop; ++i) {
      bits.rows[static_cast<size_t>(i - tile.rows.begin)] |= row;
    }
  }
}

void BlockDistance::sign(const Where&, const Corner& tile, Signature& signature) const {
  signature.add_signed(tile.rows.begin - tile.keys.begin);
  if (block > 1) signature.add_signed(tile.rows.begin % block);  // the key's remainder and the block distance follow from these two
}

void Stride::keys(const Where&, Interval rows, Interval clip, KeySets& sets) const {
  if (rows.length() >= stride) {
    append(sets.may, clip);
    return;  // two rows of different remainders look at no common key
  }
  // Rows [begin, end) look at [begin + k·stride, end + k·stride) for every k; the first of these to end after clip.begin.
  const int64_t k = floor_div(clip.begin - rows.end, stride) + 1;
  append_comb(sets.may, rows.begin + k * stride, stride, rows.length(), clip);
}

Coverage Stride::coverage(const Where&, const Corner& tile) const {
  const int64_t first = tile.rows.begin - (tile.keys.end - 1), last = tile.rows.end - 1 - tile.keys.begin;
  const int64_t rest = floor_mod(last, stride);  // last − rest is the greatest multiple up to last
  if (last - rest < first) return Coverage::none;
  return first == last ? Coverage::all : Coverage::some;
}

void Stride::fill(const Where&, const Corner& tile, TileBits& bits) const {
  const RowBits comb = comb_bits(stride);
  int64_t first = floor_mod(tile.rows.begin - tile.keys.begin, stride);  // the first key of the row, from the tile's corner
  for (size_t r = 0; r < static_cast<size_t>(tile.rows.length()); ++r) {
    bits.rows[r] |= shifted_up(comb, first);
    if (++first == stride) first = 0;
  }
}

void Stride::sign(const Where&, const Corner& tile, Signature& signature) const {
  signature.add_signed(floor_mod(tile.rows.begin - tile.keys.begin, stride));
}

void Rows::keys(const Where&, Interval rows, Interval clip, KeySets& sets) const {
  const Interval common = overlap(range, rows);
  if (common.empty()) return;
  append(sets.may, clip);
  if (!single(rows) && common == rows) append(sets.must, clip);
}

Coverage Rows::coverage(const Where&, const Corner& tile) const {
  const Interval common = overlap(range, tile.rows);
  return common.empty() ? Coverage::none : common == tile.rows ? Coverage::all : Coverage::some;
}

void Rows::fill(const Where&, const Corner& tile, TileBits& bits) const {
  const Interval common = overlap(range, tile.rows);
  for (int64_t i = common.begin; i < common.end; ++i) bits.rows[static_cast<size_t>(i - tile.rows.begin)] |= bits_below(kTile);
}

void Rows::sign(const Where&, const Corner& tile, Signature& signature) const {
  const Interval common = overlap(range, tile.rows);
  signature.add_signed(common.begin - tile.rows.begin), signature.add_signed(common.length());
}

void Columns::keys(const Where&, Interval rows, Interval clip, KeySets& sets) const {
  append(sets.may, overlap(range, clip));
  if (!single(rows)) append(sets.must, overlap(range, clip));
}

Coverage Columns::coverage(const Where&, const Corner& tile) const {
  const Interval common = overlap(range, tile.keys);
  return common.empty() ? Coverage::none : common == tile.keys ? Coverage::all : Coverage::some;
}

void Columns::fill(const Where&, const Corner& tile, TileBits& bits) const {
  const RowBits row = bits_in(range.begin - tile.keys.begin, range.end - tile.keys.begin);
  for (size_t r = 0; r < static_cast<size_t>(tile.rows.length()); ++r) bits.rows[r] |= row;
}

void Columns::sign(const Where&, const Corner& tile, Signature& signature) const {
  const Interval common = overlap(range, tile.keys);
  signature.add_signed(common.begin - tile.keys.begin), signature.add_signed(common.length());
}

void ColumnComb::keys(const Where&, Interval rows, Interval clip, KeySets& sets) const {
  const int64_t k = floor_div(clip.begin - teeth.end, period) + 1;
  append_comb(sets.may, k * period + teeth.begin, period, teeth.length(), clip);
  if (!single(rows)) sets.must = sets.may;
}

Coverage ColumnComb::coverage(const Where&, const Corner& tile) const {
  const int64_t begin = tile.keys.begin % period, end = begin + tile.keys.length();  // end may reach into the next periods
  if (teeth.contains(begin)) return end <= teeth.end ? Coverage::all : Coverage::some;
  const int64_t next_tooth = begin < teeth.begin ? teeth.begin : period + teeth.begin;
  return end <= next_tooth ? Coverage::none : Coverage::some;
}

void ColumnComb::fill(const Where&, const Corner& tile, TileBits& bits) const {
  RowBits row{0, 0};
  for (int64_t begin = teeth.begin - tile.keys.begin % period; begin < tile.keys.length(); begin += period) {
    row |= bits_in(begin, begin + teeth.length());
  }
  for (size_t r = 0; r < static_cast<size_t>(tile.rows.length()); ++r) bits.rows[r] |= row;
}

void ColumnComb::sign(const Where&, const Corner& tile, Signature& signature) const { signature.add_signed(tile.keys.begin % period); }

void DilatedSegment::keys(const Where&, Interval rows, Interval clip, KeySets& sets) const {
  const int64_t first = std::max(rows.begin / length, clip.begin / length);
  const int64_t last = std::min((rows.end - 1) / length, (clip.end - 1) / length);
  for (int64_t segment = first; segment <= last; ++segment) {
    const Interval here{segment * length, (segment + 1) * length};
    const Interval looking = overlap(rows, here);
    const int64_t local = looking.begin - here.begin;
    if (looking.begin + floor_mod(offset - local, dilation) >= looking.end) continue;  // no row of the segment is chosen
    const Interval seen = overlap(here, clip);
    append_comb(sets.may, seen.begin + floor_mod(offset - (seen.begin - here.begin), dilation), dilation, 1, seen);
  }
  // Two neighbouring rows are never both chosen in one segment, so several rows have no common key.
}

Coverage DilatedSegment::coverage(const Where&, const Corner& tile) const {
  const int64_t first_row = tile.rows.begin / length, last_row = (tile.rows.end - 1) / length;
  const int64_t first_key = tile.keys.begin / length, last_key = (tile.keys.end - 1) / length;
  if (last_row < first_key || last_key < first_row) return Coverage::none;
  if (first_row != last_row || first_key != last_key) return Coverage::some;  // perhaps none: the bits tell
  const auto has_chosen = [&](Interval range) { return range.begin + floor_mod(offset - range.begin % length, dilation) < range.end; };
  if (!has_chosen(tile.rows) || !has_chosen(tile.keys)) return Coverage::none;
  return single(tile.rows) && single(tile.keys) ? Coverage::all : Coverage::some;
}

void DilatedSegment::fill(const Where&, const Corner& tile, TileBits& bits) const {
  const RowBits comb = comb_bits(dilation);
  int64_t done = -1;  // the segment that `row` is for
  RowBits row{0, 0};
  for (int64_t i = tile.rows.begin; i < tile.rows.end; ++i) {
    if (!chosen(i)) continue;
    const int64_t segment = i / length;
    if (segment != done) {
      done = segment;
      const Interval seen = overlap({segment * length, (segment + 1) * length}, tile.keys);
      row = bits_in(seen.begin - tile.keys.begin, seen.end - tile.keys.begin);
      const int64_t first = seen.begin + floor_mod(offset - (seen.begin - segment * length), dilation) - tile.keys.begin;
      if (!seen.empty()) row &= shifted_up(comb, first);
    }
    bits.rows[static_cast<size_t>(i - tile.rows.begin)] |= row;
  }
}

void DilatedSegment::sign(const Where&, const Corner& tile, Signature& signature) const {
  signature.add_signed(tile.rows.begin - tile.keys.begin);
  signature.add_signed(tile.rows.begin % length);
}

}  // namespace longspan::pattern
