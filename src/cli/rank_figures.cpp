#include "cli/rank_figures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/format.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

std::string value_text(Unit unit, double value) {
  switch (unit) {
    case Unit::count:
      return report::count_text(std::llround(value));
    case Unit::bytes:
      return report::bytes_text(std::llround(value));
    case Unit::flop:
      return report::amount_text(value, "FLOP");
    case Unit::ratio:
      return fmt::format("{:.3f}", value);
  }
  return "?";
}

int64_t rows_of(const plan::RankPlan& plan, const plan::Blocks& blocks) {
  int64_t rows = 0;
  for (const Interval& run : plan.own) rows += blocks.tokens(run.end - 1).end - blocks.tokens(run.begin).begin;
  return rows;
}

}  // namespace

std::vector<Figure> figures_of(const plan::Shared& shared, const plan::RankPlan& plan, const plan::Blocks& blocks) {
  const auto bytes = [](int64_t count) { return static_cast<double>(count); };
  const plan::TileCount tiles = plan.tiles();
  const auto long_stripes = static_cast<int64_t>(shared.batches.size());
  return {
      {"rows", "rows", Unit::count, static_cast<double>(rows_of(plan, blocks))},
      {"tiles", "tiles x heads", Unit::count, static_cast<double>(plan.weighted_tiles())},
      {"full_tiles", "full tiles", Unit::count, static_cast<double>(tiles.full)},
      {"partial_tiles", "partial tiles", Unit::count, static_cast<double>(tiles.partial)},
      {"flop", "work", Unit::flop, plan.flop(shared.shape)},
      {"kv_bytes_needed", "K/V needed", Unit::bytes, bytes(plan.bytes_needed)},
      {"kv_bytes_held", "K/V held", Unit::bytes, bytes(plan.bytes_held)},
      {"kv_bytes_moved", "K/V moved", Unit::bytes, bytes(plan.bytes_moved)},
      {"kv_bytes_lower_bound", "  lower bound", Unit::bytes, bytes(plan.bytes_lower_bound())},
      {"kv_bytes_ring", "  a dense ring", Unit::bytes, bytes(plan.ring_bytes(shared))},
      {"kv_bytes_read_again", "K/V read again", Unit::bytes, bytes(plan.bytes_read_again)},
      {"long_row_bytes_moved", "long rows' Q, states", Unit::bytes, bytes(plan.row_bytes_moved)},
      {"memory", "memory", Unit::bytes, bytes(plan.memory.total())},
      {"memory_home", "  own K/V", Unit::bytes, bytes(plan.memory.home)},
      {"memory_rows", "  rows in work", Unit::bytes, bytes(plan.memory.stripe + plan.memory.long_rows)},
      {"memory_received", "  received K/V", Unit::bytes, bytes(plan.memory.received)},
      {"memory_lists", "  tile lists", Unit::bytes, bytes(plan.memory.lists)},
      {"stripes", "stripes", Unit::count, static_cast<double>(static_cast<int64_t>(plan.stripes.size()) - long_stripes)},
      {"steps", "most steps of a stripe", Unit::count, static_cast<double>(plan.most_steps())},
  };
}

std::string figures_text(const std::vector<std::vector<Figure>>& values, const std::vector<int>& ranks, bool estimated) {
  const bool one = values.size() == 1;
  const std::string mark = estimated ? "estimated" : "";
  report::Table table(
      one ? std::vector<std::string>{"<per rank" + (mark.empty() ? "" : " (" + mark + ")"), fmt::format("rank {}", ranks.front())}
          : std::vector<std::string>{"<per rank" + (mark.empty() ? "" : " (" + mark + ")"), "min", "mean", "max", "max/mean",
                                     "rank of max"});
  for (size_t f = 0; f < values.front().size(); ++f) {
    const Figure& figure = values.front()[f];
    if (one) {
      table.add({figure.title, value_text(figure.unit, figure.value)});
      continue;
    }
    double least = figure.value, most = figure.value, sum = 0;
    size_t rank_of_most = 0;
    for (size_t r = 0; r < values.size(); ++r) {
      const double value = values[r][f].value;
      sum += value;
      least = std::min(least, value);
      if (value > most) most = value, rank_of_most = r;
    }
    const double mean = sum / static_cast<double>(values.size());
    table.add({figure.title, value_text(figure.unit, least), value_text(figure.unit, mean), value_text(figure.unit, most),
               mean > 0 ? fmt::format("{:.2f}", most / mean) : "", std::to_string(ranks[rank_of_most])});
  }
  return table.text();
}

nlohmann::ordered_json figures_json(const std::vector<std::vector<Figure>>& values, const std::vector<int>& ranks) {
  nlohmann::ordered_json per_rank = nlohmann::ordered_json::array();
  for (size_t r = 0; r < values.size(); ++r) {
    nlohmann::ordered_json one = {{"rank", ranks[r]}};
    for (const Figure& figure : values[r]) one[figure.key] = std::llround(figure.value);
    per_rank.push_back(std::move(one));
  }
  nlohmann::ordered_json summary;
  for (size_t f = 0; f < values.front().size(); ++f) {
    double least = values.front()[f].value, most = least, sum = 0;
    for (const auto& rank : values) least = std::min(least, rank[f].value), most = std::max(most, rank[f].value), sum += rank[f].value;
    summary[values.front()[f].key] = {{"min", least}, {"mean", sum / static_cast<double>(values.size())}, {"max", most}};
  }
  return {{"summary", std::move(summary)}, {"ranks", std::move(per_rank)}};
}

std::vector<std::pair<std::string, std::string>> shared_lines(const plan::Shared& shared) {
  std::vector<std::pair<std::string, std::string>> lines{
      {"partition", fmt::format("{}, {} blocks of up to 128 tokens on {} ranks", plan::name_of(shared.partition.kind()),
                                report::count_text(shared.partition.blocks()), shared.partition.ranks())},
      {"keys",
       shared.keys_stay ? "stay in their home's memory" : "are read from the file when needed: the memory does not hold a rank's own"}};
  if (!shared.long_rows.empty()) {
    lines.emplace_back(
        "long rows",
        fmt::format("{} in {} pieces: {} of queries and states move{}", shared.long_rows.size(), shared.pieces.size(),
                    report::bytes_text(shared.long_bytes_travelling),
                    shared.long_bytes_travelling > 0 ? " instead of " + report::bytes_text(shared.long_bytes_if_pulled) + " of keys" : ""));
  }
  return lines;
}

nlohmann::ordered_json shared_json(const plan::Shared& shared) {
  return {{"partition", plan::name_of(shared.partition.kind())},
          {"blocks", shared.partition.blocks()},
          {"ranks", shared.partition.ranks()},
          {"memory_per_rank", shared.options.memory},
          {"keys_stay", shared.keys_stay},
          {"long_rows", shared.long_rows.size()},
          {"long_row_pieces", shared.pieces.size()},
          {"long_row_bytes_travelling", shared.long_bytes_travelling},
          {"long_row_bytes_if_pulled", shared.long_bytes_if_pulled}};
}

}  // namespace longspan::cli
