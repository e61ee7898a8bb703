// The seven sets of pairs that every term is composed of. Each answers for itself: is a pair in the set, which keys do these rows look
// at, what is a tile, what are its bits. All positions count from the start of the document.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <variant>

#include "pattern/intervals.hpp"
#include "pattern/pattern.hpp"

namespace longspan::pattern {

// Where a question is asked: the document, and the heads that stand for the group in per-head lists.
struct Where {
  int64_t document = 0;
  int64_t length = 0;  // tokens of the document
  int head = 0, kv_head = 0;
};

struct Corner {
  Interval rows, keys;  // of a tile: 1…128 each, inside the document
};

using KeySets = BoundPattern::Keys;

// Collects what a tile's mask depends on.
struct Signature {
  uint64_t hash = 0;
  bool known = true;
  void add(uint64_t value) {
    hash ^= value * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 32;
    hash *= 0xD6E8FEB86659FD93ull;
    hash ^= hash >> 32;
  }
  void add_signed(int64_t value) { add(static_cast<uint64_t>(value)); }
};

// In all of them: keys() appends nothing outside `clip`; for one row it fills `may` alone, which is exact and is `must` as well. fill()
// ors its pairs into `bits`, which may set bits past the tile's keys (callers trim), and is called only when coverage() says `some`;
// sign() adds what the bits depend on, under the same condition.

// ⌊i/block⌋ − ⌊j/block⌋ is one of `distances`. Full, causal, window, segment, power and their block forms.
struct BlockDistance {
  int64_t block = 1;
  Intervals distances;
  bool allowed(const Where&, int64_t i, int64_t j) const { return contains(distances, i / block - j / block); }
  void keys(const Where&, Interval rows, Interval clip, KeySets& sets) const;
  Coverage coverage(const Where&, const Corner& tile) const;
  void fill(const Where&, const Corner& tile, TileBits& bits) const;
  void sign(const Where&, const Corner& tile, Signature& signature) const;
};

// (i − j) mod stride = 0; stride >= 2.
struct Stride {
  int64_t stride = 2;
  bool allowed(const Where&, int64_t i, int64_t j) const { return (i - j) % stride == 0; }
  void keys(const Where&, Interval rows, Interval clip, KeySets& sets) const;
  Coverage coverage(const Where&, const Corner& tile) const;
  void fill(const Where&, const Corner& tile, TileBits& bits) const;
  void sign(const Where&, const Corner& tile, Signature& signature) const;
};

// i in `range`.
struct Rows {
  Interval range;
  bool allowed(const Where&, int64_t i, int64_t) const { return range.contains(i); }
  void keys(const Where&, Interval rows, Interval clip, KeySets& sets) const;
  Coverage coverage(const Where&, const Corner& tile) const;
  void fill(const Where&, const Corner& tile, TileBits& bits) const;
  void sign(const Where&, const Corner& tile, Signature& signature) const;
};

// j in `range`.
struct Columns {
  Interval range;
  bool allowed(const Where&, int64_t, int64_t j) const { return range.contains(j); }
  void keys(const Where&, Interval rows, Interval clip, KeySets& sets) const;
  Coverage coverage(const Where&, const Corner& tile) const;
  void fill(const Where&, const Corner& tile, TileBits& bits) const;
  void sign(const Where&, const Corner& tile, Signature& signature) const;
};

// j mod period in `teeth`, which lies in [0, period) and is neither empty nor all of it.
struct ColumnComb {
  int64_t period = 2;
  Interval teeth;
  bool allowed(const Where&, int64_t, int64_t j) const { return teeth.contains(j % period); }
  void keys(const Where&, Interval rows, Interval clip, KeySets& sets) const;
  Coverage coverage(const Where&, const Corner& tile) const;
  void fill(const Where&, const Corner& tile, TileBits& bits) const;
  void sign(const Where&, const Corner& tile, Signature& signature) const;
};

// i and j in the same segment of `length`, and both ≡ offset mod dilation, counted in the segment; dilation >= 2.
struct DilatedSegment {
  int64_t length = 1, dilation = 2, offset = 0;
  bool chosen(int64_t i) const { return i % length % dilation == offset; }
  bool allowed(const Where&, int64_t i, int64_t j) const { return i / length == j / length && chosen(i) && chosen(j); }
  void keys(const Where&, Interval rows, Interval clip, KeySets& sets) const;
  Coverage coverage(const Where&, const Corner& tile) const;
  void fill(const Where&, const Corner& tile, TileBits& bits) const;
  void sign(const Where&, const Corner& tile, Signature& signature) const;
};

// ⌊j/block⌋ is in the list of ⌊i/block⌋: lists that are drawn (block_random) or stored (block_mask).
class BlockLists {
 public:
  enum class PerHead : uint8_t { none, kv_head, head };
  struct Random {
    int64_t count;
    uint64_t seed;
    bool past;
  };
  struct Stored {
    std::shared_ptr<const BlockMaskSource> source;
    std::shared_ptr<const std::vector<int64_t>> first_row;  // per document: its first row block in the source
  };
  BlockLists(int64_t block, PerHead per_head, std::variant<Random, Stored> origin);

