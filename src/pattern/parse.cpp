// Recursive descent over the grammar of DESIGN section 4. Every complaint points at a byte of the text.
#include <algorithm>
#include <limits>

#include "longspan/error.hpp"
#include "pattern/pattern.hpp"
#include "pattern/syntax.hpp"

namespace longspan::pattern {
namespace {

constexpr int64_t kMaxHead = 1'000'000;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name(char c) { return is_name_start(c) || is_digit(c); }
bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

struct Value {
  int64_t number = 0;
  std::string text;
  bool is_text = false;
};

struct Argument {
  std::string key;  // empty: by position
  int64_t key_at = 0;
  Value value;
  int64_t value_at = 0;
};

std::string quoted(std::string_view name) { return std::string(1, '\'').append(name).append("'"); }

std::string usage_of(const TermSpec& spec) {
  std::string text(spec.name);
  for (size_t k = 0; k < spec.parameters.size(); ++k) {
    const Parameter& parameter = spec.parameters[k];
    text += (k == 0 ? "(" : ", ") + std::string(parameter.name);
    if (parameter.standard) text.append("=").append(std::to_string(*parameter.standard));
  }
  return spec.parameters.empty() ? text : text + ")";
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  std::vector<Pattern::Rule> rules() {
    skip_blanks();
    if (at_end()) fail(at_, {.what = "pattern: it is empty", .expected = "a term", .mend = "write 'full' for dense attention"});
    std::vector<Pattern::Rule> rules;
    int64_t star = -1;
    do {
      skip_blanks();
      Pattern::Rule rule;
      rule.column = static_cast<int>(at_);
      if (!at_end() && (is_digit(peek()) || peek() == '*')) rule.heads = heads();
      rule.tree = parse_union();
      if (rule.heads.empty()) {
        if (star >= 0) {
          fail(rule.column, {.what = "pattern: two rules are for all other heads",
                             .mend = "name the heads of one of them, as in '0-3: causal; *: full', or join them with '|'"});
        }
        star = rule.column;
      }
      rules.push_back(std::move(rule));
    } while (take(';'));
    if (!at_end()) fail(at_, {.what = "pattern: unexpected " + here(), .expected = "'|', '&', ';' or the end"});
    return rules;
  }

 private:
  [[noreturn]] void fail(int64_t at, const Complaint& complaint) const { throw Error(problem_at(text_, at, complaint)); }

  bool at_end() const { return at_ == static_cast<int64_t>(text_.size()); }
  char peek() const { return at_end() ? '\0' : text_[static_cast<size_t>(at_)]; }
  void skip_blanks() {
    while (!at_end() && is_blank(peek())) ++at_;
  }
  bool take(char wanted) {
    skip_blanks();
    if (at_end() || peek() != wanted) return false;
    ++at_;
    return true;
  }
  template <class Predicate>
  std::string take_while(Predicate belongs) {
    const int64_t begin = at_;
    while (!at_end() && belongs(peek())) ++at_;
    return text_.substr(static_cast<size_t>(begin), static_cast<size_t>(at_ - begin));
  }

  // What stands at the current place, for messages: a name or number in full, else one character.
  std::string here() const {
    if (at_end()) return "end";
    int64_t end = at_ + 1;
    const auto byte = [&](int64_t k) { return text_[static_cast<size_t>(k)]; };
    const int64_t size = static_cast<int64_t>(text_.size());
    if (is_name(peek())) {
      while (end < size && is_name(byte(end))) ++end;
    } else {
      while (end < size && (static_cast<unsigned char>(byte(end)) & 0xc0) == 0x80) ++end;
    }
    return quoted(text_.substr(static_cast<size_t>(at_), static_cast<size_t>(end - at_)));
  }

  std::vector<std::pair<int, int>> heads() {
    std::vector<std::pair<int, int>> ranges;
    if (!take('*')) {
      do {
        skip_blanks();
        const int64_t at = at_;
        const int first = head_number();
        const int last = take('-') ? head_number() : first;
        if (last < first) {
          fail(at, {.what = "pattern: a range of heads runs backwards",
                    .seen = std::to_string(first) + "-" + std::to_string(last),
                    .mend = "write " + std::to_string(last) + "-" + std::to_string(first)});
        }
        ranges.emplace_back(first, last);
      } while (take(','));
    }
    skip_blanks();
    if (!take(':')) fail(at_, {.what = "pattern: expected ':' after the heads of a rule", .seen = here()});
    std::sort(ranges.begin(), ranges.end());
    std::vector<std::pair<int, int>> merged;
    for (const auto& range : ranges) {
      if (!merged.empty() && range.first <= merged.back().second + 1) {
        merged.back().second = std::max(merged.back().second, range.second);
      } else {
        merged.push_back(range);
      }
    }
    return merged;
  }

  int head_number() {
    skip_blanks();
    const int64_t at = at_;
    const std::string digits = take_while(is_digit);
    if (digits.empty() || is_name(peek())) {
      at_ = at;
      fail(at, {.what = "pattern: expected the number of a head", .seen = here()});
    }
    if (digits.size() > 9 || std::stoll(digits) > kMaxHead) {
      fail(at, {.what = "pattern: the number of a head is too large", .seen = digits, .expected = "at most " + std::to_string(kMaxHead)});
    }
    return static_cast<int>(std::stoll(digits));
  }

  NodePtr parse_union() {
    std::vector<NodePtr> parts;
    do parts.push_back(parse_intersection());
    while (take('|'));
    return any_of(parts);
  }

  NodePtr parse_intersection() {
    std::vector<NodePtr> parts;
    do parts.push_back(parse_factor());
    while (take('&'));
    return all_of(parts);
  }

  NodePtr parse_factor() {
    if (take('!')) return none_of(parse_plain_factor());
    return parse_plain_factor();
  }

  NodePtr parse_plain_factor() {
    skip_blanks();
    const int64_t at = at_;
    if (take('(')) {
      deeper(1, at);
      NodePtr inner = parse_union();
      skip_blanks();
      if (!take(')')) fail(at_, {.what = "pattern: expected ')'", .seen = here(), .mend = "its '(' is at byte " + std::to_string(at + 1)});
      --nesting_;
      return inner;
    }
    if (at_end() || !is_name_start(peek())) fail(at, {.what = "pattern: expected a term", .seen = here()});
    const std::string name = take_while(is_name);
    const auto specs = term_specs();
    const auto spec = std::find_if(specs.begin(), specs.end(), [&](const TermSpec& known) { return known.name == name; });
    if (spec == specs.end()) unknown_term(name, at);
    return parse_term(*spec, at);
  }

  void deeper(int levels, int64_t at) {
    nesting_ += levels;
    if (nesting_ > kMaxNesting) {
      fail(at, {.what = "pattern: parentheses are nested too deep", .expected = "at most " + std::to_string(kMaxNesting) + " levels"});
    }
  }

  [[noreturn]] void unknown_term(const std::string& name, int64_t at) const {
    std::vector<std::string> names;
    std::string all;
    for (const TermSpec& spec : term_specs()) {
      names.emplace_back(spec.name);
      all += (all.empty() ? "" : ", ") + names.back();
    }
    const std::string nearest = nearest_name(name, names);
    Complaint complaint{.what = "pattern: unknown term " + quoted(name)};
    if (nearest.empty()) {
      complaint.expected = "one of " + all;
    } else {
      complaint.mend = "did you mean " + quoted(nearest) + "?";
    }
    fail(at, complaint);
  }

  // 4096, 4k, 4Ki, -3
  int64_t number() {
    const int64_t at = at_;
    const bool negative = take('-');
    skip_blanks();
    const std::string digits = take_while(is_digit);
    if (digits.empty()) {
      at_ = at;
      fail(at, {.what = "pattern: expected an integer or a \"text\"", .seen = here()});
    }
    const int64_t suffix_at = at_;
    const std::string suffix = take_while(is_name);
    int64_t factor = 1;
    if (suffix == "k") {
      factor = 1000;
    } else if (suffix == "M") {
      factor = 1'000'000;
    } else if (suffix == "Ki") {
      factor = int64_t{1} << 10;
    } else if (suffix == "Mi") {
      factor = int64_t{1} << 20;
    } else if (!suffix.empty()) {
      fail(suffix_at,
           {.what = "pattern: unknown suffix " + quoted(suffix), .expected = "k (1000), M (1000000), Ki (1024) or Mi (1048576)"});
    }
    int64_t value = 0;
    bool overflow = false;
    for (char digit : digits) overflow |= __builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, digit - '0', &value);
    overflow |= __builtin_mul_overflow(value, factor, &value);
    if (overflow) {
      fail(at, {.what = "pattern: an integer is too large",
                .seen = digits + suffix,
                .expected = "at most " + std::to_string(std::numeric_limits<int64_t>::max())});
    }
    return negative ? -value : value;
  }

