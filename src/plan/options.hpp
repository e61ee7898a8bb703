// What a user may say about a plan.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "longspan/element_type.hpp"

namespace longspan::plan {

enum class PartitionKind : uint8_t { automatic, contiguous, zigzag, balanced };

constexpr std::string_view name_of(PartitionKind kind) {
  switch (kind) {
    case PartitionKind::automatic:
      return "auto";
    case PartitionKind::contiguous:
      return "contiguous";
    case PartitionKind::zigzag:
      return "zigzag";
    case PartitionKind::balanced:
      return "balanced";
  }
  return "?";
}
std::optional<PartitionKind> partition_kind_named(std::string_view name);

struct Options {
  PartitionKind partition = PartitionKind::automatic;
  int64_t memory = int64_t{8} << 30;  // bytes a rank may use for pool, queries, states and results; the same on all ranks
  ElementType output_type = ElementType::float32;
  // Every row takes its key blocks in ascending order and long rows are cut at fixed places, so that bits depend on neither the number of
  // ranks nor the memory.
  bool reproducible = false;
  int stripes =
      16;  // a rank's rows come in at least so many stripes (of 8 blocks or more): what a killed job can lose. 1 for data in memory.
  bool keys_can_be_read_again = true;  // from a file; otherwise a rank's own keys must fit into memory
  int64_t step_bytes = 0;         // of keys fetched for one step, about: what their messages may take elsewhere; 0: what there is room for
  int64_t segment_blocks = 1024;  // key blocks of one segment of a long row
  double long_row_factor = 8;     // a long row has more than this many times the mean row's tiles, and more than one segment of them
  int64_t exact_tiles = 100'000'000;  // a rank with more list entries than this is counted from sampled rows, and says so
};

}  // namespace longspan::plan
