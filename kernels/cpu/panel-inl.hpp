// The panel functions (panel.hpp) for float32, and for 16-bit types by way of float32. Compiled once per instruction set.
#if defined(LONGSPAN_KERNELS_CPU_PANEL_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSPAN_KERNELS_CPU_PANEL_INL_HPP
#undef LONGSPAN_KERNELS_CPU_PANEL_INL_HPP
#else
#define LONGSPAN_KERNELS_CPU_PANEL_INL_HPP
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/elements-inl.hpp"
#include "kernels/cpu/exp2-inl.hpp"
#include "kernels/cpu/panel.hpp"

// Broadcast elements of a register block. With two vectors of rows: 16 sums where there are 32 registers, 12 where there are 16; enough to
// hide the latency of an FMA, and at most 0.7 loads per FMA.
#undef LONGSPAN_BLOCK
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3
#define LONGSPAN_BLOCK 6
#else
#define LONGSPAN_BLOCK 8
#endif

HWY_BEFORE_NAMESPACE();
namespace longspan::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Lane = HWY_CAPPED(float, 16);
using Vector = hn::Vec<Lane>;
using Quartet = HWY_CAPPED(float, 4);

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Lane()));
constexpr int kVectors = kLanes == 1 ? 8 : 2;
constexpr int kPanel = kVectors * kLanes;  // rows

// Four rows of four elements become four columns: to[d·panel + r] = from[r][d]. A null row stands for zeros.
template <class Element>
HWY_INLINE void transpose_quad(const typename Element::Stored* const from[4], int64_t d, float* HWY_RESTRICT to, int64_t panel) {
#if HWY_TARGET == HWY_SCALAR
  const hn::ScalableTag<float> one;
  for (int64_t r = 0; r < 4; ++r)
    for (int64_t i = 0; i < 4; ++i)
      to[i * panel + r] = from[r] == nullptr ? 0.0f : hn::GetLane(load_floats(Element(), one, from[r] + d + i));
#else
  const Quartet q;
  const auto load = [&](int r) HWY_ATTR { return from[r] == nullptr ? hn::Zero(q) : load_floats(Element(), q, from[r] + d); };
  const auto a = load(0), b = load(1), c = load(2), e = load(3);
  const auto ac_low = hn::InterleaveLower(q, a, c), ac_high = hn::InterleaveUpper(q, a, c);
  const auto be_low = hn::InterleaveLower(q, b, e), be_high = hn::InterleaveUpper(q, b, e);
  hn::StoreU(hn::InterleaveLower(q, ac_low, be_low), q, to);
  hn::StoreU(hn::InterleaveUpper(q, ac_low, be_low), q, to + panel);
  hn::StoreU(hn::InterleaveLower(q, ac_high, be_high), q, to + 2 * panel);
  hn::StoreU(hn::InterleaveUpper(q, ac_high, be_high), q, to + 3 * panel);
#endif
}

// Rows of all heads lie side by side, so that those of one head are far apart: no prefetcher of the CPU sees them coming.
constexpr int kRowsAhead = 8;
template <class T>
HWY_INLINE void fetch_row(const T* from, int64_t stride, int row, int rows, int columns) {
  if (row >= rows) return;
  const auto* bytes = reinterpret_cast<const std::byte*>(from + row * stride);
  for (int64_t at = 0; at < columns * static_cast<int64_t>(sizeof(T)); at += 64) __builtin_prefetch(bytes + at);
}

// `rows` rows of `columns` elements (a multiple of 4) to [columns][panel]; lanes past the rows become zeros.
template <class Element>
void transpose_rows(const typename Element::Stored* from, int64_t stride, int rows, int columns, int panel, float* to) {
  for (int row = 0; row < kRowsAhead; ++row) fetch_row(from, stride, row, rows, columns);
  for (int row = 0; row < panel; row += 4) {
    for (int r = 0; r < 4; ++r) fetch_row(from, stride, row + kRowsAhead + r, rows, columns);
    const typename Element::Stored* quad[4];
    for (int r = 0; r < 4; ++r) quad[r] = row + r < rows ? from + (row + r) * stride : nullptr;
    for (int d = 0; d < columns; d += 4) transpose_quad<Element>(quad, d, to + d * panel + row, panel);
  }
}

template <class Element>
void pack_queries(const PanelKernel&, const std::byte* from, int64_t stride, int rows, int head_dim, float* to) {
  transpose_rows<Element>(reinterpret_cast<const typename Element::Stored*>(from), stride, rows, head_dim, kPanel, to);
}

inline void pack_state(const float* from, int64_t stride, int rows, int head_dim, float* to) {
  transpose_rows<Float32>(from, stride, rows, head_dim, kPanel, to);
}

