#include "pattern/block_mask.hpp"

#include "longspan/error.hpp"

namespace longspan::pattern {

MemoryBlockMask::MemoryBlockMask(int64_t block, const Documents& documents, int list_heads, std::vector<int64_t> indptr,
                                 std::vector<int64_t> indices, const std::string& from)
    : block_(block), list_heads_(list_heads), indptr_(std::move(indptr)), indices_(std::move(indices)) {
  const auto bad = [&](const std::string& what, const std::string& seen, const std::string& expected, const std::string& where) {
    throw Error({.code = ExitCode::input, .what = what, .seen = seen, .expected = expected, .from = from + where});
  };
  if (block < 1) bad("the block of stored block lists is not positive", std::to_string(block), "at least 1", "");
  if (list_heads < 1) bad("stored block lists are for no head", std::to_string(list_heads), "at least 1", "");
  std::vector<int64_t> blocks_of_row;  // blocks in the row's document
  for (int64_t document = 0; document < documents.count(); ++document) {
    const int64_t length = documents.length(document), blocks = length / block + (length % block != 0);
    blocks_of_row.insert(blocks_of_row.end(), static_cast<size_t>(blocks), blocks);
  }
  rows_ = static_cast<int64_t>(blocks_of_row.size());
  const int64_t entries = static_cast<int64_t>(list_heads) * (rows_ + 1);
  if (static_cast<int64_t>(indptr_.size()) != entries) {
    bad("indptr has the wrong size", std::to_string(indptr_.size()),
        std::to_string(entries) + " (list heads × (" + std::to_string(rows_) + " row blocks + 1))", "");
  }
  for (int head = 0; head < list_heads; ++head) {
    for (int64_t row = 0; row < rows_; ++row) {
      const std::string where = ", list head " + std::to_string(head) + ", row block " + std::to_string(row);
      const int64_t* bounds = indptr_.data() + head * (rows_ + 1) + row;
      if (bounds[0] < 0 || bounds[1] < bounds[0] || bounds[1] > static_cast<int64_t>(indices_.size())) {
        bad("indptr does not ascend inside the indices", std::to_string(bounds[0]) + ", " + std::to_string(bounds[1]),
            "0 … " + std::to_string(indices_.size()) + ", none smaller than the one before", where);
      }
      int64_t last = -1;
      for (int64_t entry = bounds[0]; entry < bounds[1]; ++entry) {
        const int64_t key_block = indices_[static_cast<size_t>(entry)];
        const int64_t blocks = blocks_of_row[static_cast<size_t>(row)];
        if (key_block < 0 || key_block >= blocks) {
          bad("a key block is outside its document", std::to_string(key_block), "0 … " + std::to_string(blocks - 1), where);
        }
        if (key_block <= last) {
          bad("key blocks do not ascend", std::to_string(last) + " before " + std::to_string(key_block), "ascending and distinct", where);
        }
        last = key_block;
      }
    }
  }
}

MemoryBlockMask MemoryBlockMask::from_lists(int64_t block, const Documents& documents,
                                            const std::vector<std::vector<std::vector<int64_t>>>& lists) {
  std::vector<int64_t> indptr, indices;
  for (const auto& head : lists) {
    indptr.push_back(static_cast<int64_t>(indices.size()));
    for (const auto& row : head) {
      indices.insert(indices.end(), row.begin(), row.end());
      indptr.push_back(static_cast<int64_t>(indices.size()));
    }
  }
  return MemoryBlockMask(block, documents, static_cast<int>(lists.size()), std::move(indptr), std::move(indices));
}

std::vector<int64_t> MemoryBlockMask::row(int list_head, int64_t row_block) const {
  const int64_t* bounds = indptr_.data() + list_head * (rows_ + 1) + row_block;
  return {indices_.begin() + bounds[0], indices_.begin() + bounds[1]};
}

}  // namespace longspan::pattern
