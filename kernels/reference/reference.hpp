// Attention as its definition says it, in double or float, one row at a time: the oracle of every other kernel and of `verify`.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace longspan::kernels::reference {

// One row: q [head_dim], keys and values [n][head_dim] (exactly those the row looks at, in any order), scale of the scores.
// Writes o [head_dim] and returns the LSE (natural). No keys: o = 0, −∞. Every operation is done in Real. With `bfloat16_weights` the
// weights (1 for the largest score) are rounded to bfloat16 before they meet the values, as matrix units want them; LSE and sum are not.
template <typename Real>
Real attend_row(std::span<const float> q, std::span<const float> keys, std::span<const float> values, Real scale, std::span<Real> o,
                bool bfloat16_weights = false);

}  // namespace longspan::kernels::reference
