// Block lists held in memory, for library users and tests; files have their own source (src/io).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "longspan/shape.hpp"
#include "pattern.hpp"  // from beside this file, as pattern.hpp says

namespace longspan::pattern {

// The layout of /block_masks/<name> (DESIGN section 3): indptr [list_heads][rows + 1], absolute into `indices`; rows are the documents'
// ⌈length/block⌉ row blocks one after another; `indices` are key blocks of the row's document, ascending and distinct in a row.
class MemoryBlockMask : public BlockMaskSource {
 public:
  // Copies nothing but what it is given by value. Throws Error(input), naming `from`, head and row, when the lists are not as above.
  MemoryBlockMask(int64_t block, const Documents& documents, int list_heads, std::vector<int64_t> indptr, std::vector<int64_t> indices,
                  const std::string& from = "block lists in memory");
  // lists[list head][row block] = key blocks.
  static MemoryBlockMask from_lists(int64_t block, const Documents& documents, const std::vector<std::vector<std::vector<int64_t>>>& lists);

  int64_t block() const override { return block_; }
  int list_heads() const override { return list_heads_; }
  std::vector<int64_t> row(int list_head, int64_t row_block) const override;

 private:
  int64_t block_;
  int list_heads_;
  int64_t rows_ = 0;
  std::vector<int64_t> indptr_, indices_;
};

}  // namespace longspan::pattern
