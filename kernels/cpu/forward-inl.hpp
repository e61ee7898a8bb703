// One Work item on one thread: the forward pass over its tiles. Compiled once per instruction set.
//
// Per tile, K is converted to float32 and transposed, V converted, both once for all query heads of the item; then per head
//   scores = Q·Kᵀ → online softmax, scores become weights → O = O·alpha + weights·V       (FlashAttention's recurrence, in base 2).
// The two products keep a block of rows × vectors in registers and go through the sum's dimension one element at a time: the query (or
// weight) is broadcast, keys (or values) are vectors. Each element of O is therefore summed over keys in ascending order.
#if defined(LONGSPAN_KERNELS_CPU_FORWARD_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSPAN_KERNELS_CPU_FORWARD_INL_HPP
#undef LONGSPAN_KERNELS_CPU_FORWARD_INL_HPP
#else
#define LONGSPAN_KERNELS_CPU_FORWARD_INL_HPP
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/elements-inl.hpp"
#include "kernels/cpu/exp2-inl.hpp"
#include "kernels/cpu/scratch.hpp"
#include "kernels/cpu/tile_map.hpp"
#include "kernels/kernel.hpp"

// Rows of a register block: with two vectors per row, 16 accumulators where there are 32 registers and 8 where there are 16.
#undef LONGSPAN_REGISTER_ROWS
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
#define LONGSPAN_REGISTER_ROWS 4
#else
#define LONGSPAN_REGISTER_ROWS 8
#endif

HWY_BEFORE_NAMESPACE();
namespace longspan::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Lane = HWY_CAPPED(float, 16);
using Vector = hn::Vec<Lane>;
using Octet = HWY_CAPPED(float, 8);  // for arrays whose rows are a multiple of 8 long: no tails
using Quartet = HWY_CAPPED(float, 4);

constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Lane()));
constexpr int64_t kPanel = 2 * kLanes;  // columns of K and V that lie side by side: what a register block takes
static_assert(kSegment % kLanes == 0);

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

#if HWY_TARGET != HWY_SCALAR
// Four rows of four floats become four columns: to[d·panel + r] = from[r][d]. `from` null stands for zeros.
template <class Element>
HWY_INLINE void transpose_quad(const typename Element::Stored* const from[4], int64_t d, float* HWY_RESTRICT to, int64_t panel) {
  const Quartet q;
  const auto load = [&](int r) HWY_ATTR { return from[r] == nullptr ? hn::Zero(q) : load_floats(Element(), q, from[r] + d); };
  const auto a = load(0), b = load(1), c = load(2), e = load(3);
  const auto ac_low = hn::InterleaveLower(q, a, c), ac_high = hn::InterleaveUpper(q, a, c);
  const auto be_low = hn::InterleaveLower(q, b, e), be_high = hn::InterleaveUpper(q, b, e);
  hn::StoreU(hn::InterleaveLower(q, ac_low, be_low), q, to);
  hn::StoreU(hn::InterleaveUpper(q, ac_low, be_low), q, to + panel);
  hn::StoreU(hn::InterleaveLower(q, ac_high, be_high), q, to + 2 * panel);
  hn::StoreU(hn::InterleaveUpper(q, ac_high, be_high), q, to + 3 * panel);
}
#endif

// Rows [begin, end) of a matrix [rows][head_dim] (rows `stride` elements apart) into panels [row/panel][head_dim][row%panel] of float32.
// begin, end and panel are multiples of 4; rows at and past `rows` become zeros.
template <class Element>
HWY_NOINLINE void pack_transposed(const typename Element::Stored* from, int64_t stride, int64_t begin, int64_t end, int64_t rows,
                                  int64_t head_dim, int64_t panel, float* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  const hn::ScalableTag<float> one;
  for (int64_t row = begin; row < end; ++row) {
    float* column = to + row / panel * panel * head_dim + row % panel;
    for (int64_t d = 0; d < head_dim; ++d)
      column[d * panel] = row < rows ? hn::GetLane(load_floats(Element(), one, from + row * stride + d)) : 0.0f;
  }
#else
  for (int64_t row = begin; row < end; row += 4) {
    const typename Element::Stored* quad[4];
    for (int64_t r = 0; r < 4; ++r) quad[r] = row + r < rows ? from + (row + r) * stride : nullptr;
    float* column = to + row / panel * panel * head_dim + row % panel;
    for (int64_t d = 0; d < head_dim; d += 4) transpose_quad<Element>(quad, d, column + d * panel, panel);
  }
#endif
}