  Value value() {
    skip_blanks();
    const int64_t at = at_;
    if (peek() != '"') return {.number = number()};
    ++at_;
    Value text{.text = take_while([](char c) { return c != '"' && c != '\n'; }), .is_text = true};
    if (peek() != '"') fail(at, {.what = "pattern: a text has no closing '\"'"});
    ++at_;
    return text;
  }

  std::vector<Argument> arguments(const TermSpec& spec) {
    std::vector<Argument> given;
    if (!take('(')) return given;
    skip_blanks();
    if (peek() == ')') {
      const bool plain = std::all_of(spec.parameters.begin(), spec.parameters.end(), [](const Parameter& p) { return p.standard; });
      fail(at_, {.what = "pattern: expected an argument",
                 .seen = here(),
                 .mend = plain ? "write " + quoted(spec.name) + " without parentheses" : "write " + quoted(usage_of(spec))});
    }
    do {
      skip_blanks();
      Argument argument;
      argument.key_at = at_;
      if (is_name_start(peek())) {
        const std::string key = take_while(is_name);
        if (!take('=')) {
          at_ = argument.key_at;
          fail(at_, {.what = "pattern: expected an integer, a \"text\" or key=value", .seen = here()});
        }
        argument.key = key;
      }
      skip_blanks();
      argument.value_at = at_;
      argument.value = value();
      given.push_back(std::move(argument));
    } while (take(','));
    skip_blanks();
    if (!take(')')) fail(at_, {.what = "pattern: expected ',' or ')'", .seen = here()});
    return given;
  }

