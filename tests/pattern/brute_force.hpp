// The terms of DESIGN section 4 as plain predicates on pairs, written from its table and sharing nothing with src/pattern but the
// vocabulary; and the comparison of a bound pattern with them, pair by pair.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "pattern/pattern.hpp"

namespace longspan::pattern::brute {

struct Pair {
  int64_t document, length;  // the document and its tokens
  int head, kv_head;
  int64_t i, j;
};
using Predicate = std::function<bool(const Pair&)>;

// A pattern text and what it ought to mean.
struct Meaning {
  std::string text;
  Predicate allows;
};

// lists[name][list head][row block] for block_mask; the blocks are those of the uses below.
struct Masks {
  std::map<std::string, std::vector<std::vector<std::vector<int64_t>>>> lists;
  std::map<std::string, int64_t> block;
  std::map<std::string, std::vector<int64_t>> first_row;  // per document
  std::vector<std::shared_ptr<const BlockMaskSource>> sources_for(const Pattern& pattern, const Documents& documents) const;
};
// "one" (1 list head, block 32), "perkv" (kv_heads, block 64), "perhead" (heads, block 7): random lists.
Masks random_masks(const Documents& documents, int heads, int kv_heads, std::mt19937& random);

// Any term with random arguments that fit documents of about `size` tokens.
Meaning random_term(std::mt19937& random, int64_t size, const Masks& masks);
// A composition at most `depth` operators deep.
Meaning random_pattern(std::mt19937& random, int depth, int64_t size, const Masks& masks);

// Compares allowed, keys and tiles of every group and document with `allows`. `exact`: for several rows, too, keys() must give exactly
// the union (may) and the intersection (must) of the rows' keys; only compositions may be looser.
void expect_agreement(const BoundPattern& bound, int heads, int kv_heads, const Predicate& allows, bool exact, std::mt19937& random);

// The pairs a mask stands for, read from its form alone.
TileBits expanded(const TileMask& mask, int rows, int keys);

}  // namespace longspan::pattern::brute
