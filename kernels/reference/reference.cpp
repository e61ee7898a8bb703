#include "kernels/reference/reference.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace longspan::kernels::reference {

namespace {

// `rounded` is what becomes of a weight before it meets its value.
template <typename Real, typename Rounded>
Real attend(std::span<const float> q, std::span<const float> keys, std::span<const float> values, Real scale, std::span<Real> o,
            Rounded rounded) {
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
    const Real weight = std::exp(weights[key] - shift);
    sum += weight;
    const Real used = rounded(weight);
    for (size_t d = 0; d < head_dim; ++d) o[d] += used * static_cast<Real>(values[key * head_dim + d]);
  }
  if (sum == 0) {
    for (size_t d = 0; d < head_dim; ++d) o[d] = 0;
    return -kInfinity;
  }
  for (size_t d = 0; d < head_dim; ++d) o[d] /= sum;
  return maximum + std::log(sum);
}

}  // namespace

template <typename Real>
Real attend_row(std::span<const float> q, std::span<const float> keys, std::span<const float> values, Real scale, std::span<Real> o) {
  return attend<Real>(q, keys, values, scale, o, [](Real weight) { return weight; });
}

template double attend_row<double>(std::span<const float>, std::span<const float>, std::span<const float>, double, std::span<double>);
template float attend_row<float>(std::span<const float>, std::span<const float>, std::span<const float>, float, std::span<float>);

float attend_row_rounded(std::span<const float> q, std::span<const float> keys, std::span<const float> values, float scale,
                         ElementType type, std::span<float> o) {
  return attend<float>(q, keys, values, scale, o, [type](float weight) {
    store_element(&weight, type, 0, weight);
    return load_element(&weight, type, 0);
  });
}

}  // namespace longspan::kernels::reference