// Keys [begin, end) of V [128][head_dim] into panels of float32 [head_dim/kPanel][128][kPanel]; a last panel is one vector wide where that
// does. Lanes past head_dim are zero. False if a value is not finite.
template <class Element>
HWY_NOINLINE bool pack_values(const typename Element::Stored* from, int64_t begin, int64_t end, int64_t head_dim, float* HWY_RESTRICT to) {
  const Octet d8;
  constexpr int64_t kStep = static_cast<int64_t>(hn::MaxLanes(Octet()));
  const int64_t padded = padded_dim(head_dim);
  auto poison = hn::Zero(d8);  // NaN once x·0 has been NaN for some x
  for (int64_t d = 0; d < padded; d += kStep) {
    const int64_t width = std::min(kPanel, padded - d / kPanel * kPanel) > kLanes ? kPanel : kLanes;
    float* column = to + d / kPanel * kPanel * kTile + d % kPanel;
    for (int64_t key = begin; key < end; ++key) {
      const auto v = d < head_dim ? load_floats(Element(), d8, from + key * head_dim + d) : hn::Zero(d8);
      poison = hn::MulAdd(v, hn::Zero(d8), poison);
      hn::StoreU(v, d8, column + key * width);
    }
  }
  return hn::AllTrue(d8, hn::Eq(poison, poison));
}

// scores[r][0 … kVecs·kLanes) = scale · q_r·k, for kRows rows. q: [head_dim][8], k: [head_dim][kPanel].
template <int kRows, int kVecs>
HWY_NOINLINE void score_block(const float* HWY_RESTRICT q, const float* HWY_RESTRICT k, int64_t head_dim, float scale,
                              float* HWY_RESTRICT scores) {
  const Lane lane;
  Vector sum[kRows][kVecs];
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kVecs; ++c) sum[r][c] = hn::Zero(lane);
  for (int64_t d = 0; d < head_dim; ++d) {
    Vector key[kVecs];
    for (int64_t c = 0; c < kVecs; ++c) key[c] = hn::Load(lane, k + c * kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      const Vector query = hn::Set(lane, q[r]);
      for (int64_t c = 0; c < kVecs; ++c) sum[r][c] = hn::MulAdd(query, key[c], sum[r][c]);
    }
    q += kRowBlock;
    k += kPanel;
  }
  const Vector factor = hn::Set(lane, scale);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kVecs; ++c) hn::Store(hn::Mul(sum[r][c], factor), lane, scores + r * kTile + c * kLanes);
}

// Scores [128][128] of one head: every live segment of every row block with rows (and at most its neighbour).
inline void score_tile(const TileMap& map, int64_t row_blocks, const float* q, const float* k, int64_t head_dim, float scale,
                       float* scores) {
  constexpr int64_t kPerPanel = std::max<int64_t>(kPanel / kSegment, 1);  // segments in a panel: 2 with 16 lanes
  constexpr int64_t kPanelsPerSegment = std::max<int64_t>(kSegment / kPanel, 1);
  // Panels outside: a panel of K stays in the nearest cache while all rows pass by.
  for (int64_t panel = 0; panel < kTile / kPanel; ++panel) {
    const float* columns = k + panel * kPanel * head_dim;
    const int64_t segment = panel * kPerPanel / kPanelsPerSegment;
    for (int64_t block = 0; block < row_blocks; ++block) {
      const int live = map.live[static_cast<size_t>(block)] >> segment & ((1 << kPerPanel) - 1);
      if (live == 0) continue;
      for (int64_t r = 0; r < kRowBlock; r += LONGSPAN_REGISTER_ROWS) {
        const float* rows = q + block * kRowBlock * head_dim + r;
        float* to = scores + (block * kRowBlock + r) * kTile + panel * kPanel;
        if (kPerPanel == 1 || live == 3)
          score_block<LONGSPAN_REGISTER_ROWS, 2>(rows, columns, head_dim, scale, to);
        else if (live == 1)
          score_block<LONGSPAN_REGISTER_ROWS, 1>(rows, columns, head_dim, scale, to);
        else
          score_block<LONGSPAN_REGISTER_ROWS, 1>(rows, columns + kLanes, head_dim, scale, to + kLanes);
      }
    }
  }
}

