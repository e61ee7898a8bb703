// What a device computes on one step of attention: plain structs shared by all devices. A kernel sees tile lists and tile masks,
// never a pattern, a rank or a file.
//
// Base 2 throughout: scores are q·k · scale · log2(e), so that exp2 gives the probabilities. The state of a row between steps is
// (m, l, o): the running maximum, the sum of exp2(s − m), and the sum of exp2(s − m)·v, all float32. A row that has seen nothing
// has m = −∞, l = 0, o = 0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "longspan/element_type.hpp"

namespace longspan::kernels {

constexpr int kTile = 128;

// 128×128 bits; bit c of row r: word r·2 + c/64, bit c%64.
struct MaskBits {
  std::array<uint64_t, size_t{2} * kTile> words{};
  bool operator==(const MaskBits&) const = default;
};

// One entry of a tile list: a run of full tiles, or one partial tile.
struct Tile {
  enum class Form : uint8_t { full, band, subtiles, bits };
  int32_t key = 0;  // resident index of the (first) key block; Step::slots turns it into a pool slot
  Form form = Form::full;
  uint8_t quarters = 0xf;  // partial: bit 2·(row/64) + key/64 says that this 64×64 quarter has an allowed pair
  uint16_t unused = 0;
  // full: `count` consecutive resident indices. band: lo <= row − key <= hi. subtiles: bit 8·(row/16) + key/16. bits: masks[mask].
  union {
    int64_t count;
    struct {
      int32_t lo, hi;
    } band;
    uint64_t subtiles;
    int64_t mask;
  };
  static Tile full_run(int32_t key, int64_t count) {
    Tile tile;
    tile.key = key, tile.count = count;
    return tile;
  }
  constexpr Tile() : count(1) {}
};
static_assert(sizeof(Tile) == 16);

// Whether some row may look at one key of a 64×64 quarter of the tile (of each of a run) and not at another. Only then a kernel must know
// of NaN and ∞ in V of these `keys` of its block. Example: blocks of 64 tokens that see each other entirely have no mask, wherever
// documents end at multiples of 64.
constexpr bool has_mask(const Tile& tile, int keys) {
  if (keys % (kTile / 2) != 0) return true;
  if (tile.form == Tile::Form::full) return false;
  if (tile.form != Tile::Form::subtiles) return true;
  const auto of_quarters = [&](int first) {  // two of them, side by side
    return (tile.quarters >> first & 1 ? 0x0f0f0f0fU : 0) | (tile.quarters >> (first + 1) & 1 ? 0xf0f0f0f0U : 0);
  };
  return tile.subtiles != (uint64_t{of_quarters(2)} << 32 | of_quarters(0));
}

// The rows of one query block under one list of tiles, for the query heads `heads` that all read KV head `kv_head`.
struct Work {
  int64_t q_row = 0;      // first row in Step::q
  int64_t state_row = 0;  // first row in Step::m, l, o (differs from q_row when one block has several states, one per key segment)
  int32_t rows = 0;       // 1…128
  int32_t kv_head = 0;
  int64_t first_tile = 0, tile_count = 0;  // in Step::tiles
  int32_t first_head = 0, head_count = 0;  // in Step::head_lists
  bool begins = false;                     // the rows have seen nothing: their state is not read
  bool ends = false;                       // their last tiles: a device kernel writes O and LSE, not the state
};

// A unit is one key block of one KV head: K [128][head_dim], then V [128][head_dim], in the input's type; rows past the block's end are
// zero.
constexpr int64_t unit_bytes(ElementType type, int head_dim) { return 2 * int64_t{kTile} * head_dim * static_cast<int64_t>(size_of(type)); }

// Keys and values that a kernel reads where a caller has them, in the device's memory, until the steps that read them have run. A unit is
// then the 128 rows from its first one on, whatever comes after its block: another block's rows, which nobody looks at, or the end.
struct KeysInRows {
  static constexpr int64_t kMostRows = int64_t{1} << 30;  // so that a row, and 128 rows more, are an int32
  const std::byte *k = nullptr, *v = nullptr;             // [rows][kv_heads][head_dim], aligned to 16 bytes
  int64_t rows = 0;
  // [⌈rows/128⌉][kv_heads]: V of these rows of a KV head holds NaN or ∞; of parts that Device::start_checking() was told of, others are not
  // asked for. Memory of Device::allocate().
  uint8_t* nonfinite = nullptr;
  // Among Step::slots, and back.
  static constexpr int32_t slot(int64_t first_row) { return static_cast<int32_t>(-2 - first_row); }
  static constexpr int32_t first_row(int32_t slot) { return -2 - slot; }
};

struct Step {
  ElementType type = ElementType::bfloat16;
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;  // of the scores, natural (1/√head_dim); the kernel multiplies by log2 e