  PerHead per_head() const { return per_head_; }
  bool allowed(const Where& where, int64_t i, int64_t j) const;
  void keys(const Where&, Interval rows, Interval clip, KeySets& sets) const;
  Coverage coverage(const Where&, const Corner& tile) const;
  void fill(const Where&, const Corner& tile, TileBits& bits) const;
  void sign(const Where&, const Corner& tile, Signature& signature) const;

 private:
  // Key blocks of a row block. The reference holds until this thread's next call; recent lists are kept per thread.
  const Intervals& list(const Where& where, int64_t row_block) const;
  Intervals made(const Where& where, int64_t row_block) const;

  int64_t block_;
  PerHead per_head_;
  std::variant<Random, Stored> origin_;
  uint64_t id_;  // of this object among all that ever were, for the per-thread cache
};

// `count` distinct blocks of 0…candidates−1 by the draws of DESIGN section 4, as a set.
Intervals drawn_blocks(int64_t candidates, int64_t count, uint64_t seed, int64_t row_block, int64_t document, int head);

// Rows of a mask. Word 0 holds keys 0…63, word 1 keys 64…127.
using RowBits = std::array<uint64_t, 2>;

inline RowBits bits_below(int64_t n) {
  if (n <= 0) return {0, 0};
  if (n < 64) return {(uint64_t{1} << n) - 1, 0};
  if (n < 128) return {~uint64_t{0}, (uint64_t{1} << (n - 64)) - 1};
  return {~uint64_t{0}, ~uint64_t{0}};
}
inline RowBits bits_in(int64_t begin, int64_t end) {  // any integers; what lies outside 0…127 is dropped
  if (end <= begin) return {0, 0};
  const RowBits low = bits_below(begin), high = bits_below(end);
  return {high[0] & ~low[0], high[1] & ~low[1]};
}
inline RowBits shifted_up(RowBits bits, int64_t n) {  // n >= 0
  if (n == 0) return bits;
  if (n < 64) return {bits[0] << n, (bits[1] << n) | (bits[0] >> (64 - n))};
  if (n < 128) return {0, bits[0] << (n - 64)};
  return {0, 0};
}
inline void operator|=(RowBits& a, RowBits b) { a[0] |= b[0], a[1] |= b[1]; }
inline void operator&=(RowBits& a, RowBits b) { a[0] &= b[0], a[1] &= b[1]; }

// ⌊a/b⌋ for b > 0 and any a.
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t floor_mod(int64_t a, int64_t b) {
  const int64_t rest = a % b;
  return rest < 0 ? rest + b : rest;
}

}  // namespace longspan::pattern
