#include "kernels/reference/reference.hpp"

#include <cmath>
#include <limits>

#include "longspan/element_type.hpp"

namespace longspan::kernels::reference {

template <typename Real>
Real attend_row(std::span<const float> q, std::span<const float> keys, std::span<const float> values, Real scale, std::span<Real> o,
                bool bfloat16_weights) {
  constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  const size_t head_dim = q.size();
  const size_t count = keys.size() / head_dim;

  std::vector<Real> weights(count);  // first the scores, then their exponentials
  Real maximum = -kInfinity;
  for (size_t key = 0; key < count; ++key) {
    Real dot = 0;
    for (size_t d = 0; d < head_dim; ++d) dot += static_cast<Real>(q[d]) * static_cast<Real>(keys[key * head_dim + d]);
    weights[key] = dot * scale;
    if (weights[key] > maximum) maximum = weights[key];
  }

  // Every score −∞ (an infinite key): the shift must not make −∞ − −∞. Such a row then counts as one that may look at nothing.
  const Real shift = maximum == -kInfinity ? Real{0} : maximum;
  Real sum = 0;
  for (size_t d = 0; d < head_dim; ++d) o[d] = 0;
  for (size_t key = 0; key < count; ++key) {
    Real weight = std::exp(weights[key] - shift);
    sum += weight;
    if (bfloat16_weights) weight = float_from_bfloat16(bfloat16_from_float(static_cast<float>(weight)));
    for (size_t d = 0; d < head_dim; ++d) o[d] += weight * static_cast<Real>(values[key * head_dim + d]);
  }
  if (sum == 0) {
    for (size_t d = 0; d < head_dim; ++d) o[d] = 0;
    return -kInfinity;
  }
  for (size_t d = 0; d < head_dim; ++d) o[d] /= sum;
  return maximum + std::log(sum);
}

template double attend_row<double>(std::span<const float>, std::span<const float>, std::span<const float>, double, std::span<double>, bool);
template float attend_row<float>(std::span<const float>, std::span<const float>, std::span<const float>, float, std::span<float>, bool);

}  // namespace longspan::kernels::reference
