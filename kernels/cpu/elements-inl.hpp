// Vectors of float32 from and to the element types of Q, K, V and O. Compiled once per instruction set.
#if defined(LONGSPAN_KERNELS_CPU_ELEMENTS_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSPAN_KERNELS_CPU_ELEMENTS_INL_HPP
#undef LONGSPAN_KERNELS_CPU_ELEMENTS_INL_HPP
#else
#define LONGSPAN_KERNELS_CPU_ELEMENTS_INL_HPP
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "longspan/element_type.hpp"

// Highway's AVX2 and better targets have the conversion instructions of F16C; without them float16 goes by integer arithmetic.
#undef LONGSPAN_HAVE_F16C
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
#define LONGSPAN_HAVE_F16C 1
#else
#define LONGSPAN_HAVE_F16C 0
#endif

HWY_BEFORE_NAMESPACE();
namespace longspan::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One type per element type, so that templates can tell the two 16-bit ones apart. `Stored` is what lies in memory.
struct Float32 {
  using Stored = float;
};
struct Float16 {
  using Stored = uint16_t;
};
struct Bfloat16 {
  using Stored = uint16_t;
};

template <class D>
HWY_INLINE hn::Vec<D> load_floats(Float32, D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load_floats(Bfloat16, D d, const uint16_t* from) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, from))));
}

template <class D>
HWY_INLINE hn::Vec<D> load_floats(Float16, D d, const uint16_t* from) {
  const hn::Rebind<uint16_t, D> dh;
#if LONGSPAN_HAVE_F16C
  const hn::Rebind<hwy::float16_t, D> df16;
  return hn::PromoteTo(d, hn::BitCast(df16, hn::LoadU(dh, from)));
#else
  const hn::RebindToSigned<D> di;
  const auto half = hn::PromoteTo(di, hn::LoadU(dh, from));
  const auto sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(di, 0x8000)));
  const auto magnitude = hn::And(half, hn::Set(di, 0x7fff));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const auto normal = hn::Add(shifted, hn::Set(di, 112 << 23));
  const auto special = hn::Or(shifted, hn::Set(di, 0x7f800000));
  const auto subnormal = hn::BitCast(di, hn::Mul(hn::ConvertTo(d, magnitude), hn::Set(d, 0x1p-24f)));
  auto bits = hn::IfThenElse(hn::Lt(magnitude, hn::Set(di, 0x0400)), subnormal, normal);
  bits = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x7bff)), special, bits);
  return hn::BitCast(d, hn::Or(bits, sign));
#endif
}

// Rounds as element_type.hpp: to nearest, ties to even, NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_floats(Float32, D d, V v, float* to) {
  hn::StoreU(v, d, to);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_floats(Bfloat16, D, V v, uint16_t* to) {
  const hn::RebindToSigned<D> di;
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  const auto bits = hn::BitCast(du, v);
  const auto high = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(high, hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
  const auto quiet = hn::Or(high, hn::Set(du, 0x40));
  const auto is_number = hn::RebindMask(di, hn::Eq(v, v));  // not Ne: that is false for NaN on AVX
  const auto chosen = hn::IfThenElse(is_number, hn::BitCast(di, rounded), hn::BitCast(di, quiet));
  hn::StoreU(hn::DemoteTo(dh, chosen), dh, to);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_floats(Float16, D d, V v, uint16_t* to) {
#if LONGSPAN_HAVE_F16C
  const hn::Rebind<uint16_t, D> dh;
  const hn::Rebind<hwy::float16_t, D> df16;
  hn::StoreU(hn::BitCast(dh, hn::DemoteTo(df16, v)), dh, to);
#else
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) to[i] = float16_from_float(lanes[i]);
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace longspan::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
