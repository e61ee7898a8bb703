#include "cli/plan.hpp"

#include <fmt/format.h>

#include "cli/commands.hpp"

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

int run_plan(const Settings& settings, const Context&) {
  const PlanOptions options = plan_options(settings);
  throw Error({.code = ExitCode::environment, .what = "this build holds no planner"});
}

}  // namespace longspan::cli
