#include "engine/stripe_rows.hpp"

#include <algorithm>

namespace longspan::engine {

StripeRows::StripeRows(const RowCopies& copies, kernels::Device& device, const Shape& shape, ElementType output_type,
                       const std::vector<Intervals>& tokens, int64_t long_queries)
    : output_type_(output_type), places_(tokens.size()) {
  int64_t most_q = 0, most_o = 0, most_lse = 0;  // rows
  for (size_t stripe = 0; stripe < tokens.size(); ++stripe) {
    const int64_t rows = size_of(tokens[stripe]);
    if (rows == 0) continue;
    places_[stripe] = {copies.q_in_kernels(tokens[stripe]), copies.results_in_kernels(tokens[stripe])};
    const auto& [q, results] = places_[stripe];
    if (q == nullptr) most_q = std::max(most_q, rows);
    if (results.o == nullptr) most_o = std::max(most_o, rows);
    if (results.lse == nullptr) most_lse = std::max(most_lse, rows);
  }
  const auto reserve = [&](kernels::Buffer& buffer, int64_t bytes) {
    if (bytes == 0) return;
    buffer = device.allocate(bytes);
    bytes_ += bytes;
  };
  const int64_t states = shape.heads, elements = states * shape.head_dim;  // of a row
  const int64_t q_row = elements * static_cast<int64_t>(size_of(shape.type));
  reserve(q_[0], most_q * q_row);
  reserve(q_[1], std::max(most_q, long_queries) * q_row);
  for (auto& [o, lse] : results_) {
    reserve(o, most_o * elements * static_cast<int64_t>(size_of(output_type)));
    reserve(lse, most_lse * states * static_cast<int64_t>(sizeof(float)));
  }
}

kernels::Results StripeRows::results(size_t stripe, size_t turn) const {
  const auto& [o, lse] = results_[turn % 2];
  const auto& [there, lse_there] = places_[stripe].results;
  return {output_type_, there != nullptr ? there : o.get(), lse_there != nullptr ? lse_there : reinterpret_cast<float*>(lse.get())};
}

}  // namespace longspan::engine
