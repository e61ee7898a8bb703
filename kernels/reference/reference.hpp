// Attention as its definition says it, in double or float, one row at a time: the oracle of every other kernel and of `verify`.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "longspan/element_type.hpp"

namespace longspan::kernels::reference {

// One row: q [head_dim], keys and values [n][head_dim] (exactly those the row looks at, in any order), scale of the scores.
// Writes o [head_dim] and returns the LSE (natural). No keys: o = 0, −∞. Every operation is done in Real.
template <typename Real>
Real attend_row(std::span<const float> q, std::span<const float> keys, std::span<const float> values, Real scale, std::span<Real> o);

// The same in float32, but with each weight rounded to `type` before it meets its value, as matrix units of 16-bit types demand.
float attend_row_rounded(std::span<const float> q, std::span<const float> keys, std::span<const float> values, float scale,
                         ElementType type, std::span<float> o);

}  // namespace longspan::kernels::reference