HWY_INLINE hn::Mask<Lane> allowed_mask(const std::array<uint64_t, 2>& words, int64_t key) {
  const uint64_t bits = words[static_cast<size_t>(key / 64)] >> (key % 64);
  uint8_t bytes[8];
  for (int64_t i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(bits >> (8 * i));
  return hn::LoadMaskBits(Lane(), bytes);
}

// The maximum to subtract: a row that has seen only −∞ (or nothing) must not make −∞ − −∞.
HWY_INLINE float finite_shift(float maximum) { return maximum == kMinusInfinity ? 0.0f : maximum; }

// Scores become weights 2^(s − m) for the new maximum m; forbidden keys get 0 exactly. m and l take the tile in, and alpha[r] is what the
// row's o is to be multiplied by. A row that sees nothing here keeps its state to the bit (alpha 1, sum 0).
inline void softmax_tile(const TileMap& map, int64_t rows, float* HWY_RESTRICT scores, float* HWY_RESTRICT m, float* HWY_RESTRICT l,
                         float* HWY_RESTRICT alpha) {
  const Lane lane;
  const Vector none = hn::Set(lane, kMinusInfinity);
  HWY_ALIGN_MAX float sums[kTile];
  for (int64_t r = 0; r < kTile; ++r) alpha[r] = sums[r] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const std::array<uint64_t, 2>& words = map.words[static_cast<size_t>(r)];
    const int live = map.live[static_cast<size_t>(r / kRowBlock)];
    float* s = scores + r * kTile;
    if ((words[0] & words[1]) == ~uint64_t{0}) {
      Vector top0 = none, top1 = none;
      for (int64_t key = 0; key < kTile; key += kPanel) {
        top0 = hn::Max(top0, hn::Load(lane, s + key));
        top1 = hn::Max(top1, hn::Load(lane, s + key + kLanes));
      }
      const float maximum = std::max(m[r], hn::GetLane(hn::MaxOfLanes(lane, hn::Max(top0, top1))));
      const Vector shift = hn::Set(lane, finite_shift(maximum));
      Vector sum0 = hn::Zero(lane), sum1 = hn::Zero(lane);
      for (int64_t key = 0; key < kTile; key += kPanel) {
        const Vector p0 = exp2_vector(lane, hn::Sub(hn::Load(lane, s + key), shift));
        const Vector p1 = exp2_vector(lane, hn::Sub(hn::Load(lane, s + key + kLanes), shift));
        hn::Store(p0, lane, s + key);
        hn::Store(p1, lane, s + key + kLanes);
        sum0 = hn::Add(sum0, p0);
        sum1 = hn::Add(sum1, p1);
      }
      sums[r] = hn::GetLane(hn::SumOfLanes(lane, hn::Add(sum0, sum1)));
      alpha[r] = m[r] - finite_shift(maximum);
      m[r] = maximum;
    } else if ((words[0] | words[1]) == 0) {
      for (int64_t key = 0; key < kTile; key += kLanes)
        if (live >> (key / kSegment) & 1) hn::Store(hn::Zero(lane), lane, s + key);
    } else {
      Vector top = none;
      for (int64_t key = 0; key < kTile; key += kLanes) {
        if (!(live >> (key / kSegment) & 1)) continue;
        // Selected, not added: a forbidden score may be NaN.
        const Vector x = hn::IfThenElse(allowed_mask(words, key), hn::Load(lane, s + key), none);
        hn::Store(x, lane, s + key);
        top = hn::Max(top, x);
      }
      const float maximum = std::max(m[r], hn::GetLane(hn::MaxOfLanes(lane, top)));
      const Vector shift = hn::Set(lane, finite_shift(maximum));
      Vector sum = hn::Zero(lane);
      for (int64_t key = 0; key < kTile; key += kLanes) {
        if (!(live >> (key / kSegment) & 1)) continue;
        Vector p = exp2_vector(lane, hn::Sub(hn::Load(lane, s + key), shift));
        hn::Store(p, lane, s + key);
        sum = hn::Add(sum, p);
      }
      sums[r] = hn::GetLane(hn::SumOfLanes(lane, sum));
      alpha[r] = m[r] - finite_shift(maximum);
      m[r] = maximum;
    }
  }
  for (int64_t r = 0; r < kTile; r += kLanes) {
    const Vector a = exp2_vector(lane, hn::Load(lane, alpha + r));
    hn::Store(a, lane, alpha + r);
    hn::Store(hn::MulAdd(hn::Load(lane, l + r), a, hn::Load(lane, sums + r)), lane, l + r);
  }
}

// Runs of keys [begin, end) of a row block.
struct Runs {
  int count = 0;
  struct {
    int64_t begin, end;
  } run[kTile / kSegment];
};

