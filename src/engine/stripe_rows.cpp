#include "engine/stripe_rows.hpp"

#include <algorithm>

namespace longspan::engine {

void StripeRows::begin(const RowCopies& copies, const std::vector<Intervals>& tokens, int64_t long_queries) {
  places_.assign(tokens.size(), {});
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
  const int64_t states = shape_.heads, elements = states * shape_.head_dim;  // of a row
  const int64_t q_row = elements * static_cast<int64_t>(size_of(shape_.type));
  reserve(q_[0], most_q * q_row);
  reserve(q_[1], std::max(most_q, long_queries) * q_row);
  if (long_queries > 0 && !long_q_on_host_ && !device_.memory_is_host()) long_q_on_host_ = device_.allocate_host(long_queries * q_row);
  for (auto& [o, lse] : results_) {
    reserve(o, most_o * elements * static_cast<int64_t>(size_of(output_type_)));
    reserve(lse, most_lse * states * static_cast<int64_t>(sizeof(float)));
  }
}

void StripeRows::reserve(Memory& memory, int64_t bytes) {
  if (bytes <= memory.bytes) return;
  memory.buffer.reset(), memory.bytes = 0;
  memory.buffer = device_.allocate(bytes);
  memory.bytes = bytes;
}

int64_t StripeRows::bytes() const {
  int64_t bytes = 0;
  for (size_t turn = 0; turn < 2; ++turn) bytes += q_[turn].bytes + results_[turn].o.bytes + results_[turn].lse.bytes;
  return bytes;
}

kernels::Results StripeRows::results(size_t stripe, size_t turn) const {
  const auto& [o, lse] = results_[turn % 2];
  const auto& [there, lse_there] = places_[stripe].results;
  return {output_type_, there != nullptr ? there : o.get(), lse_there != nullptr ? lse_there : reinterpret_cast<float*>(lse.get())};
}

}  // namespace longspan::engine
