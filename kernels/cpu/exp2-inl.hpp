// 2^x for softmax. Compiled once per instruction set (Highway's foreach_target), hence the unusual guard.
#if defined(LONGSPAN_KERNELS_CPU_EXP2_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSPAN_KERNELS_CPU_EXP2_INL_HPP
#undef LONGSPAN_KERNELS_CPU_EXP2_INL_HPP
#else
#define LONGSPAN_KERNELS_CPU_EXP2_INL_HPP
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace longspan::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 2^x for x < 127.5; relative error at most 1.5e-7 on [−126, 0] (tests/kernels/exp2_test.cpp). Exactly 1 at 0; exactly 0 below −126, −∞
// included: a weight that small adds nothing to a sum whose largest weight is 1. NaN gives NaN.
//
// x = n + f with n the nearest integer: 2^f by a polynomial of degree 6 whose constant is 1 (Remez fit of the relative error on [−½, ½],
// 2.5e-9), times 2^n built in the exponent field. Adding 1.5·2^23 + 127 rounds x to an integer and leaves n + 127 in the lowest bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_vector(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V shift = hn::Set(d, 12582912.0f + 127.0f);
  const V shifted = hn::Add(x, shift);
  const V f = hn::Sub(x, hn::Sub(shifted, shift));
  V p = hn::Set(d, 1.546144485e-04f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.340042800e-03f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.618056938e-03f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550327152e-02f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402265072e-01f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931471825e-01f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  // A product, not a sum of exponents: NaN must stay NaN whatever its payload.
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

}  // namespace HWY_NAMESPACE
}  // namespace longspan::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
