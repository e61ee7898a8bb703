// What the CPU kernels of all instruction sets have in common: a panel of query rows meets one tile.
//
// Rows are the lanes of vectors, in both products. Scores are computed transposed, [key][row], so that the queries (packed once per item)
// and then the weights are vectors, and elements of K and V are broadcast from where they lie: no key tile needs transposing, and maxima
// and sums of the softmax are taken lane by lane.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/tile_map.hpp"
#include "kernels/kernel.hpp"

namespace longspan::kernels::cpu {

// An element of V that must not be multiplied by the weight 0 of a row that may not look at it (0·∞ is NaN), or that the multiplier of the
// instruction set takes for 0. It is 0 in the packed tile and is added to the rows that look at it afterwards.
struct OddValue {
  int16_t key, d;
  float value;
};

// K and V of one unit in the form that PanelKernel::attend reads.
struct PackedTile {
  const std::byte* k = nullptr;  // the unit's own K, or in the scratch
  const std::byte* v = nullptr;
  std::vector<OddValue> odd;
};

// One panel of one head under one tile.
struct PanelStep {
  int head_dim = 0;
  float scale = 1;           // of the scores, with log2 e; > 0
  const float* q = nullptr;  // [head_dim][rows] float32, or 16-bit pairs [head_dim/2][rows][2]
  const PackedTile* tile = nullptr;
  const PanelMap* map = nullptr;
  float *m = nullptr, *l = nullptr;  // [rows]
  float* o = nullptr;                // [head_dim][rows]
  float* scores = nullptr;           // [128][rows], for scores and weights
  const std::byte* ahead = nullptr;  // `ahead_bytes` that will be read soon, to be brought near meanwhile
  int64_t ahead_bytes = 0;
};

// Brings PanelStep::ahead into the second-level cache, as many lines with each register block: in a burst they would hold up the loads of
// the products.
class Fetch {
 public:
  Fetch(const PanelStep& step, int block) : at_(step.ahead), end_(at_ + step.ahead_bytes) {
    int64_t blocks = (step.head_dim + block - 1) / block;
    for (int i = 0; i < step.map->live.count; ++i) blocks += (step.map->live.run[i].end - step.map->live.run[i].begin + block - 1) / block;
    lines_ = (step.ahead_bytes / kLine + blocks) / blocks;
  }
  void some() {
    for (int64_t line = 0; line < lines_ && at_ < end_; ++line, at_ += kLine) __builtin_prefetch(at_, 0, 2);
  }

 private:
  static constexpr int64_t kLine = 64;
  const std::byte *at_, *end_;
  int64_t lines_ = 0;
};

// The functions of one instruction set for one element type.
struct PanelKernel {
  const char* name = "";
  int rows = 0;        // of a panel: 8, 16 or 32
  bool pairs = false;  // queries are packed as pairs of 16-bit elements
  // Makes the keys of `live` (see PanelMap) ready. `partial`: some row may not look at some key of them. k and v: room for [128][head_dim]
  // float32 each.
  void (*pack_tile)(const std::byte* unit, int head_dim, const KeyRuns& live, bool partial, float* k, float* v, PackedTile& tile) = nullptr;
  void (*attend)(const PanelStep& step) = nullptr;
  // `rows` rows of `type` (`stride` elements apart) to [head_dim][panel] float32 (pairs: to [head_dim/2][panel][2], bits untouched);
  // lanes past the rows get 0.
  void (*pack_queries)(const PanelKernel& self, const std::byte* from, int64_t stride, int rows, int head_dim, float* to) = nullptr;
  void (*pack_state)(const float* from, int64_t stride, int rows, int head_dim, float* to) = nullptr;
  void (*unpack_state)(const float* from, int64_t stride, int rows, int head_dim, float* to) = nullptr;  // `stride` of the rows at `to`
  double (*multiply)(int64_t rounds) = nullptr;  // multiply-adds as fast as registers allow, and how many FLOP that was
  void (*exp2)(const float* in, float* out, int64_t count) = nullptr;  // its exponential on an array, for tests of its error
};

// The kernel for bfloat16 with the dot product of AVX-512 BF16; `base` gives what is common to all element types. Null where the CPU or the
// compiler does not have it. (avx512_bf16.cpp)
const PanelKernel* avx512_bf16_kernel(const PanelKernel& base);

}  // namespace longspan::kernels::cpu
