#include <algorithm>

#include "longspan/error.hpp"
#include "pattern/expression.hpp"
#include "pattern/pattern.hpp"

namespace longspan::pattern {

struct BoundPattern::State {
  Documents documents;
  std::vector<Expression> rules;
  std::vector<HeadGroup> groups;
  std::vector<int> group_of_head;
  std::vector<int> kv_head_of_group;

  Where where(int group, int64_t document) const {
    const auto g = static_cast<size_t>(group);
    return {document, documents.length(document), groups[g].heads.front(), kv_head_of_group[g]};
  }
  const Expression& rule_of(int group) const { return rules[static_cast<size_t>(groups[static_cast<size_t>(group)].rule)]; }
};

namespace {

std::string rule_text(const Pattern::Rule& rule) {
  std::string text(1, '\'');
  return text.append(heads_text(rule.heads)).append(": ").append(canonical_text(*rule.tree)).append("'");
}

std::string heads_named(const std::vector<int>& heads) {
  std::vector<std::pair<int, int>> ranges;
  for (int head : heads) {
    if (!ranges.empty() && ranges.back().second + 1 == head) {
      ranges.back().second = head;
    } else {
      ranges.emplace_back(head, head);
    }
  }
  return (heads.size() == 1 ? "head " : "heads ") + heads_text(ranges) + (heads.size() == 1 ? " is" : " are");
}

// The rule of every head. Throws Error(usage) with all that is wrong.
std::vector<int> rules_of_heads(const Pattern& pattern, int heads) {
  const auto& rules = pattern.rules();
  std::vector<Problem> problems;
  const auto complain = [&](const Pattern::Rule& rule, const Complaint& complaint) {
    problems.push_back(problem_at(pattern.text(), rule.column, complaint));
  };
  std::vector<int> rule_of(static_cast<size_t>(heads), -1);
  int star = -1;
  for (size_t r = 0; r < rules.size(); ++r) {
    const Pattern::Rule& rule = rules[r];
    if (rule.heads.empty()) star = static_cast<int>(r);
    std::vector<std::vector<int>> shared(r);  // heads that an earlier rule has already
    for (const auto& [first, last] : rule.heads) {
      if (last >= heads) {
        complain(rule, {.what = "pattern: a head is out of range",
                        .seen = std::to_string(last),
                        .expected = heads == 1 ? "0: there is one head" : "0…" + std::to_string(heads - 1),
                        .mend = "there are " + std::to_string(heads) + " query heads"});
      }
      for (int head = first; head <= std::min(last, heads - 1); ++head) {
        int& owner = rule_of[static_cast<size_t>(head)];
        if (owner >= 0) {
          shared[static_cast<size_t>(owner)].push_back(head);
        } else {
          owner = static_cast<int>(r);
        }
      }
    }
    for (size_t other = 0; other < r; ++other) {
      if (shared[other].empty()) continue;
      complain(rule, {.what = "pattern: " + heads_named(shared[other]) + " in two rules",
                      .seen = rule_text(rules[other]) + " and " + rule_text(rule),
                      .mend = "name each head once, or join the rules with '|'"});
    }
  }
  std::vector<int> left;
  for (int head = 0; head < heads; ++head) {
    int& owner = rule_of[static_cast<size_t>(head)];
    if (owner >= 0) continue;
    left.push_back(head);
    owner = star;
  }
  if (star < 0 && !left.empty()) {
    complain(rules.back(),
             {.what = "pattern: " + heads_named(left) + " in no rule", .mend = "add a rule for all others, such as '*: full'"});
  }
  if (star >= 0 && left.empty()) {
    complain(rules[static_cast<size_t>(star)], {.what = "pattern: a rule names no head",
                                                .seen = rule_text(rules[static_cast<size_t>(star)]),
                                                .mend = "leave it out: the other rules name all " + std::to_string(heads) + " heads"});
  }
  if (!problems.empty()) throw Error(std::move(problems));
  return rule_of;
}

}  // namespace

BoundPattern::BoundPattern(const Pattern& pattern, int heads, int kv_heads, Documents documents,
                           std::vector<std::shared_ptr<const BlockMaskSource>> sources) {
  if (pattern.rules().empty()) throw Error({.code = ExitCode::usage, .what = "pattern: it is empty", .expected = "a term"});
  if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0) {
    throw Error({.code = ExitCode::usage,
                 .what = "heads are not a multiple of KV heads",
                 .seen = std::to_string(heads) + " and " + std::to_string(kv_heads)});
  }
  const std::vector<int> rule_of = rules_of_heads(pattern, heads);
  const auto masks = pattern.block_masks();
  for (size_t k = 0; k < masks.size(); ++k) {
    if (k < sources.size() && sources[k]) continue;
    throw Error({.code = ExitCode::usage,
                 .what = "pattern: block_mask(\"" + masks[k].name + "\", " + std::to_string(masks[k].block) + ") has no stored lists",
                 .mend = "give an input that holds /block_masks/" + masks[k].name});
  }