inline void unpack_state(const float* from, int64_t stride, int rows, int head_dim, float* to) {
  for (int row = 0; row < rows; row += 4) {
    for (int d = 0; d < head_dim; d += 4) {
      const float* const columns[4] = {from + d * kPanel, from + (d + 1) * kPanel, from + (d + 2) * kPanel, from + (d + 3) * kPanel};
      if (row + 4 <= rows) {
        transpose_quad<Float32>(columns, row, to + row * stride + d, stride);
        continue;
      }
      HWY_ALIGN float quad[16];
      transpose_quad<Float32>(columns, row, quad, 4);
      for (int r = 0; r < rows - row; ++r) std::copy_n(quad + 4 * r, 4, to + (row + r) * stride + d);
    }
  }
}

// False if some value of `count` (a multiple of 8) is not finite.
inline bool all_finite(const float* from, int64_t count) {
  using Octet = HWY_CAPPED(float, 8);
  const Octet d8;
  auto poison = hn::Zero(d8);  // NaN once x·0 has been NaN for some x
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d8)))
    poison = hn::MulAdd(hn::LoadU(d8, from + i), hn::Zero(d8), poison);
  return hn::AllTrue(d8, hn::Eq(poison, poison));
}

template <class Element>
HWY_NOINLINE void widen(const typename Element::Stored* from, int64_t count, float* HWY_RESTRICT to) {
  using Octet = HWY_CAPPED(float, 8);
  const Octet d8;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d8))) hn::StoreU(load_floats(Element(), d8, from + i), d8, to + i);
}

template <class Element>
void pack_tile(const std::byte* unit, int head_dim, const KeyRuns& live, bool partial, float* k, float* v, PackedTile& tile) {
  const auto* keys = reinterpret_cast<const typename Element::Stored*>(unit);
  const auto* values = keys + int64_t{kTile} * head_dim;
  constexpr bool kInPlace = std::is_same_v<Element, Float32>;
  tile.odd.clear();
  tile.k = kInPlace ? unit : reinterpret_cast<const std::byte*>(k);
  tile.v = kInPlace ? reinterpret_cast<const std::byte*>(values) : reinterpret_cast<const std::byte*>(v);
  bool finite = true;
  for (int i = 0; i < live.count; ++i) {
    const int64_t begin = int64_t{live.run[i].begin} * head_dim, count = int64_t{live.run[i].end} * head_dim - begin;
    if constexpr (!kInPlace) {
      widen<Element>(keys + begin, count, k + begin);
      widen<Element>(values + begin, count, v + begin);
    }
    if (partial) finite &= all_finite(reinterpret_cast<const float*>(tile.v) + begin, count);
  }
  if (finite) return;
  tile.v = reinterpret_cast<const std::byte*>(v);
  for (int i = 0; i < live.count; ++i) {
    for (int key = live.run[i].begin; key < live.run[i].end; ++key) {
      for (int d = 0; d < head_dim; ++d) {
        float& to = v[key * head_dim + d];
        if constexpr (kInPlace) to = values[key * head_dim + d];
        if (std::isfinite(to)) continue;
        tile.odd.push_back({static_cast<int16_t>(key), static_cast<int16_t>(d), to});
        to = 0;
      }
    }
  }
}

