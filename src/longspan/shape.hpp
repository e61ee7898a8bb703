// The shape of an attention problem: one sequence of tokens, made of documents that attend only within themselves.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "longspan/element_type.hpp"

namespace longspan {

struct Shape {
  int64_t tokens = 0;
  int heads = 0;     // query heads; a multiple of kv_heads
  int kv_heads = 0;  // query head h reads KV head h / (heads / kv_heads)
  int head_dim = 0;  // a multiple of 8, 8…256
  ElementType type = ElementType::bfloat16;

  int kv_head_of(int head) const { return head / (heads / kv_heads); }
  bool operator==(const Shape&) const = default;
};

// Document d holds the tokens offsets[d] … offsets[d+1]-1; empty documents are allowed.
class Documents {
 public:
  // `offsets` = 0, …, tokens, not descending. Throws Error(input) otherwise; `from` names the source in the message.
  explicit Documents(std::vector<int64_t> offsets, const std::string& from = "document_offsets");
  static Documents single(int64_t tokens) { return Documents({0, tokens}); }
  // One document after another; throws Error(input) on a negative length.
  static Documents from_lengths(const std::vector<int64_t>& lengths);

  int64_t count() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t tokens() const { return offsets_.back(); }
  int64_t begin(int64_t document) const { return offsets_[static_cast<size_t>(document)]; }
  int64_t length(int64_t document) const { return offsets_[static_cast<size_t>(document) + 1] - begin(document); }
  // The document that holds `token` (0 ≤ token < tokens()).
  int64_t holding(int64_t token) const;
  const std::vector<int64_t>& offsets() const { return offsets_; }

 private:
  std::vector<int64_t> offsets_;
};

}  // namespace longspan