  NodePtr parse_term(const TermSpec& spec, int64_t at) {
    const std::string who = "pattern: " + std::string(spec.name);
    const std::vector<Argument> given = arguments(spec);
    const size_t count = spec.parameters.size();
    std::vector<const Argument*> bound(count, nullptr);
    for (size_t k = 0; k < given.size(); ++k) {
      const Argument& argument = given[k];
      size_t index = k;
      if (argument.key.empty()) {
        if (k > 0 && !given[k - 1].key.empty()) {
          fail(argument.value_at, {.what = who + ": an argument by position follows one by name", .mend = "write it as key=value"});
        }
        if (k >= count) {
          fail(argument.value_at, {.what = who + (count == 0 ? " takes no arguments" : ": too many arguments"),
                                   .expected = count == 0 ? "" : quoted(usage_of(spec))});
        }
      } else {
        index = index_of(spec, argument, who);
      }
      if (bound[index]) fail(argument.key_at, {.what = who + ": argument " + quoted(spec.parameters[index].name) + " is given twice"});
      bound[index] = &argument;
    }
    auto node = std::make_shared<Node>();
    node->term = spec.term, node->column = at;
    std::vector<int64_t> places(count, at);
    for (size_t k = 0; k < count; ++k) {
      const Parameter& parameter = spec.parameters[k];
      if (!bound[k] && !parameter.standard) {
        fail(at, {.what = who + ": argument " + quoted(parameter.name) + " is missing", .expected = quoted(usage_of(spec))});
      }
      if (bound[k]) places[k] = bound[k]->value_at;
      const Value value = bound[k] ? bound[k]->value : Value{.number = *parameter.standard};
      check_value(parameter, value, places[k], who);
      node->arguments.push_back(value.number);
      if (parameter.is_text) node->name = value.text;
    }
    check_together(*node, places, who);
    return written_out(node, places);
  }

  size_t index_of(const TermSpec& spec, const Argument& argument, const std::string& who) const {
    std::vector<std::string> names;
    for (const Parameter& parameter : spec.parameters) names.emplace_back(parameter.name);
    const auto found = std::find(names.begin(), names.end(), argument.key);
    if (found != names.end()) return static_cast<size_t>(found - names.begin());
    const std::string nearest = nearest_name(argument.key, names);
    Complaint complaint{.what = who + ": unknown argument " + quoted(argument.key), .expected = quoted(usage_of(spec))};
    if (!nearest.empty()) complaint.mend = "did you mean " + quoted(nearest) + "?";
    fail(argument.key_at, complaint);
  }

  void check_value(const Parameter& parameter, const Value& value, int64_t at, const std::string& who) const {
    const std::string which = who + ": " + quoted(parameter.name);
    if (value.is_text != parameter.is_text) {
      fail(at, {.what = which + (parameter.is_text ? " is a text, in double quotes" : " is an integer, without quotes")});
    }
    if (parameter.is_text) {
      if (value.text.empty()) fail(at, {.what = which + " is empty"});
      return;
    }
    if (value.number < parameter.least) {
      fail(at, {.what = which + " is too small",
                .seen = std::to_string(value.number),
                .expected = "at least " + std::to_string(parameter.least)});
    }
    if (value.number > parameter.most) {
      fail(
          at,
          {.what = which + " is too large", .seen = std::to_string(value.number), .expected = "at most " + std::to_string(parameter.most)});
    }
  }

