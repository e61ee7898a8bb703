#include <algorithm>
#include <bit>

#include "pattern/primitives.hpp"

namespace longspan::pattern {
namespace {

// One bit for each 16 keys that are all set; 128 keys -> 8 bits. `any`: that are not all clear.
struct SixteenthsOfRow {
  uint8_t all = 0, any = 0;
};

SixteenthsOfRow sixteenths(RowBits row) {
  SixteenthsOfRow found;
  for (int part = 0; part < 8; ++part) {
    const auto keys = static_cast<uint16_t>(row[static_cast<size_t>(part / 4)] >> (16 * (part % 4)));
    if (keys == 0xffff) found.all |= static_cast<uint8_t>(1 << part);
    if (keys != 0) found.any |= static_cast<uint8_t>(1 << part);
  }
  return found;
}

int first_bit(RowBits row) { return row[0] ? std::countr_zero(row[0]) : 64 + std::countr_zero(row[1]); }
int last_bit(RowBits row) { return row[1] ? 127 - std::countl_zero(row[1]) : 63 - std::countl_zero(row[0]); }

// The narrowest band that holds all set bits is `bits` if any band is.
bool is_band(const TileBits& bits, int rows, int keys, int32_t& lo, int32_t& hi) {
  lo = kTile, hi = -kTile;
  for (int r = 0; r < rows; ++r) {
    const RowBits row = bits.rows[static_cast<size_t>(r)];
    if (row == RowBits{0, 0}) continue;
    lo = std::min(lo, r - last_bit(row)), hi = std::max(hi, r - first_bit(row));
  }
  for (int r = 0; r < rows; ++r) {
    if (bits.rows[static_cast<size_t>(r)] != bits_in(std::max(0, r - hi), std::min(keys, r - lo + 1))) return false;
  }
  return true;
}

bool is_subtiles(const TileBits& bits, int rows, int keys, uint64_t& subtiles) {
  subtiles = 0;
  const RowBits valid = bits_below(keys);
  for (int r = 0; r < rows; ++r) {
    RowBits row = bits.rows[static_cast<size_t>(r)];
    const SixteenthsOfRow set = sixteenths(row);
    row |= RowBits{~valid[0], ~valid[1]};  // keys past the tile do not spoil its last, short square
    if (sixteenths(row).all != static_cast<uint8_t>(set.any | sixteenths({~valid[0], ~valid[1]}).all)) return false;
    if (r % 16 == 0) {
      subtiles |= static_cast<uint64_t>(set.any) << (8 * (r / 16));
    } else if (static_cast<uint8_t>(subtiles >> (8 * (r / 16))) != set.any) {
      return false;
    }
  }
  return true;
}

}  // namespace

Coverage describe(const TileBits& bits, int rows, int keys, TileMask& mask) {
  const RowBits full = bits_below(keys);
  bool any = false, all = true;
  uint8_t quarters = 0;
  TileBits trimmed;
  for (int r = 0; r < rows; ++r) {
    RowBits row = bits.rows[static_cast<size_t>(r)];
    row &= full;
    trimmed.rows[static_cast<size_t>(r)] = row;
    any |= row != RowBits{0, 0};
    all &= row == full;
    quarters |= static_cast<uint8_t>(((row[0] != 0) | (row[1] != 0) << 1) << (2 * (r / 64)));
  }
  if (!any) return Coverage::none;
  if (all) return Coverage::all;
  mask.bits = trimmed;
  mask.quarters = quarters;
  mask.lo = mask.hi = 0;
  mask.subtiles = 0;
  if (is_band(trimmed, rows, keys, mask.lo, mask.hi)) {
    mask.form = TileMask::Form::band;
    return Coverage::some;
  }
  mask.lo = mask.hi = 0;
  if (is_subtiles(trimmed, rows, keys, mask.subtiles)) {
    mask.form = TileMask::Form::subtiles;
    return Coverage::some;
  }
  mask.subtiles = 0;
  mask.form = TileMask::Form::bits;
  return Coverage::some;
}

}  // namespace longspan::pattern