  const std::byte* q = nullptr;  // [rows][heads][head_dim] of `type`

  // Pool: unit of KV head h and resident index r lies at pool + slots[h·resident + r]·unit_bytes. A slot of −1 is never referenced, and one
  // of −2 − row is the unit from that row of `in_rows` on, where Device::attends_rows() says so.
  const std::byte* pool = nullptr;
  const int32_t* slots = nullptr;     // [kv_heads][resident]
  const int32_t* key_rows = nullptr;  // [resident]: keys in the block, 1…128. Keys at and past it are never looked at, full tiles included.
  int64_t resident = 0;
  KeysInRows in_rows;

  std::span<const Work> work;
  std::span<const Tile> tiles;
  std::span<const int32_t> head_lists;  // query heads of the Work items
  std::span<const MaskBits> masks;
  bool lists_stay = false;  // these four, where and as they are, until Device::forget_lists(work)

  float* m = nullptr;  // [state rows][heads]
  float* l = nullptr;  // [state rows][heads]
  float* o = nullptr;  // [state rows][heads][head_dim]
};

// Rows [0, rows) that have taken all their tiles: O = o/l rounded to `output_type`, LSE = (m + log2 l)·ln 2; a row with l = 0 gets O = 0,
// LSE = −∞.
struct Finish {
  int heads = 0, head_dim = 0;
  int64_t rows = 0;
  const float *m = nullptr, *l = nullptr, *o = nullptr;  // as in Step
  ElementType output_type = ElementType::bfloat16;
  std::byte* out = nullptr;                 // [rows][heads][head_dim]
  float* lse = nullptr;                     // [rows][heads]
  std::span<const int32_t> head_list = {};  // if any: these heads only, and m, l and o have no others, as StateBlock is packed
  int64_t states() const { return rows * (head_list.empty() ? heads : static_cast<int64_t>(head_list.size())); }
  // Of the state-th of these, its place among [rows][heads].
  constexpr int64_t place_of(int64_t state) const {
    if (head_list.empty()) return state;
    const auto listed = static_cast<int64_t>(head_list.size());
    return state / listed * heads + head_list.data()[state % listed];
  }
};

// Merges the state `from` into `into`, row by row and head by head: count = rows·heads states.
struct Merge {
  int head_dim = 0;
  int64_t count = 0;
  const float *from_m = nullptr, *from_l = nullptr, *from_o = nullptr;
  float *m = nullptr, *l = nullptr, *o = nullptr;
};

// The states of `rows` rows from `first_row` on and of some of all `heads`, packed: m [rows][head_list], l the same,
// o [rows][head_list][head_dim].
struct StateBlock {
  int heads = 0, head_dim = 0;
  int64_t first_row = 0, rows = 0;
  std::span<const int32_t> head_list;
  float *m = nullptr, *l = nullptr, *o = nullptr;
  int64_t states() const { return rows * static_cast<int64_t>(head_list.size()); }
  int64_t packed_floats() const { return states() * (head_dim + 2); }
};

// States of the same rows and heads, each time of other keys, into one, packed: those of the first block, with the others' merged into them
// one after the other, as Merge does. `packed` overlaps none of them.
struct MergeBlocks {
  std::span<const StateBlock> blocks;
  float* packed = nullptr;
};

}  // namespace longspan::kernels
