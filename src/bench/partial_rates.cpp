#include "bench/partial_rates.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace longspan::bench {

namespace {

constexpr int kRates = 3;
using Vector = std::array<double, kRates>;

// Σ (1 − row · x)² over the rows at its least, x being 0 where `used` does not have the bit. None if the rows hardly tell the used ones
// apart.
std::optional<Vector> least_squares(const std::vector<Vector>& rows, unsigned used) {
  std::array<Vector, kRates> matrix{};
  Vector right{};
  for (int i = 0; i < kRates; ++i) {
    if (!(used >> i & 1)) {
      matrix[i][i] = 1;
      continue;
    }
    for (const Vector& row : rows) {
      right[i] += row[i];
      for (int j = 0; j < kRates; ++j)
        if (used >> j & 1) matrix[i][j] += row[i] * row[j];
    }
  }
  Vector size{};  // so that rates of any size count alike
  for (int i = 0; i < kRates; ++i) size[i] = std::sqrt(matrix[i][i]);
  for (int i = 0; i < kRates; ++i) {
    if (size[i] == 0) return std::nullopt;
    right[i] /= size[i];
    for (int j = 0; j < kRates; ++j) matrix[i][j] /= size[i] * size[j];
  }
  for (int i = 0; i < kRates; ++i) {  // positive definite, so nothing is swapped
    constexpr double kLeastPivot = 1e-3;
    if (matrix[i][i] < kLeastPivot) return std::nullopt;
    for (int k = i + 1; k < kRates; ++k) {
      const double factor = matrix[k][i] / matrix[i][i];
      for (int j = i; j < kRates; ++j) matrix[k][j] -= factor * matrix[i][j];
      right[k] -= factor * right[i];
    }
  }
  Vector x{};
  for (int i = kRates - 1; i >= 0; --i) {
    x[i] = right[i];
    for (int j = i + 1; j < kRates; ++j) x[i] -= matrix[i][j] * x[j];
    x[i] /= matrix[i][i];
  }
  for (int i = 0; i < kRates; ++i) x[i] /= size[i];
  return x;
}

}  // namespace

PartialRates partial_rates(std::span<const TimedStep> steps, double full_quarter, bool quarters_alike) {
  std::vector<Vector> rows;  // what a step has of each, over the seconds that full quarters leave
  for (const auto& [work, seconds] : steps) {
    const double known = work.full_quarters + (quarters_alike ? work.partial_quarters : 0);
    const double left = seconds - known * full_quarter;
    if (left > 0 && work.partial_quarters > 0)
      rows.push_back({work.partial_quarters / left, work.partial_tiles / left, work.tile_rows / left});
  }
  // More rates only where they explain more.
  const std::vector<unsigned> choices = quarters_alike ? std::vector{0b010u, 0b100u, 0b110u} : std::vector{0b001u, 0b011u, 0b101u, 0b111u};
  PartialRates best;
  double least = std::numeric_limits<double>::infinity();
  for (unsigned used : choices) {
    const std::optional<Vector> rates = least_squares(rows, used);
    if (!rates || *std::min_element(rates->begin(), rates->end()) < 0) continue;
    double error = 0;
    for (const Vector& row : rows) error += std::pow(1 - row[0] * (*rates)[0] - row[1] * (*rates)[1] - row[2] * (*rates)[2], 2);
    if (error < 0.9 * least) best = {(*rates)[0], (*rates)[1], (*rates)[2]}, least = error;
  }
  if (quarters_alike) best.quarter = full_quarter;
  return best;
}

}  // namespace longspan::bench