inline Runs live_runs(uint8_t live, int64_t keys) {
  Runs runs;
  for (int64_t segment = 0; segment < kTile / kSegment; ++segment) {
    if (!(live >> segment & 1)) continue;
    const int64_t begin = segment * kSegment, end = std::min<int64_t>(begin + kSegment, keys);
    if (runs.count > 0 && runs.run[runs.count - 1].end == begin)
      runs.run[runs.count - 1].end = end;
    else
      runs.run[runs.count++] = {begin, end};
  }
  return runs;
}

// o[r] = o[r]·alpha[r] + Σ weights[r][key]·v[key], for kRows rows and kVecs vectors of the head. v: [128][kVecs·kLanes].
template <int kRows, int kVecs>
HWY_NOINLINE void value_block(const Runs& runs, const float* HWY_RESTRICT weights, const float* HWY_RESTRICT v,
                              const float* HWY_RESTRICT alpha, float* HWY_RESTRICT o, int64_t padded) {
  const Lane lane;
  Vector sum[kRows][kVecs];
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kVecs; ++c) sum[r][c] = hn::Mul(hn::Load(lane, o + r * padded + c * kLanes), hn::Set(lane, alpha[r]));
  for (int64_t i = 0; i < runs.count; ++i) {
    for (int64_t key = runs.run[i].begin; key < runs.run[i].end; ++key) {
      Vector value[kVecs];
      for (int64_t c = 0; c < kVecs; ++c) value[c] = hn::Load(lane, v + (key * kVecs + c) * kLanes);
      for (int64_t r = 0; r < kRows; ++r) {
        const Vector weight = hn::Set(lane, weights[r * kTile + key]);
        for (int64_t c = 0; c < kVecs; ++c) sum[r][c] = hn::MulAdd(weight, value[c], sum[r][c]);
      }
    }
  }
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kVecs; ++c) hn::Store(sum[r][c], lane, o + r * padded + c * kLanes);
}

inline void accumulate_tile(const TileMap& map, int64_t row_blocks, const float* weights, const float* v, const float* alpha, float* o,
                            int64_t padded) {
  Runs runs[kRowBlocks];
  for (int64_t block = 0; block < row_blocks; ++block) runs[block] = live_runs(map.live[static_cast<size_t>(block)], map.keys);
  for (int64_t d = 0; d < padded; d += kPanel) {
    for (int64_t block = 0; block < row_blocks; ++block) {
      if (runs[block].count == 0) continue;  // all its rows have alpha 1
      for (int64_t r = block * kRowBlock; r < (block + 1) * kRowBlock; r += LONGSPAN_REGISTER_ROWS) {
        if (padded - d >= kPanel)
          value_block<LONGSPAN_REGISTER_ROWS, 2>(runs[block], weights + r * kTile, v + d * kTile, alpha + r, o + r * padded + d, padded);
        else
          value_block<LONGSPAN_REGISTER_ROWS, 1>(runs[block], weights + r * kTile, v + d * kTile, alpha + r, o + r * padded + d, padded);
      }
    }
  }
}

// The same for a partial tile with values that are not finite: 0·NaN is NaN, so the keys a row may not look at are left out one by one.
// The sums run in the same order, so that the rows that look at finite values only get the same result as ever.
inline void accumulate_tile_exactly(const TileMap& map, int64_t rows, const float* weights, const float* v, const float* alpha, float* o,
                                    int64_t padded) {
  const Lane lane;
  for (int64_t r = 0; r < rows; ++r) {
    const Vector factor = hn::Set(lane, alpha[r]);
    const std::array<uint64_t, 2>& words = map.words[static_cast<size_t>(r)];
    if ((words[0] | words[1]) == 0) continue;
    for (int64_t d = 0; d < padded; d += kLanes) {
      const int64_t panel = d / kPanel * kPanel;
      const int64_t width = padded - panel >= kPanel ? kPanel : kLanes;
      const float* column = v + panel * kTile + d % kPanel;
      Vector sum = hn::Mul(hn::Load(lane, o + r * padded + d), factor);
      for (int64_t key = 0; key < map.keys; ++key) {
        if (!(words[static_cast<size_t>(key / 64)] >> (key % 64) & 1)) continue;
        sum = hn::MulAdd(hn::Set(lane, weights[r * kTile + key]), hn::Load(lane, column + key * width), sum);
      }
      hn::Store(sum, lane, o + r * padded + d);
    }
  }
}

