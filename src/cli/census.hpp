// Counts what a pattern allows, exactly, without visiting every tile: runs of full tiles are counted as intervals, equal masks once, and
// patterns of i − j alone by their distances.
#pragma once

#include <cstdint>
#include <vector>

#include "pattern/pattern.hpp"
#include "report/block_map.hpp"

namespace longspan::cli {

struct GroupCensus {
  std::vector<int> heads;
  int rule = 0;
  int64_t pairs = 0;                      // allowed (query, key) pairs of one head
  int64_t pairs_ahead = 0;                // those with key > query
  int64_t full = 0, partial = 0;          // tiles of at most 128×128
  int64_t least_keys = 0, most_keys = 0;  // of a query
  report::BlockMap map;
};

struct Census {
  int64_t tokens = 0, documents = 0;
  int64_t blocks = 0;
  int64_t tiles = 0;         // blocks²: all tiles; those that are neither full nor partial are empty
  int64_t causal_pairs = 0;  // pairs of one document with key <= query
  int64_t all_pairs = 0;     // pairs of one document
  std::vector<GroupCensus> groups;
};

// Time in proportion to the runs of tiles that are not empty; memory bounded. Works on `threads` threads.
Census take_census(const pattern::BoundPattern& pattern, int threads);

}  // namespace longspan::cli
