#include "cli/attend.hpp"

#include <filesystem>

#include "cli/commands.hpp"
#include "cli/subject.hpp"

namespace longspan::cli {

namespace {

// out/o.h5 -> out/o.run.json
std::string record_beside(const std::string& output) { return std::filesystem::path(output).replace_extension(".run.json").string(); }

}  // namespace

AttendOptions attend_options(const Settings& settings) {
  std::vector<Problem> problems;
  AttendOptions options;
  options.input = corpus_paths(settings);
  options.output = settings.text("output");
  try {
    options.pattern = pattern_from(settings);
  } catch (const Error& error) {
    problems = error.problems();
  }
  options.scale = settings.maybe_real("scale");
  options.memory = settings.maybe_integer("memory");
  if (const auto threads = settings.maybe_integer("threads")) options.threads = static_cast<int>(*threads);
  if (settings.given("partition")) options.partition = plan::partition_kind_named(settings.text("partition"));
  if (const auto type = settings.maybe_text("output-type")) options.output_type = element_type_named(*type);
  options.reproducible = settings.flag("reproducible");
  options.go_on = settings.flag("continue");
  options.overwrite = settings.flag("overwrite");
  options.dry_run = settings.flag("dry-run");
  options.record = settings.maybe_text("json").value_or(record_beside(options.output));
  options.log_level = report::level_named(settings.text("log-level")).value();
  options.timeout = settings.real("timeout");
  std::error_code ignored;
  if (options.output == options.input.file || std::filesystem::equivalent(options.output, options.input.file, ignored))
    problems.push_back(settings.problem("output", "output is the input file", "another file: the input is never written to"));
  if (options.record == options.output || options.record == options.input.file)
    problems.push_back(settings.problem("json", "the run record would replace a data file", "a file of its own"));
  if (options.go_on && options.overwrite)
    problems.push_back(settings.problem("overwrite", "options --continue and --overwrite exclude each other", {}, "leave out one of them"));
  if (!problems.empty()) throw Error(problems);
  return options;
}

int run_attend(const Settings& settings, const Context& context) {
  AttendOptions options;
  context.ranks->agreed([&] { options = attend_options(settings); });
  throw Error({.code = ExitCode::environment, .what = "this build holds no attention engine"});
}

}  // namespace longspan::cli