// sum[b][·] += Σ left(b, i)·right[i][·] over i < count, one product after the other. left(b, i) is left[b·stride + i] if kRowMajor, else
// left[i·stride + b].
template <int kBlock, bool kRowMajor>
HWY_INLINE void multiply_add(const float* HWY_RESTRICT left, int64_t stride, const float* HWY_RESTRICT right, int64_t count,
                             Vector (&sum)[kBlock][kVectors]) {
  const Lane lane;
  const float* rows[kBlock];
#pragma GCC unroll 8
  for (int b = 0; b < kBlock; ++b) rows[b] = kRowMajor ? left + b * stride : left + b;
  for (int64_t i = 0; i < count; ++i) {
    Vector x[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) x[v] = hn::Load(lane, right + i * kPanel + v * kLanes);
#pragma GCC unroll 8
    for (int b = 0; b < kBlock; ++b) {
      const Vector a = hn::Set(lane, kRowMajor ? rows[b][i] : left[b]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[b][v] = hn::MulAdd(a, x[v], sum[b][v]);
    }
    if constexpr (!kRowMajor) left += stride;
  }
}

template <int kBlock>
HWY_NOINLINE void score_block(const float* k, const float* q, int head_dim, float* scores) {
  const Lane lane;
  Vector sum[kBlock][kVectors];
#pragma GCC unroll 8
  for (int b = 0; b < kBlock; ++b)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[b][v] = hn::Zero(lane);
  multiply_add<kBlock, true>(k, head_dim, q, head_dim, sum);
#pragma GCC unroll 8
  for (int b = 0; b < kBlock; ++b)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::Store(sum[b][v], lane, scores + b * kPanel + v * kLanes);
}

// Scores q·k (not scaled) of all live keys, to scores[key]. The tile's scratch holds whole segments, so that a run may be rounded up.
inline void score_panel(const PanelStep& step, Fetch& fetch) {
  const auto* k = reinterpret_cast<const float*>(step.tile->k);
  for (int i = 0; i < step.map->live.count; ++i) {
    const int end = (step.map->live.run[i].end + 1) / 2 * 2;
    for (int key = step.map->live.run[i].begin; key < end;) {
      fetch.some();
      const float* rows = k + int64_t{key} * step.head_dim;
      if (key + LONGSPAN_BLOCK <= end) {
        score_block<LONGSPAN_BLOCK>(rows, step.q, step.head_dim, step.scores + key * kPanel);
        key += LONGSPAN_BLOCK;
      } else {
        score_block<2>(rows, step.q, step.head_dim, step.scores + key * kPanel);
        key += 2;
      }
    }
  }
}

HWY_INLINE hn::Mask<Lane> lanes_of(uint32_t bits) {
  uint8_t bytes[8] = {};
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(bits >> (8 * i));
  return hn::LoadMaskBits(Lane(), bytes);
}

// Scores become weights 2^(scale·s − m) for the new maxima m; a pair that is not allowed gets 0 exactly. m and l take the tile in, and
// alpha is what o is to be multiplied by. A row that sees nothing here keeps its state to the bit (alpha 1, sum 0). False if all alphas
// are 1.
HWY_NOINLINE bool softmax_panel(const PanelStep& step, float* HWY_RESTRICT alphas) {
  const Lane lane;
  const Vector none = hn::Set(lane, -std::numeric_limits<float>::infinity());
  const Vector scale = hn::Set(lane, step.scale);
  const PanelMap& map = *step.map;
  constexpr uint32_t kAll = kPanel == 32 ? ~uint32_t{0} : (uint32_t{1} << (kPanel % 32)) - 1;
  Vector top[kVectors];
  for (int v = 0; v < kVectors; ++v) top[v] = none;
  for (int i = 0; i < map.live.count; ++i) {
    for (int key = map.live.run[i].begin; key < map.live.run[i].end; ++key) {
      float* s = step.scores + key * kPanel;
      const uint32_t allowed = map.full ? kAll : map.rows[static_cast<size_t>(key)];
      for (int v = 0; v < kVectors; ++v) {
        Vector x = hn::Load(lane, s + v * kLanes);
        if (allowed != kAll) {  // selected, not added: such a score may be NaN
          x = hn::IfThenElse(lanes_of(allowed >> (v * kLanes)), x, none);
          hn::Store(x, lane, s + v * kLanes);
        }
        top[v] = hn::Max(top[v], x);
      }
    }
  }
  Vector shift[kVectors], sum[kVectors];
  bool changed = false;
  for (int v = 0; v < kVectors; ++v) {
    const Vector before = hn::Load(lane, step.m + v * kLanes);
    const Vector m = hn::Max(before, hn::Mul(top[v], scale));
    shift[v] = hn::IfThenElse(hn::Eq(m, none), hn::Zero(lane), m);  // −∞ − −∞ would be NaN
    sum[v] = hn::Zero(lane);
    const Vector alpha = exp2_vector(lane, hn::Sub(before, shift[v]));
    hn::Store(alpha, lane, alphas + v * kLanes);
    hn::Store(m, lane, step.m + v * kLanes);
    changed |= !hn::AllTrue(lane, hn::Eq(alpha, hn::Set(lane, 1.0f)));
  }
  // Product and difference are rounded apart: the largest weight is exactly 1.
  for (int i = 0; i < map.live.count; ++i) {
    for (int key = map.live.run[i].begin; key < map.live.run[i].end; ++key) {
      float* s = step.scores + key * kPanel;
      for (int v = 0; v < kVectors; ++v) {
        const Vector p = exp2_vector(lane, hn::Sub(hn::Mul(hn::Load(lane, s + v * kLanes), scale), shift[v]));
        hn::Store(p, lane, s + v * kLanes);
        sum[v] = hn::Add(sum[v], p);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const Vector l = hn::Load(lane, step.l + v * kLanes);
    hn::Store(hn::MulAdd(l, hn::Load(lane, alphas + v * kLanes), sum[v]), lane, step.l + v * kLanes);
  }
  return changed;
}

// o[d][·] = o[d][·]·alpha + Σ v[key][d]·weights[key][·], for kBlock elements d.
template <int kBlock>
HWY_NOINLINE void value_block(const KeyRuns& live, const float* v, int head_dim, const float* weights, const float* alphas, float* o) {
  const Lane lane;
  Vector sum[kBlock][kVectors];
#pragma GCC unroll 8
  for (int b = 0; b < kBlock; ++b)
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) {
      sum[b][c] = hn::Load(lane, o + b * kPanel + c * kLanes);
      if (alphas != nullptr) sum[b][c] = hn::Mul(sum[b][c], hn::Load(lane, alphas + c * kLanes));
    }
  for (int i = 0; i < live.count; ++i) {
    const int64_t begin = live.run[i].begin;
    multiply_add<kBlock, false>(v + begin * head_dim, head_dim, weights + begin * kPanel, live.run[i].end - begin, sum);
  }
#pragma GCC unroll 8
  for (int b = 0; b < kBlock; ++b)
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) hn::Store(sum[b][c], lane, o + b * kPanel + c * kLanes);
}

inline void value_panel(const PanelStep& step, const float* alphas, Fetch& fetch) {
  const auto* values = reinterpret_cast<const float*>(step.tile->v);
  for (int d = 0; d < step.head_dim;) {
    fetch.some();
    if (d + LONGSPAN_BLOCK <= step.head_dim) {
      value_block<LONGSPAN_BLOCK>(step.map->live, values + d, step.head_dim, step.scores, alphas, step.o + d * kPanel);
      d += LONGSPAN_BLOCK;
    } else {
      value_block<2>(step.map->live, values + d, step.head_dim, step.scores, alphas, step.o + d * kPanel);
      d += 2;
    }
  }
  for (const OddValue& odd : step.tile->odd) {
    if (!is_live(step.map->live, odd.key)) continue;
    const uint32_t allowed = step.map->full ? ~uint32_t{0} : step.map->rows[static_cast<size_t>(odd.key)];
    for (int r = 0; r < kPanel; ++r)
      if (allowed >> r & 1) step.o[odd.d * kPanel + r] += step.scores[odd.key * kPanel + r] * odd.value;
  }
}

inline void attend_panel(const PanelStep& step) {
  HWY_ALIGN_MAX float alphas[kPanel];
  Fetch fetch(step, LONGSPAN_BLOCK);
  score_panel(step, fetch);
  const bool changed = softmax_panel(step, alphas);
  value_panel(step, changed ? alphas : nullptr, fetch);
}

inline void exp2_floats(const float* in, float* out, int64_t count) {
  const Lane lane;
  HWY_ALIGN_MAX float lanes[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = std::min<int64_t>(kLanes, count - i);
    std::copy_n(in + i, n, lanes);
    std::fill(lanes + n, lanes + kLanes, 0.0f);
    hn::Store(exp2_vector(lane, hn::Load(lane, lanes)), lane, lanes);
    std::copy_n(lanes, n, out + i);
  }
}

inline double multiply(int64_t rounds) {
  constexpr int kSums = 12;
  const Lane lane;
  HWY_ALIGN_MAX float starts[(kSums + 1) * kLanes];  // all different: equal sums would be computed once
  for (int i = 0; i < (kSums + 1) * kLanes; ++i) starts[i] = 1e-3f * static_cast<float>(i + 1);
  Vector sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = hn::Load(lane, starts + i * kLanes);
  const Vector a = hn::Load(lane, starts + kSums * kLanes);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (Vector& s : sum) s = hn::MulAdd(s, a, a);
  }
  Vector all = hn::Zero(lane);
#pragma GCC unroll 12
  for (const Vector& s : sum) all = hn::Add(all, s);
  hn::Store(all, lane, starts);
  // Also keeps the loop: the result might be negative, for all that the compiler knows.
  return starts[0] < 0 ? 0 : 2.0 * kSums * kLanes * static_cast<double>(rounds);
}

template <class Element>
PanelKernel make_kernel() {
  PanelKernel kernel;
  kernel.name = hwy::TargetName(HWY_TARGET);
  kernel.rows = kPanel;
  kernel.pack_tile = pack_tile<Element>;
  kernel.attend = attend_panel;
  kernel.pack_queries = pack_queries<Element>;
  kernel.pack_state = pack_state;
  kernel.unpack_state = unpack_state;
  kernel.multiply = multiply;
  kernel.exp2 = exp2_floats;
  return kernel;
}

const PanelKernel* panel_kernel(ElementType type) {
  static const PanelKernel float32 = make_kernel<Float32>(), float16 = make_kernel<Float16>(), bfloat16 = make_kernel<Bfloat16>();
  return type == ElementType::float32 ? &float32 : type == ElementType::float16 ? &float16 : &bfloat16;
}

}  // namespace HWY_NAMESPACE
}  // namespace longspan::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
