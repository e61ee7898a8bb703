// The block table of DESIGN section 1: up to 128 consecutive tokens a block; what is owned, and what tile lists count.
//
//   documents of 300, 50, 60, 40, 0, 128 tokens ->  block 0, 1: tokens 0…127, 128…255   (document 0)
//                                                   block 2:    tokens 256…299          (document 0, short: it ends there)
//                                                   block 3:    tokens 300…409          (documents 1 and 2; 40 more would not fit)
//                                                   block 4:    tokens 410…449          (document 3; a long document starts its own block)
//                                                   block 5:    tokens 450…577          (document 5)
#pragma once

#include <cstdint>
#include <vector>

#include "longspan/shape.hpp"
#include "pattern/intervals.hpp"

namespace longspan::plan {

constexpr int64_t kBlock = 128;

class Blocks {
 public:
  explicit Blocks(const Documents& documents);

  int64_t count() const { return count_; }
  Interval tokens(int64_t block) const;
  Intervals tokens(const Intervals& blocks) const;  // of each run
  int32_t rows(int64_t block) const { return static_cast<int32_t>(tokens(block).length()); }
  std::vector<int32_t> rows(const Intervals& blocks) const;  // of each
  int64_t holding(int64_t token) const;

  // Consecutive blocks of one long document, or one block shared by short ones.
  struct Run {
    int64_t first_block = 0, blocks = 0;
    Interval tokens;
    Interval documents;  // one long document; or the short ones (empty ones among them) that share the block
    bool shared = false;
  };
  const Run& run_of(int64_t block) const;
  const std::vector<Run>& runs() const { return runs_; }
  // The blocks that rows of `block` may look at at most: its document's, or itself when it is shared.
  Interval reach(int64_t block) const;

 private:
  std::vector<Run> runs_;
  int64_t count_ = 0;
};

}  // namespace longspan::plan