// K and V of one unit, the segments that the tile uses. False if such a value of V is not finite.
template <class Element>
bool pack_unit(const std::byte* unit, const TileMap& map, int64_t head_dim, const Scratch& scratch) {
  const auto* k = reinterpret_cast<const typename Element::Stored*>(unit);
  const auto* v = k + int64_t{kTile} * head_dim;
  bool finite = true;
  const Runs runs = live_runs(map.used, map.keys);
  for (int64_t i = 0; i < runs.count; ++i) {
    const auto [begin, end] = runs.run[i];
    pack_transposed<Element>(k, head_dim, begin, (end + 3) / 4 * 4, map.keys, head_dim, kPanel, scratch.k);
    finite &= pack_values<Element>(v, begin, end, head_dim, scratch.v);
  }
  return finite;
}

// The item's rows for `count` of its query heads, whose states and queries lie in the scratch while all tiles pass by.
template <class Element>
void attend_heads(const Step& step, const Work& work, const int32_t* heads, int64_t count, const Scratch& scratch) {
  const int64_t head_dim = step.head_dim, rows = work.rows;
  const int64_t padded = padded_dim(head_dim);
  const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  const float scale = static_cast<float>(static_cast<double>(step.scale) * 1.4426950408889634);
  const int64_t q_stride = int64_t{step.heads} * head_dim;
  const auto* queries = reinterpret_cast<const typename Element::Stored*>(step.q) + work.q_row * q_stride;

  for (int64_t h = 0; h < count; ++h) {
    pack_transposed<Element>(queries + int64_t{heads[h]} * head_dim, q_stride, 0, row_blocks * kRowBlock, rows, head_dim, kRowBlock,
                             scratch.q_of(h));
    float *m = scratch.m_of(h), *l = scratch.l_of(h), *o = scratch.o_of(h);
    for (int64_t r = 0; r < kTile; ++r) {
      float* row = o + r * padded;
      if (r < rows) {
        const int64_t state = (work.state_row + r) * step.heads + heads[h];
        m[r] = step.m[state], l[r] = step.l[state];
        std::memcpy(row, step.o + state * head_dim, static_cast<size_t>(head_dim) * sizeof(float));
        std::fill(row + head_dim, row + padded, 0.0f);
      } else {
        m[r] = kMinusInfinity, l[r] = 0;
        std::fill(row, row + padded, 0.0f);
      }
    }
  }

  const int64_t bytes = unit_bytes(step.type, head_dim);
  for (int64_t t = work.first_tile; t < work.first_tile + work.tile_count; ++t) {
    const Tile& tile = step.tiles[static_cast<size_t>(t)];
    const int64_t blocks = tile.form == Tile::Form::full ? tile.count : 1;
    TileMap map;
    for (int64_t resident = tile.key; resident < tile.key + blocks; ++resident) {
      const int keys = step.key_rows[resident];
      if (keys != map.keys) map = map_tile(tile, step.masks, rows, keys);  // blocks of a run differ in nothing else
      if (map.used == 0) continue;
      const std::byte* unit = step.pool + step.slots[work.kv_head * step.resident + resident] * bytes;
      const bool fast = pack_unit<Element>(unit, map, head_dim, scratch) || map.full;
      for (int64_t h = 0; h < count; ++h) {
        float* o = scratch.o_of(h);
        HWY_ALIGN_MAX float alpha[kTile];
        score_tile(map, row_blocks, scratch.q_of(h), scratch.k, head_dim, scale, scratch.scores);
        softmax_tile(map, rows, scratch.scores, scratch.m_of(h), scratch.l_of(h), alpha);
        if (fast)
          accumulate_tile(map, row_blocks, scratch.scores, scratch.v, alpha, o, padded);
        else
          accumulate_tile_exactly(map, rows, scratch.scores, scratch.v, alpha, o, padded);
      }
    }
  }

  for (int64_t h = 0; h < count; ++h) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t state = (work.state_row + r) * step.heads + heads[h];
      step.m[state] = scratch.m_of(h)[r], step.l[state] = scratch.l_of(h)[r];
      std::memcpy(step.o + state * head_dim, scratch.o_of(h) + r * padded, static_cast<size_t>(head_dim) * sizeof(float));
    }
  }
}

void attend_item(const Step& step, const Work& work, const Scratch& scratch) {
  for (int64_t first = 0; first < work.head_count; first += kHeadGroup) {
    const int32_t* heads = step.head_lists.data() + work.first_head + first;
    const int64_t count = std::min<int64_t>(kHeadGroup, work.head_count - first);
    switch (step.type) {
      case ElementType::float32:
        attend_heads<Float32>(step, work, heads, count, scratch);
        break;
      case ElementType::float16:
        attend_heads<Float16>(step, work, heads, count, scratch);
        break;
      case ElementType::bfloat16:
        attend_heads<Bfloat16>(step, work, heads, count, scratch);
        break;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace longspan::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
