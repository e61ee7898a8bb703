#include "plan/memory.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "longspan/error.hpp"

namespace longspan::plan {

namespace {

// Least bytes for everything but keys that stay: a stripe of one block takes at most a half, lists an eighth, three blocks of keys the rest
// (one in use, one arriving, one to cut groups by).
int64_t least_room(const Shape& shape, ElementType output_type, int64_t block_of_keys) {
  const int64_t rows = block_row_bytes(shape, output_type);
  return std::max(2 * rows, (rows + 3 * block_of_keys + 6) / 7 * 8 + 8);
}

}  // namespace

std::string mebibytes(int64_t bytes) { return fmt::format("{}Mi", (bytes + (int64_t{1} << 20) - 1) >> 20); }

int stripes_of_copied_rows(const Shape& shape, ElementType output_type, int ranks) {
  constexpr int64_t kMost = 12, kWorthwhile = int64_t{64} << 20;
  const int64_t blocks = shape.tokens / kBlock / std::max(1, ranks);
  const int64_t bytes = blocks * (block_query_bytes(shape) + block_result_bytes(shape, output_type));
  return static_cast<int>(std::clamp<int64_t>(bytes / kWorthwhile, 1, kMost));
}

int64_t block_row_bytes(const Shape& shape, ElementType output_type) {
  return 2 * block_query_bytes(shape) + block_state_bytes(shape) + 2 * block_result_bytes(shape, output_type);
}

namespace {

// Long rows: with their states, what travels needs room for four more at least (one that leaves, one that is packed or merged, two that
// come) and a block's queries, part of it where the results of `blocks` will lie.
int64_t room_to_travel(const Shape& shape, const Options& options, int64_t resting, int64_t blocks) {
  if (resting == 0) return 0;
  return std::max<int64_t>(
      0, 4 * block_state_bytes(shape) + block_query_bytes(shape) - 2 * blocks * block_result_bytes(shape, options.output_type));
}

int64_t least_room_beside(const Shape& shape, const Options& options, int64_t resting) {
  const int64_t block_of_keys = shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  return least_room(shape, options.output_type, block_of_keys) + resting + room_to_travel(shape, options, resting, 1);
}

}  // namespace

bool keys_stay_beside(const Shape& shape, const Options& options, int64_t most_blocks, int64_t resting) {
  const int64_t home = most_blocks * shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  return (!options.keys_can_be_read_again || home <= options.memory / 2) &&
         options.memory - home >= least_room_beside(shape, options, resting);
}

Memory share_memory(const Shape& shape, const Options& options, int64_t most_blocks, int64_t resting, bool& keys_stay) {
  const int64_t home = most_blocks * shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim);
  const int64_t least = least_room_beside(shape, options, resting);
  keys_stay = !options.keys_can_be_read_again || keys_stay_beside(shape, options, most_blocks, resting);
  int64_t room = options.memory - (keys_stay ? home : 0);
  if (room < least) {
    const int64_t enough = options.keys_can_be_read_again ? least : home + least;
    throw Error({.code = ExitCode::usage,
                 .what = "too little memory for any plan",
                 .seen = fmt::format("{} bytes a rank", options.memory),
                 .expected = fmt::format("at least {}", mebibytes(enough)),
                 .from = "option --memory",
                 .mend = fmt::format("--memory {} would do; {} keeps all keys in memory; more ranks need less each", mebibytes(enough),
                                     mebibytes(std::max(2 * home, home + least)))});
  }
  room -= resting + room_to_travel(shape, options, resting, 1);
  Memory memory;
  memory.home = keys_stay ? home : 0;
  memory.stripe = std::max(block_row_bytes(shape, options.output_type),
                           room / 2 / block_row_bytes(shape, options.output_type) * block_row_bytes(shape, options.output_type));
  // No larger than the rank's rows can use.
  memory.stripe = std::min(memory.stripe, std::max<int64_t>(1, most_blocks) * block_row_bytes(shape, options.output_type));
  memory.long_rows = resting + room_to_travel(shape, options, resting, memory.stripe / block_row_bytes(shape, options.output_type));
  memory.lists = room / 8;
  memory.received = room - memory.stripe - memory.lists;
  return memory;
}

}  // namespace longspan::plan
