// longspan inspect pattern: what a pattern allows, in numbers and as a picture.
#include <fmt/format.h>

#include <algorithm>

#include "cli/census.hpp"
#include "cli/commands.hpp"
#include "cli/effective.hpp"
#include "cli/subject.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "report/format.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

constexpr size_t kMostPictures = 4;

double share(int64_t part, int64_t whole) { return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole); }

// 0-3,8,12-15
std::string heads_text(const std::vector<int>& heads) {
  std::string text;
  for (size_t begin = 0; begin < heads.size();) {
    size_t end = begin + 1;
    while (end < heads.size() && heads[end] == heads[end - 1] + 1) ++end;
    text += (text.empty() ? "" : ",") + std::to_string(heads[begin]);
    if (end - begin > 1) text += "-" + std::to_string(heads[end - 1]);
    begin = end;
  }
  return text;
}

std::string named_heads(const std::vector<int>& heads) { return (heads.size() == 1 ? "head " : "heads ") + heads_text(heads); }

nlohmann::ordered_json to_json(const Census& census, const std::string& canonical, const Settings& settings) {
  nlohmann::ordered_json json = report::new_record("inspect pattern");
  json["options"] = settings_json(settings);
  json["pattern"] = canonical;
  json["tokens"] = census.tokens;
  json["documents"] = census.documents;
  json["blocks"] = census.blocks;
  json["tiles"] = census.tiles;
  json["causal_pairs"] = census.causal_pairs;
  json["all_pairs"] = census.all_pairs;
  json["groups"] = nlohmann::ordered_json::array();
  for (const GroupCensus& group : census.groups) {
    json["groups"].push_back(
        {{"heads", group.heads},
         {"rule", group.rule},
         {"allowed_pairs", group.pairs},
         {"allowed_pairs_ahead", group.pairs_ahead},
         {"density_causal", share(group.pairs - group.pairs_ahead, census.causal_pairs)},
         {"density_all", share(group.pairs, census.all_pairs)},
         {"full_tiles", group.full},
         {"partial_tiles", group.partial},
         {"empty_tiles", census.tiles - group.full - group.partial},
         {"keys_per_query", {{"min", group.least_keys}, {"mean", share(group.pairs, census.tokens)}, {"max", group.most_keys}}}});
  }
  return json;
}

std::string tables(const Census& census, const std::string& canonical, const Shape& shape) {
  using report::count_text;
  std::string text = report::pairs_text(
      {{"pattern", canonical},
       {"tokens",
        fmt::format("{} in {} document{}", count_text(census.tokens), count_text(census.documents), census.documents == 1 ? "" : "s")},
       {"heads", fmt::format("{} query, {} key/value", shape.heads, shape.kv_heads)},
       {"tiles", fmt::format("{} x {} = {}, of at most 128 x 128 tokens", count_text(census.blocks), count_text(census.blocks),
                             count_text(census.tiles))},
       {"pairs", fmt::format("{} causal, {} in all, inside documents", count_text(census.causal_pairs), count_text(census.all_pairs))}});
  report::Table pairs({"<heads", "allowed pairs", "of causal pairs", "of all pairs", "keys ahead", "keys per query: min", "mean", "max"});
  report::Table tiles({"<heads", "full tiles", "partial tiles", "empty tiles", "not empty"});
  for (const GroupCensus& group : census.groups) {
    const std::string heads = heads_text(group.heads);
    pairs.add({heads, count_text(group.pairs), report::percent_text(share(group.pairs - group.pairs_ahead, census.causal_pairs)),
               report::percent_text(share(group.pairs, census.all_pairs)), count_text(group.pairs_ahead), count_text(group.least_keys),
               fmt::format("{:.1f}", share(group.pairs, census.tokens)), count_text(group.most_keys)});
    tiles.add({heads, count_text(group.full), count_text(group.partial), count_text(census.tiles - group.full - group.partial),
               report::percent_text(share(group.full + group.partial, census.tiles))});
  }
  return text + "\nPer head:\n" + pairs.text(2) + "\n" + tiles.text(2);
}

// The first group of each rule, then others: groups of one rule differ by their random or stored lists only.
std::vector<const GroupCensus*> pictured(const Census& census) {
  std::vector<const GroupCensus*> first, more;
  for (const GroupCensus& group : census.groups) {
    const bool known = std::any_of(first.begin(), first.end(), [&](const GroupCensus* other) { return other->rule == group.rule; });
    (known ? more : first).push_back(&group);
  }
  first.insert(first.end(), more.begin(), more.end());
  if (first.size() > kMostPictures) first.resize(kMostPictures);
  return first;
}

}  // namespace

int run_inspect_pattern(const Settings& settings, const Context&) {
  const pattern::Pattern parsed = pattern_from(settings);
  Subject subject = subject_from(settings, parsed);
  constexpr int64_t kMostTokens = int64_t{1} << 31;  // beyond, pairs would not fit in 64 bits
  if (subject.shape.tokens > kMostTokens) {
    throw Error({.code = ExitCode::usage,
                 .what = "too many tokens to count pairs exactly",
                 .seen = report::count_text(subject.shape.tokens),
                 .expected = "at most " + report::count_text(kMostTokens)});
  }
  const pattern::BoundPattern bound(parsed, subject.shape.heads, subject.shape.kv_heads, subject.documents, subject.sources);
  const auto threads = settings.maybe_integer("threads").value_or(kernels::cpu::available_cpus());
  const Census census = take_census(bound, static_cast<int>(threads));
  const std::string canonical = parsed.canonical();

  if (const auto svg = settings.maybe_text("svg")) {
    std::vector<report::MapPanel> panels;
    for (const GroupCensus* group : pictured(census)) panels.push_back({named_heads(group->heads), group->map});
    const std::string subtitle =
        fmt::format("{} tokens in {} document{}, {} x {} tiles", report::count_text(census.tokens), report::count_text(census.documents),
                    census.documents == 1 ? "" : "s", report::count_text(census.blocks), report::count_text(census.blocks));
    report::write_text(report::svg_picture(canonical, subtitle, panels), *svg);
  }
  const std::optional<std::string> json = settings.maybe_text("json");
  if (json) report::write_record(to_json(census, canonical, settings), *json);
  if (json == "-") return 0;
  std::string text = tables(census, canonical, subject.shape);
  for (const GroupCensus* group : pictured(census))
    text += "\nBlock map of " + named_heads(group->heads) + ":\n" + report::terminal_picture(group->map, 2);
  if (census.groups.size() > kMostPictures)
    text += fmt::format("\n({} of {} head groups are drawn)\n", kMostPictures, census.groups.size());
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace longspan::cli
