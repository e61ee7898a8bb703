#include "pattern/syntax.hpp"

#include <algorithm>
#include <limits>

namespace longspan::pattern {

std::span<const TermSpec> term_specs() {
  constexpr int64_t kAnySeed = std::numeric_limits<int64_t>::max();
  static const std::vector<TermSpec> specs = {
      {Term::full, "full", {}},
      {Term::causal, "causal", {}},
      {Term::window, "window", {{"left"}, {"right", 0, 0}}},
      {Term::sink, "sink", {{"n"}}},
      {Term::rows, "rows", {{"begin"}, {"end"}}},
      {Term::columns, "columns", {{"begin"}, {"end"}}},
      {Term::global, "global", {{"begin"}, {"end"}}},
      {Term::segment, "segment", {{"length", 1}}},
      {Term::fixed, "fixed", {{"stride", 1}, {"width"}}},
      {Term::strided, "strided", {{"stride", 1}}},
      {Term::dilated_window, "dilated_window", {{"left"}, {"right"}, {"dilation", 1}}},
      {Term::dilated_segment, "dilated_segment", {{"length", 1}, {"dilation", 1}, {"offset"}}},
      {Term::power, "power", {{"width", 0, 1}}},
      {Term::block_window, "block_window", {{"block", 1}, {"left"}, {"right"}}},
      {Term::block_power, "block_power", {{"block", 1}}},
      {Term::block_columns, "block_columns", {{"block", 1}, {"stride", 1}, {"begin"}, {"end"}}},
      {Term::block_random,
       "block_random",
       {{"block", 1}, {"count"}, {"seed", 0, std::nullopt, kAnySeed}, {"past", 0, 0, 1}, {"per_head", 0, 0, 1}}},
      {Term::block_mask, "block_mask", {{"name", 0, std::nullopt, 0, true}, {"block", 1}}},
      {Term::longformer, "longformer", {{"window", 1}, {"global", 1}}},
      {Term::bigbird, "bigbird", {{"block", 1, 64}, {"window", 1, 3}, {"random", 1, 3}, {"global", 1, 1}, {"seed", 0, 0, kAnySeed}}},
      {Term::streaming, "streaming", {{"sinks", 1}, {"window", 1}}},
  };
  return specs;
}

const TermSpec& spec_of(Term term) { return term_specs()[static_cast<size_t>(term)]; }

NodePtr make_term(Term term, std::vector<int64_t> arguments, int64_t column) {
  auto node = std::make_shared<Node>();
  node->term = term, node->arguments = std::move(arguments), node->column = column;
  return node;
}

namespace {

NodePtr composition(Node::Kind kind, const std::vector<NodePtr>& parts) {
  if (parts.size() == 1) return parts.front();
  auto node = std::make_shared<Node>();
  node->kind = kind;
  for (const NodePtr& part : parts) {
    if (part->kind == kind) {
      node->children.insert(node->children.end(), part->children.begin(), part->children.end());
    } else {
      node->children.push_back(part);
    }
  }
  return node;
}

}  // namespace

NodePtr all_of(const std::vector<NodePtr>& factors) { return composition(Node::Kind::all_of, factors); }
NodePtr any_of(const std::vector<NodePtr>& terms) { return composition(Node::Kind::any_of, terms); }

NodePtr none_of(const NodePtr& factor) {
  if (factor->kind == Node::Kind::none_of) return factor->children.front();
  auto node = std::make_shared<Node>();
  node->kind = Node::Kind::none_of, node->children = {factor};
  return node;
}

namespace {

std::string in_parentheses(const Node& tree) { return std::string(1, '(').append(canonical_text(tree)).append(")"); }

}  // namespace

std::string canonical_text(const Node& tree) {
  switch (tree.kind) {
    case Node::Kind::term: {
      const TermSpec& spec = spec_of(tree.term);
      std::string text(spec.name);
      for (size_t k = 0; k < spec.parameters.size(); ++k) {
        text += k == 0 ? "(" : ", ";
        text += spec.parameters[k].is_text ? '"' + tree.name + '"' : std::to_string(tree.arguments[k]);
      }
      return spec.parameters.empty() ? text : text + ")";
    }
    case Node::Kind::none_of: {
      const Node& child = *tree.children.front();
      return child.kind == Node::Kind::term ? std::string(1, '!').append(canonical_text(child))
                                            : std::string(1, '!').append(in_parentheses(child));
    }
    case Node::Kind::all_of:
    case Node::Kind::any_of:
      break;
  }
  const bool all = tree.kind == Node::Kind::all_of;
  std::string text;
  for (const NodePtr& child : tree.children) {
    if (!text.empty()) text += all ? " & " : " | ";
    text += all && child->kind == Node::Kind::any_of ? in_parentheses(*child) : canonical_text(*child);
  }
  return text;
}

std::string heads_text(const std::vector<std::pair<int, int>>& heads) {
  std::string text;
  for (const auto& [first, last] : heads) {
    if (!text.empty()) text += ",";
    text += std::to_string(first);
    if (last != first) text.append("-").append(std::to_string(last));
  }
  return text.empty() ? "*" : text;
}

namespace {

bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }  // of UTF-8

}  // namespace

Problem problem_at(const std::string& text, int64_t offset, const Complaint& complaint) {
  constexpr size_t kShown = 100;  // bytes of a long line, about half of them before the caret
  const size_t at = std::min(static_cast<size_t>(offset), text.size());
  const size_t line_begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;  // npos + 1 is 0
  const size_t line_end = std::min(text.find('\n', at), text.size());
  size_t begin = line_begin, end = line_end;
  if (end - begin > kShown) {
    begin = at - begin > kShown / 2 ? at - kShown / 2 : begin;
    end = std::min(end, begin + kShown);
    if (end - begin < kShown) begin = end - kShown;
    while (begin > line_begin && continues_character(text[begin])) --begin;
    while (end < line_end && continues_character(text[end])) ++end;
  }
  std::string shown = begin > line_begin ? "  …" : "  ";
  std::string under = begin > line_begin ? "   " : "  ";
  for (size_t k = begin; k < end; ++k) {
    const bool printable = static_cast<unsigned char>(text[k]) >= ' ' && text[k] != 0x7f;
    shown += printable ? text[k] : ' ';
    if (k < at && !continues_character(text[k])) under += ' ';
  }
  if (end < line_end) shown += "…";

  const auto is_start = [](char byte) { return !continues_character(byte); };
  const auto begin_at = text.begin() + static_cast<int64_t>(line_begin), point_at = text.begin() + static_cast<int64_t>(at);
  std::string from = "column " + std::to_string(std::count_if(begin_at, point_at, is_start) + 1);
  if (text.find('\n') != std::string::npos) from = "line " + std::to_string(std::count(text.begin(), begin_at, '\n') + 1) + ", " + from;
  return {.code = complaint.code,
          .what = complaint.what + "\n" + shown + "\n" + under + "^",
          .seen = complaint.seen,
          .expected = complaint.expected,
          .from = from,
          .mend = complaint.mend};
}

}  // namespace longspan::pattern
