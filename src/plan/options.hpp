// What a user may say about a plan.
#pragma once

#include <algorithm>
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

// How key blocks come from other hosts. flat: every rank fetches its own; node: once for all ranks of a host, which pass them on;
// automatic: node where that saves a fifth of what crosses between hosts.
enum class ExchangeKind : uint8_t { automatic, flat, node };
constexpr std::string_view name_of(ExchangeKind kind) {
  return kind == ExchangeKind::flat ? "flat" : kind == ExchangeKind::node ? "node" : "auto";
}
std::optional<ExchangeKind> exchange_kind_named(std::string_view name);

struct Options {
  PartitionKind partition = PartitionKind::automatic;
  int64_t memory = int64_t{8} << 30;  // bytes a rank may use for pool, queries, states and results; the same on all ranks
  ElementType output_type = ElementType::float32;
  // Every row takes its key blocks in ascending order and long rows are cut at fixed places, so that bits depend on neither the number of
  // ranks nor the memory.
  bool reproducible = false;
  // A rank's rows come in at least so many stripes (of 8 blocks or more): what a killed job can lose. 1 for data in memory.
  int stripes = 16;
  bool on_gpu = false;                 // few steps, and long rows in parts: what steps, and rows by themselves, cost there
  bool rows_are_copied = false;        // data in memory, computed on a GPU: stripes_of_copied_rows() or one, whatever `stripes` is
  bool share_keys = false;             // other ranks read a rank's own keys where they lie, if it attends them there
  bool keys_can_be_read_again = true;  // from a file; otherwise a rank's own keys must fit into memory
  int64_t step_bytes = 0;              // of keys fetched for one step, about: what their messages may take elsewhere; 0: as there is room
  int64_t segment_blocks = 1024;       // key blocks of one segment of a long row
  int64_t part_blocks = 256;           // of what a GPU computes of it at once: few rows must keep many multiprocessors busy
  static constexpr int64_t kMostParts = 16;  // of a segment there: their states are merged, and travel as one
  double long_row_factor = 8;  // a long row has more than this many times the mean row's tiles, and more than one part of them
  int64_t longest_part() const { return on_gpu ? std::min(part_blocks, segment_blocks) : segment_blocks; }
  int64_t longest_piece() const { return on_gpu && !reproducible ? kMostParts * longest_part() : longest_part(); }
  ExchangeKind exchange = ExchangeKind::automatic;  // changes no bit of the result
  int64_t exact_tiles = 100'000'000;                // a rank with more list entries than this is counted from sampled rows, and says so
};

}  // namespace longspan::plan
