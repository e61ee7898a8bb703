// The syntax tree of a pattern and the table of terms. Presets never appear in a tree: the parser writes them out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "longspan/error.hpp"

namespace longspan::pattern {

// Largest integer of a pattern (a seed may be larger): far beyond any document, and sums and differences of two still fit.
constexpr int64_t kMaxInteger = int64_t{1} << 60;
constexpr int kMaxNesting = 200;

enum class Term : uint8_t {
  full,
  causal,
  window,
  sink,
  rows,
  columns,
  global,
  segment,
  fixed,
  strided,
  dilated_window,
  dilated_segment,
  power,
  block_window,
  block_power,
  block_columns,
  block_random,
  block_mask,
  longformer,  // presets from here on
  bigbird,
  streaming,
};

struct Parameter {
  std::string_view name;
  int64_t least = 0;
  std::optional<int64_t> standard;  // the default
  int64_t most = kMaxInteger;
  bool is_text = false;
};

struct TermSpec {
  Term term;
  std::string_view name;
  std::vector<Parameter> parameters;
};

std::span<const TermSpec> term_specs();  // in the order of Term
const TermSpec& spec_of(Term term);

using NodePtr = std::shared_ptr<const struct Node>;

struct Node {
  enum class Kind : uint8_t { term, all_of, any_of, none_of };
  Kind kind = Kind::term;
  std::vector<NodePtr> children;  // all_of, any_of: two or more, none of them of the same kind; none_of: one, not a none_of

  Term term = Term::full;
  std::vector<int64_t> arguments;  // by position, defaults filled in; 0 where the parameter is text
  std::string name;                // the text argument
  int64_t column = 0;              // byte of the pattern's text where the term starts
};

// Compositions in normal form: nested ones of the same kind are spliced in, !(!a) is a.
NodePtr make_term(Term term, std::vector<int64_t> arguments, int64_t column);
NodePtr all_of(const std::vector<NodePtr>& factors);
NodePtr any_of(const std::vector<NodePtr>& terms);
NodePtr none_of(const NodePtr& factor);

std::string canonical_text(const Node& tree);
// "0-3,7"; "*" when there is none.
std::string heads_text(const std::vector<std::pair<int, int>>& heads);

// A usage error that shows the line of `text` which holds byte `offset`, and a caret under that character:
//   pattern: unknown term 'windw'
//     causal & windw(3)
//              ^ (column 10); did you mean 'window'?
struct Complaint {
  std::string what, seen, expected, mend;
  ExitCode code = ExitCode::usage;
};
Problem problem_at(const std::string& text, int64_t offset, const Complaint& complaint);

}  // namespace longspan::pattern
