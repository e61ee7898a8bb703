// How a rank's --memory is shared out.
#pragma once

#include <cstdint>
#include <string>

#include "longspan/shape.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::plan {

// float32 (m, l, o) of one row and query head.
inline int64_t state_bytes(const Shape& shape) { return (int64_t{shape.head_dim} + 2) * 4; }

// One query block, all heads: its queries; its states; its results.
inline int64_t block_query_bytes(const Shape& shape) {
  return kBlock * shape.heads * shape.head_dim * static_cast<int64_t>(size_of(shape.type));
}
inline int64_t block_state_bytes(const Shape& shape) { return kBlock * shape.heads * state_bytes(shape); }
inline int64_t block_result_bytes(const Shape& shape, ElementType output_type) {
  return kBlock * shape.heads * (shape.head_dim * static_cast<int64_t>(size_of(output_type)) + 4);
}

// One query block of a stripe: queries twice (the next stripe's are read meanwhile), states, results twice (the last stripe's are written
// meanwhile).
int64_t block_row_bytes(const Shape& shape, ElementType output_type);

// Shares out `options.memory`; decides whether the ranks' keys stay in memory. Throws Error(usage) when no plan fits.
// `resting`: finished states of long rows that wait for their stripe, on the rank with most of them; 0 when there are no long rows.
// Whether the keys stay then, and there is room for a plan.
bool keys_stay_beside(const Shape& shape, const Options& options, int64_t most_blocks_of_a_rank, int64_t resting);
Memory share_memory(const Shape& shape, const Options& options, int64_t most_blocks_of_a_rank, int64_t resting, bool& keys_stay);

// Stripes of a rank whose rows are copied to a GPU and results back: up to twelve, of 64 MiB of queries and results each or more. While one
// is computed, the next one's queries come and the last one's results go; the last one of all goes alone. Causal over 131,072 tokens, in 1,
// 2, 4 and 8 of them, took two H200 69.9, 66.6, 65.1 and 64.8 ms, and one 140, 130, 125 and 125.
int stripes_of_copied_rows(const Shape& shape, ElementType output_type, int ranks);

// As --memory takes it, rounded up: 1,500,000 -> "2Mi".
std::string mebibytes(int64_t bytes);

}  // namespace longspan::plan
