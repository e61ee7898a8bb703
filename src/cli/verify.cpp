// longspan verify: sampled rows of a result against double precision.
#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.hpp"
#include "cli/effective.hpp"
#include "cli/subject.hpp"
#include "cli/verification.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "report/format.hpp"
#include "report/log.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

// Refuses a result that is not one of this input; an input that has merely been touched since is worth a warning.
void check_match(const io::CorpusLayout& input, const io::ResultLayout& output, report::Log& log) {
  const Shape& shape = input.shape;
  std::vector<Problem> problems;
  const auto equal = [&](const char* what, int64_t seen, int64_t expected) {
    if (seen == expected) return;
    problems.push_back({.code = ExitCode::input,
                        .what = fmt::format("output and input differ in {}", what),
                        .seen = std::to_string(seen),
                        .expected = std::to_string(expected),
                        .from = output.file + ", " + input.paths.file,
                        .mend = "name the input that this output was made of: " + output.attributes.input_name});
  };
  equal("tokens", output.tokens, shape.tokens);
  equal("heads", output.heads, shape.heads);
  equal("head_dim", output.head_dim, shape.head_dim);
  if (!output.attributes.complete) {
    problems.push_back({.code = ExitCode::input,
                        .what = "output is not complete: its job is still running or was stopped",
                        .seen = "attribute complete = 0",
                        .expected = "1",
                        .from = output.file,
                        .mend = "finish it with longspan attend --continue"});
  }
  if (!problems.empty()) throw Error(problems);
  if (output.attributes.input_bytes != input.file_bytes || output.attributes.input_modified_ns != input.modified_ns) {
    log.warning(fmt::format(
        "{} is not the file, or not in the state, that {} was made of: {} bytes then, {} now; differences below may come from that",
        input.paths.file, output.file, output.attributes.input_bytes, input.file_bytes));
  }
}

std::string where(const ErrorSummary& summary) {
  return summary.worst_token < 0 ? "-" : fmt::format("token {}, head {}", summary.worst_token, summary.worst_head);
}

nlohmann::ordered_json to_json(const ErrorSummary& summary) {
  // JSON has no infinity: such numbers become null.
  return {{"max_error", summary.largest},
          {"mean_error", summary.mean},
          {"max_error_float32", summary.plain_largest},
          {"worst_error_over_bound", summary.worst_share},
          {"worst_bound", summary.bound},
          {"worst_token", summary.worst_token},
          {"worst_head", summary.worst_head},
          {"beyond_bound", summary.failures}};
}

}  // namespace

int run_verify(const Settings& settings, const Context&) {
  const std::optional<std::string> json = settings.maybe_text("json");
  report::Log log(report::Level::info, true, json == "-" ? stderr : stdout);
  const io::CorpusLayout layout = io::inspect_corpus(corpus_paths(settings));
  const io::ResultLayout result = io::inspect_result(settings.text("output"));
  check_match(layout, result, log);
  const Documents documents(layout.document_offsets, layout.paths.file + ":" + layout.paths.document_offsets);
  pattern::Pattern parsed;
  try {
    parsed = pattern::Pattern::parse(result.attributes.pattern);
  } catch (const Error& error) {
    std::vector<Problem> problems = error.problems();
    for (Problem& problem : problems) problem.code = ExitCode::input, problem.from = result.file + ": attribute pattern";
    throw Error(problems);
  }
  const pattern::BoundPattern bound(parsed, layout.shape.heads, layout.shape.kv_heads, documents,
                                    block_mask_sources(parsed, layout.paths, layout.shape, documents));
  const io::CorpusReader input(layout);
  const io::ResultFile output(result, io::ResultFile::Access::read);
  VerifyOptions options;
  options.scale = result.attributes.scale;
  options.rounded_weights = rounds_weights(result.attributes.device, layout.shape.type);
  options.threads = static_cast<int>(settings.maybe_integer("threads").value_or(kernels::cpu::available_cpus()));
  const std::vector<int64_t> rows = sample_rows(documents, settings.integer("rows"), static_cast<uint64_t>(settings.integer("seed")));
  const Verdict verdict = verify_rows(input, output, result.output_type, bound, rows, options);

  if (json) {
    nlohmann::ordered_json record = report::new_record("verify");
    record["options"] = settings_json(settings);
    record["input"] = layout.paths.file;
    record["output"] = result.file;
    record["pattern"] = result.attributes.pattern;
    record["scale"] = result.attributes.scale;
    record["rows"] = verdict.rows;
    record["heads"] = verdict.heads;
    record["pairs"] = verdict.pairs;
    record["key_value_bytes_read"] = verdict.bytes_read;
    record["o"] = to_json(verdict.o);
    record["lse"] = to_json(verdict.lse);
    record["passed"] = verdict.passed();
    report::write_record(record, *json);
  }
  log.info(report::pairs_text({{"input", layout.paths.file},
                               {"output", fmt::format("{} ({})", result.file, name_of(result.output_type))},
                               {"pattern", result.attributes.pattern},
                               {"scale", report::exact_text(result.attributes.scale)},
                               {"sample", fmt::format("{} rows of {} heads, {} query-key pairs, {} of keys and values read",
                                                      report::count_text(verdict.rows), verdict.heads, report::count_text(verdict.pairs),
                                                      report::bytes_text(verdict.bytes_read))}}) +
           "\n");
  // The largest error may lie in a row of large values and be well within its bound, so the row closest to its own bound is told apart.
  report::Table table(
      {"<", "max error", "mean error", "plain float32 max", "rows beyond bound", "closest row: error/bound", "its bound", "<at"});
  for (const auto& [name, summary] : {std::pair{"O", &verdict.o}, std::pair{"LSE", &verdict.lse}})
    table.add({name, report::number_text(summary->largest), report::number_text(summary->mean), report::number_text(summary->plain_largest),
               report::count_text(summary->failures), fmt::format("{:.3f}", summary->worst_share), report::number_text(summary->bound),
               where(*summary)});
  log.info(table.text(2) + "\n");
  log.info(verdict.passed() ? "verified: every error is within its bound" : "FAILED: errors beyond the bound, see above");
  return static_cast<int>(verdict.passed() ? ExitCode::ok : ExitCode::verify_failed);
}

}  // namespace longspan::cli
