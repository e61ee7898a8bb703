// What happens to the rows' states after and between tiles: finishing and merging. Compiled once per instruction set.
#if defined(LONGSPAN_KERNELS_CPU_STATES_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSPAN_KERNELS_CPU_STATES_INL_HPP
#undef LONGSPAN_KERNELS_CPU_STATES_INL_HPP
#else
#define LONGSPAN_KERNELS_CPU_STATES_INL_HPP
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/elements-inl.hpp"
#include "kernels/cpu/exp2-inl.hpp"
#include "kernels/kernel.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using StateLane = HWY_CAPPED(float, 8);  // head_dim is a multiple of 8: no tails

template <class Element>
void finish_as(const Finish& finish, int64_t begin, int64_t end) {
  const StateLane lane;
  for (int64_t state = begin; state < end; ++state) {
    const bool empty = finish.l[state] == 0;
    const float* o = finish.o + state * finish.head_dim;
    const int64_t place = finish.place_of(state);
    auto* out = reinterpret_cast<typename Element::Stored*>(finish.out) + place * finish.head_dim;
    const auto l = hn::Set(lane, finish.l[state]);
    for (int d = 0; d < finish.head_dim; d += static_cast<int>(hn::Lanes(lane)))
      store_floats(Element(), lane, empty ? hn::Zero(lane) : hn::Div(hn::LoadU(lane, o + d), l), out + d);
    finish.lse[place] = empty ? -std::numeric_limits<float>::infinity()
                              : static_cast<float>((double{finish.m[state]} + std::log2(double{finish.l[state]})) * 0.6931471805599453);
  }
}

// States [begin, end) of Finish::states().
void finish_states(const Finish& finish, int64_t begin, int64_t end) {
  switch (finish.output_type) {
    case ElementType::float32:
      return finish_as<Float32>(finish, begin, end);
    case ElementType::float16:
      return finish_as<Float16>(finish, begin, end);
    case ElementType::bfloat16:
      return finish_as<Bfloat16>(finish, begin, end);
  }
}

void merge_states(const Merge& merge, int64_t begin, int64_t end) {
  const StateLane lane;
  for (int64_t state = begin; state < end; ++state) {
    const float* from = merge.from_o + state * merge.head_dim;
    float* to = merge.o + state * merge.head_dim;
    // l = 0 says "has seen nothing" better than m = −∞ does: a row of NaN scores has l = NaN, and must stay NaN.
    if (merge.from_l[state] == 0) continue;
    if (merge.l[state] == 0) {
      merge.m[state] = merge.from_m[state], merge.l[state] = merge.from_l[state];
      std::memcpy(to, from, static_cast<size_t>(merge.head_dim) * sizeof(float));
      continue;
    }
    const float maximum = std::max(merge.m[state], merge.from_m[state]);
    const float shift = maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum;
    const auto ours = exp2_vector(lane, hn::Set(lane, merge.m[state] - shift));
    const auto theirs = exp2_vector(lane, hn::Set(lane, merge.from_m[state] - shift));
    merge.m[state] = maximum;
    merge.l[state] = hn::GetLane(hn::MulAdd(hn::Set(lane, merge.l[state]), ours, hn::Mul(hn::Set(lane, merge.from_l[state]), theirs)));
    for (int d = 0; d < merge.head_dim; d += static_cast<int>(hn::Lanes(lane)))
      hn::StoreU(hn::MulAdd(hn::LoadU(lane, to + d), ours, hn::Mul(hn::LoadU(lane, from + d), theirs)), lane, to + d);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace longspan::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
