// A random step of attention with everything it points to, and what the reference says about it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/attention.hpp"
#include "kernels/kernel.hpp"

namespace longspan::kernels {

// Whether the tile lets row look at key, straight from its definition.
bool is_allowed(const Tile& tile, std::span<const MaskBits> masks, int row, int key);

struct ProblemOptions {
  ElementType type = ElementType::bfloat16;
  int head_dim = 64, kv_heads = 2, group = 1;  // group = query heads per KV head
  std::vector<int> query_rows{128};            // rows of each query block
  std::vector<int> key_rows{128, 128};         // keys of each key block
  std::vector<Tile::Form> forms{Tile::Form::full, Tile::Form::band, Tile::Form::subtiles, Tile::Form::bits};
  float q_size = 1, k_size = 1;  // standard deviations
  float scale = 0.125f;
  uint32_t seed = 0;
};

// What a step leaves.
struct States {
  std::vector<float> m, l, o;
  bool operator==(const States& other) const;  // to the bit
};

struct Problem {
  explicit Problem(const ProblemOptions& options);

  ProblemOptions options;
  int heads = 0;
  int64_t rows = 0;                // of Q and of the states; blocks lie in Q in order, in the states backwards
  std::vector<std::byte> q, pool;  // unreferenced slots and rows past a block's end hold NaN
  std::vector<int32_t> slots, key_rows, head_lists;
  std::vector<Work> work;
  std::vector<Tile> tiles;
  std::vector<MaskBits> masks;

  int64_t resident() const { return static_cast<int64_t>(key_rows.size()); }
  Step step(States& states) const;
  States empty_states() const;
  // All work in one step on `threads` threads.
  States run(int threads = 1) const;
  // Where element d of key `key` lies in `pool`, counted in elements.
  size_t key_element(int kv_head, int64_t block, int key, int d) const;
  size_t value_element(int kv_head, int64_t block, int key, int d) const { return key_element(kv_head, block, kTile + key, d); }
  void set(std::vector<std::byte>& array, size_t element, float value) const { store_element(array.data(), options.type, element, value); }

  // Calls see(block, key) for every key that `row` of `item` looks at, in list order.
  template <class See>
  void for_each_key(const Work& item, int row, See see) const {
    for (int64_t t = item.first_tile; t < item.first_tile + item.tile_count; ++t) {
      const Tile& tile = tiles[static_cast<size_t>(t)];
      for (int64_t block = tile.key; block < tile.key + (tile.form == Tile::Form::full ? tile.count : 1); ++block)
        for (int key = 0; key < key_rows[static_cast<size_t>(block)]; ++key)
          if (is_allowed(tile, masks, row, key)) see(block, key);
    }
  }
};

struct Output {
  ElementType type;
  std::vector<std::byte> o;
  std::vector<float> lse;
  float at(size_t i) const { return load_element(o.data(), type, i); }
};
Output finished(const Problem& problem, const States& states, ElementType type, int threads = 1);

// Checks O and LSE of all rows and heads against the reference by DESIGN section 6.
void expect_right(const Problem& problem, const States& states, ElementType output_type);

}  // namespace longspan::kernels
