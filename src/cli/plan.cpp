#include "cli/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cli/commands.hpp"
#include "cli/rank_figures.hpp"
#include "plan/rank_plan.hpp"
#include "report/format.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

PlanOptions plan_options(const Settings& settings) {
  std::vector<Problem> problems;
  const auto collecting = [&](const auto& body) {
    try {
      body();
    } catch (const Error& error) {
      problems.insert(problems.end(), error.problems().begin(), error.problems().end());
    }
  };
  PlanOptions options;
  collecting([&] { options.pattern = pattern_from(settings); });
  collecting([&] { options.subject = subject_from(settings, options.pattern); });
  options.ranks = settings.integer("ranks");
  options.rank = settings.maybe_integer("rank");
  if (options.rank && *options.rank >= options.ranks)
    problems.push_back(settings.problem("rank", "there is no such rank", fmt::format("0 ... {}", options.ranks - 1)));
  options.memory = settings.maybe_integer("memory");
  options.partition = plan::partition_kind_named(settings.text("partition")).value();
  options.reproducible = settings.flag("reproducible");
  options.json = settings.maybe_text("json");
  if (!problems.empty()) throw Error(problems);
  return options;
}

namespace {

constexpr int kMostRanks = 64;  // planned one by one; of more, this many evenly spaced ones

std::vector<int> ranks_to_plan(const PlanOptions& options) {
  if (options.rank) return {static_cast<int>(*options.rank)};
  std::vector<int> ranks;
  const int64_t count = std::min<int64_t>(options.ranks, kMostRanks);
  for (int64_t k = 0; k < count; ++k) ranks.push_back(static_cast<int>(count == 1 ? 0 : (options.ranks - 1) * k / (count - 1)));
  return ranks;
}

}  // namespace

int run_plan(const Settings& settings, const Context& context) {
  const PlanOptions options = plan_options(settings);
  const pattern::BoundPattern pattern(options.pattern, options.subject.shape.heads, options.subject.shape.kv_heads,
                                      options.subject.documents, options.subject.sources);
  const plan::Blocks blocks(options.subject.documents);
  plan::Options planning;
  planning.partition = options.partition;
  planning.reproducible = options.reproducible;
  planning.output_type = options.subject.shape.type;
  planning.memory = options.memory.value_or(int64_t{1} << 50);
  const std::vector<int> ranks = ranks_to_plan(options);
  planning.exact_tiles /= static_cast<int64_t>(ranks.size());  // in all
  const auto start = std::chrono::steady_clock::now();
  const plan::Shared shared = plan::make_shared(pattern, blocks, options.subject.shape, static_cast<int>(options.ranks), planning);
  std::vector<std::vector<Figure>> figures;
  bool estimated = false;
  for (int rank : ranks) {
    const plan::RankPlan plan = plan::make_rank_plan(shared, pattern, blocks, rank);
    figures.push_back(figures_of(shared, plan, blocks));
    estimated = estimated || plan.estimated();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const Shape& shape = options.subject.shape;
  if (options.json) {
    nlohmann::ordered_json record = report::new_record("plan");
    record["command_line"] = context.command_line;
    record["pattern"] = options.pattern.canonical();
    record["shape"] = {{"tokens", shape.tokens},
                       {"heads", shape.heads},
                       {"kv_heads", shape.kv_heads},
                       {"head_dim", shape.head_dim},
                       {"type", name_of(shape.type)}};
    record["documents"] = options.subject.documents.count();
    record["plan"] = shared_json(shared);
    record["estimated"] = estimated;
    record["planning_seconds"] = seconds;
    record["per_rank"] = figures_json(figures, ranks);
    report::write_record(record, *options.json);
    if (*options.json == "-") return 0;
  }
  std::vector<std::pair<std::string, std::string>> lines{
      {"pattern", options.pattern.canonical()},
      {"shape", fmt::format("{} tokens in {} document{}, {} heads, {} KV heads, head_dim {}, {}", report::count_text(shape.tokens),
                            report::count_text(options.subject.documents.count()), options.subject.documents.count() == 1 ? "" : "s",
                            shape.heads, shape.kv_heads, shape.head_dim, name_of(shape.type))}};
  for (auto& line : shared_lines(shared)) lines.push_back(std::move(line));
  if (static_cast<int64_t>(ranks.size()) < options.ranks && !options.rank)
    lines.emplace_back("sampled", fmt::format("{} of {} ranks", ranks.size(), options.ranks));
  if (estimated) lines.emplace_back("estimated", "counts are of sampled rows: the lists are longer than can be counted in a moment");
  lines.emplace_back("planned in", report::duration_text(seconds));
  fmt::print("{}\n{}", report::pairs_text(lines), figures_text(figures, ranks, estimated));
  return 0;
}

}  // namespace longspan::cli