  // Rules that concern two arguments, and the odd windows.
  void check_together(const Node& node, const std::vector<int64_t>& places, const std::string& who) const {
    const auto& a = node.arguments;
    const auto ordered = [&](size_t begin) {
      if (a[begin] <= a[begin + 1]) return;
      fail(places[begin],
           {.what = who + ": 'begin' is after 'end'", .seen = std::to_string(a[begin]) + " and " + std::to_string(a[begin + 1])});
    };
    const auto odd = [&](size_t window, const char* unit) {
      if (a[window] % 2 == 1) return;
      fail(places[window], {.what = who + ": 'window' is even: it counts all " + unit + ", the query's own in the middle",
                            .seen = std::to_string(a[window]),
                            .expected = "an odd number",
                            .mend = "write " + std::to_string(a[window] + 1)});
    };
    switch (node.term) {
      case Term::rows:
      case Term::columns:
      case Term::global:
        return ordered(0);
      case Term::block_columns:
        return ordered(2);
      case Term::fixed:
        if (a[1] > a[0]) {
          fail(places[1], {.what = who + ": 'width' is larger than 'stride'",
                           .seen = std::to_string(a[1]),
                           .expected = "at most " + std::to_string(a[0])});
        }
        return;
      case Term::dilated_segment:
        if (a[2] >= a[1]) {
          fail(places[2], {.what = who + ": 'offset' is not below 'dilation'",
                           .seen = std::to_string(a[2]),
                           .expected = "at most " + std::to_string(a[1] - 1)});
        }
        return;
      case Term::longformer:
        return odd(0, "keys");
      case Term::bigbird:
        return odd(1, "blocks");
      default:
        return;
    }
  }

  NodePtr written_out(const NodePtr& node, const std::vector<int64_t>& places) {
    if (node->term < Term::longformer) return node;
    // Written out, a preset may need two pairs of parentheses: !streaming(4, 8) is !(causal & (sink(4) | window(7, 0))).
    deeper(2, node->column);
    nesting_ -= 2;
    const auto& a = node->arguments;
    const auto term = [&](Term name, std::vector<int64_t> arguments) { return make_term(name, std::move(arguments), node->column); };
    if (node->term == Term::longformer) {
      const int64_t half = (a[0] - 1) / 2;
      return any_of({term(Term::window, {half, half}), term(Term::global, {0, a[1]})});
    }
    if (node->term == Term::bigbird) {
      const int64_t block = a[0], half = (a[1] - 1) / 2;
      int64_t tokens = 0;
      if (__builtin_mul_overflow(a[3], block, &tokens) || tokens > kMaxInteger) {
        fail(places[3],
             {.what = "pattern: bigbird: 'global' times 'block' is too large", .expected = "at most " + std::to_string(kMaxInteger)});
      }
      return any_of({term(Term::block_window, {block, half, half}), term(Term::block_random, {block, a[2], a[4], 0, 0}),
                     term(Term::global, {0, tokens})});
    }
    return all_of({term(Term::causal, {}), any_of({term(Term::sink, {a[0]}), term(Term::window, {a[1] - 1, 0})})});
  }

  const std::string& text_;
  int64_t at_ = 0;
  int nesting_ = 0;
};

void collect_masks(const Node& node, std::vector<Pattern::BlockMaskUse>& uses) {
  for (const NodePtr& child : node.children) collect_masks(*child, uses);
  if (node.kind != Node::Kind::term || node.term != Term::block_mask) return;
  const auto same = [&](const Pattern::BlockMaskUse& use) { return use.name == node.name && use.block == node.arguments[1]; };
  if (std::none_of(uses.begin(), uses.end(), same)) uses.push_back({node.name, node.arguments[1]});
}

}  // namespace

Pattern Pattern::parse(const std::string& text) {
  Pattern pattern;
  pattern.text_ = text;
  pattern.rules_ = Parser(pattern.text_).rules();
  return pattern;
}

std::string Pattern::canonical() const {
  std::string text;
  for (const Rule& rule : rules_) {
    if (!text.empty()) text += "; ";
    if (rules_.size() > 1 || !rule.heads.empty()) text += heads_text(rule.heads) + ": ";
    text += canonical_text(*rule.tree);
  }
  return text;
}

std::vector<Pattern::BlockMaskUse> Pattern::block_masks() const {
  std::vector<BlockMaskUse> uses;
  for (const Rule& rule : rules_) collect_masks(*rule.tree, uses);
  return uses;
}

}  // namespace longspan::pattern