  auto state = std::make_unique<State>(State{.documents = std::move(documents)});
  LoweringContext context{.documents = state->documents, .heads = heads, .kv_heads = kv_heads, .masks = masks, .sources = sources};
  for (int64_t document = 0; document < state->documents.count(); ++document) {
    context.longest = std::max(context.longest, state->documents.length(document));
  }
  state->group_of_head.resize(static_cast<size_t>(heads));
  for (size_t r = 0; r < pattern.rules().size(); ++r) {
    state->rules.push_back(lowered(*pattern.rules()[r].tree, context));
    const BlockLists::PerHead finest = state->rules.back().per_head();
    int last_list = -1;
    for (int head = 0; head < heads; ++head) {
      if (rule_of[static_cast<size_t>(head)] != static_cast<int>(r)) continue;
      const int kv_head = head / (heads / kv_heads);
      const int list = finest == BlockLists::PerHead::none ? 0 : finest == BlockLists::PerHead::kv_head ? kv_head : head;
      if (list != last_list) {
        state->groups.push_back({.rule = static_cast<int>(r)});
        state->kv_head_of_group.push_back(kv_head);
        last_list = list;
      }
      state->groups.back().heads.push_back(head);
      state->group_of_head[static_cast<size_t>(head)] = static_cast<int>(state->groups.size()) - 1;
    }
  }
  state_ = std::move(state);
}

BoundPattern::~BoundPattern() = default;
BoundPattern::BoundPattern(BoundPattern&&) noexcept = default;

const std::vector<HeadGroup>& BoundPattern::groups() const { return state_->groups; }
int BoundPattern::group_of(int head) const { return state_->group_of_head[static_cast<size_t>(head)]; }
const Documents& BoundPattern::documents() const { return state_->documents; }

bool BoundPattern::allowed(int group, int64_t document, int64_t i, int64_t j) const {
  return state_->rule_of(group).allowed(state_->where(group, document), i, j);
}

BoundPattern::Keys BoundPattern::keys(int group, int64_t document, Interval rows, Interval clip) const {
  const Where where = state_->where(group, document);
  rows = overlap(rows, {0, where.length}), clip = overlap(clip, {0, where.length});
  if (rows.empty() || clip.empty()) return {};
  Keys keys = state_->rule_of(group).keys(where, rows, clip);
  if (rows.length() == 1) keys.must = keys.may;
  return keys;
}

Coverage BoundPattern::tile(int group, int64_t document, Interval rows, Interval keys, TileMask& mask) const {
  const Where where = state_->where(group, document);
  const Corner corner{rows, keys};
  const Expression& rule = state_->rule_of(group);
  const Coverage coverage = rule.coverage(where, corner);
  if (coverage != Coverage::some) return coverage;
  TileBits bits;
  rule.fill(where, corner, bits);
  return describe(bits, static_cast<int>(rows.length()), static_cast<int>(keys.length()), mask);
}

uint64_t BoundPattern::signature(int group, int64_t document, Interval rows, Interval keys) const {
  Signature signature;
  signature.add_signed(state_->groups[static_cast<size_t>(group)].rule + 1);
  signature.add_signed(rows.length() << 8 | keys.length());
  state_->rule_of(group).sign(state_->where(group, document), {rows, keys}, signature);
  if (!signature.known) return 0;
  return signature.hash ? signature.hash : 1;
}

Intervals BoundPattern::singled_out_rows(int group, int64_t length) const {
  Intervals rows;
  state_->rule_of(group).singled_out_rows(rows);
  return clipped(normalised(std::move(rows)), {0, length});
}

bool BoundPattern::translation_invariant(int group) const { return state_->rule_of(group).translation_invariant(); }

}  // namespace longspan::pattern
