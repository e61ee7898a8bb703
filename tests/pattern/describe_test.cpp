#include <gtest/gtest.h>

#include <random>

#include "brute_force.hpp"

namespace longspan::pattern {
namespace {

template <class Allows>
TileBits bits_where(int rows, int keys, Allows allows) {
  TileBits bits;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < keys; ++c)
      if (allows(r, c)) bits.rows[static_cast<size_t>(r)][static_cast<size_t>(c / 64)] |= uint64_t{1} << (c % 64);
  return bits;
}

TEST(Describe, NoneAndAllAreJudgedWithinTheTile) {
  TileMask mask;
  EXPECT_EQ(describe(TileBits{}, 128, 128, mask), Coverage::none);
  for (const auto& [rows, keys] : std::vector<std::pair<int, int>>{{128, 128}, {1, 1}, {7, 64}, {64, 65}, {127, 63}}) {
    EXPECT_EQ(describe(bits_where(rows, keys, [](int, int) { return true; }), rows, keys, mask), Coverage::all) << rows << " × " << keys;
  }
  // Bits past the tile are no pairs.
  EXPECT_EQ(describe(bits_where(128, 128, [](int r, int c) { return r >= 5 || c >= 9; }), 5, 9, mask), Coverage::none);
  EXPECT_EQ(describe(bits_where(128, 128, [](int r, int c) { return r == 0 || c >= 9; }), 5, 9, mask), Coverage::some);
  EXPECT_EQ(mask.bits, bits_where(5, 9, [](int r, int) { return r == 0; }));
}

TEST(Describe, CausalDiagonalIsABand) {
  TileMask mask;
  EXPECT_EQ(describe(bits_where(128, 128, [](int r, int c) { return c <= r; }), 128, 128, mask), Coverage::some);
  EXPECT_EQ(mask.form, TileMask::Form::band);
  EXPECT_EQ(mask.lo, 0);
  EXPECT_EQ(mask.hi, 127);
  EXPECT_EQ(mask.quarters, 0b1101);  // nothing right above the diagonal
}

TEST(Describe, RandomBandsAreFoundAsBands) {
  std::mt19937 random(5);
  for (int k = 0; k < 400; ++k) {
    const int rows = 1 + static_cast<int>(random() % 128), keys = 1 + static_cast<int>(random() % 128);
    const int lo = static_cast<int>(random() % 256) - 128, hi = lo + static_cast<int>(random() % 100);
    const TileBits bits = bits_where(rows, keys, [&](int r, int c) { return lo <= r - c && r - c <= hi; });
    TileMask mask;
    if (describe(bits, rows, keys, mask) != Coverage::some) continue;
    EXPECT_EQ(mask.form, TileMask::Form::band) << rows << " × " << keys << " " << lo << "…" << hi;
    EXPECT_EQ(brute::expanded(mask, rows, keys), bits);
  }
}

TEST(Describe, SquaresOfSixteenAreSubtilesAlsoAtShortEdges) {
  std::mt19937 random(6);
  int found = 0;
  for (int k = 0; k < 400; ++k) {
    const int rows = 1 + static_cast<int>(random() % 128), keys = 1 + static_cast<int>(random() % 128);
    const uint64_t squares = (uint64_t{random()} << 32 | random()) & (uint64_t{random()} << 32 | random());
    const TileBits bits = bits_where(rows, keys, [&](int r, int c) { return squares >> (8 * (r / 16) + c / 16) & 1; });
    TileMask mask;
    if (describe(bits, rows, keys, mask) != Coverage::some) continue;
    EXPECT_NE(mask.form, TileMask::Form::bits) << rows << " × " << keys;
    found += mask.form == TileMask::Form::subtiles;
    EXPECT_EQ(brute::expanded(mask, rows, keys), bits) << rows << " × " << keys;
    EXPECT_EQ(mask.bits, bits);
  }
  EXPECT_GT(found, 200);
}

TEST(Describe, AnythingElseIsBits) {
  const TileBits bits = bits_where(128, 128, [](int r, int c) { return (r * 7 + c * 3) % 5 == 0; });
  TileMask mask;
  EXPECT_EQ(describe(bits, 128, 128, mask), Coverage::some);
  EXPECT_EQ(mask.form, TileMask::Form::bits);
  EXPECT_EQ(mask.bits, bits);
  EXPECT_EQ(mask.quarters, 0xf);
}

TEST(Describe, QuartersSayWhereThePairsAre) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    const int row = 64 * (quarter / 2) + 63, key = 64 * (quarter % 2) + 1;
    TileMask mask;
    EXPECT_EQ(describe(bits_where(128, 128, [&](int r, int c) { return r == row && c == key; }), 128, 128, mask), Coverage::some);
    EXPECT_EQ(mask.quarters, 1 << quarter);
  }
}

}  // namespace
}  // namespace longspan::pattern
