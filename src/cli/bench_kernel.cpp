// longspan bench kernel: how near the attention kernel of this machine comes to what its arithmetic gives at best.
#include <fmt/format.h>

#include "bench/kernel.hpp"
#include "bench/link.hpp"
#include "cli/commands.hpp"
#include "cli/effective.hpp"
#include "cli/subject.hpp"
#include "kernels/cpu/attention.hpp"
#include "plan/blocks.hpp"
#include "report/format.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

struct NamedPattern {
  std::string name, text;
};
const std::vector<NamedPattern> kPatterns{
    {"full", "full"}, {"causal", "causal"}, {"window", "causal & window(1023)"}, {"bigbird", "bigbird(64, 3, 3, 1, 0)"}};

}  // namespace

int run_bench_kernel(const Settings& settings, const Context&) {
  std::vector<std::pair<NamedPattern, pattern::Pattern>> patterns;
  if (settings.has("pattern"))
    patterns.emplace_back(NamedPattern{"given", settings.text("pattern")}, pattern_from(settings));
  else
    for (const NamedPattern& named : kPatterns) patterns.emplace_back(named, pattern::Pattern::parse(named.text));
  std::vector<ElementType> types{ElementType::float32, ElementType::float16, ElementType::bfloat16};
  if (settings.has("type")) types = {element_type_named(settings.text("type")).value_or(ElementType::bfloat16)};
  std::vector<int64_t> head_dims{64, 128};
  if (settings.has("head-dim")) head_dims = {settings.integer("head-dim")};
  Shape shape = shape_from(settings, settings.integer("tokens"));
  if (shape.tokens % plan::kBlock != 0)
    throw Error(settings.problem("tokens", "a kernel is measured on whole blocks", fmt::format("a multiple of {}", plan::kBlock)));

  kernels::cpu::ThreadPool threads(static_cast<int>(settings.maybe_integer("threads").value_or(kernels::cpu::available_cpus())));
  const std::optional<std::string> json_file = settings.maybe_text("json");
  nlohmann::ordered_json json = report::new_record("bench kernel");
  json["options"] = settings_json(settings);
  json["device"] = {{"kind", "cpu"}, {"name", kernels::cpu::target_names()}, {"threads", threads.threads()}};
  json["measures"] = nlohmann::ordered_json::array();
  report::Table table({"<type", "head_dim", "<pattern", "<kernel", "time ms", "GFLOP/s", "peak", "of peak"});
  for (const ElementType type : types) {
    for (const int64_t head_dim : head_dims) {
      shape.type = type, shape.head_dim = static_cast<int>(head_dim);
      for (const auto& [named, pattern] : patterns) {
        const bench::KernelMeasure measure =
            bench::measure_kernel(pattern, shape, static_cast<int>(settings.integer("iterations")), threads);
        const double seconds = bench::median(measure.seconds);
        json["measures"].push_back({{"type", name_of(type)},
                                    {"head_dim", head_dim},
                                    {"pattern", named.text},
                                    {"kernel", measure.kernel},
                                    {"flop", measure.flop},
                                    {"seconds", measure.seconds},
                                    {"flop_per_second", measure.rate()},
                                    {"peak_flop_per_second", measure.peaks},
                                    {"share_of_peak", measure.share()}});
        const auto giga = [](double rate) { return fmt::format("{:.1f}", rate / 1e9); };
        table.add({std::string(name_of(type)), std::to_string(head_dim), named.name, measure.kernel, fmt::format("{:.2f}", seconds * 1e3),
                   giga(measure.rate()), giga(measure.peak()), report::percent_text(measure.share())});
      }
    }
  }
  if (json_file) report::write_record(json, *json_file);
  if (json_file == "-") return 0;
  std::string text = report::pairs_text(
      {{"kernels", fmt::format("{}, {} thread{}", kernels::cpu::target_names(), threads.threads(), threads.threads() == 1 ? "" : "s")},
       {"shape", fmt::format("{} tokens, {} heads, {} KV heads", report::count_text(shape.tokens), shape.heads, shape.kv_heads)}});
  for (const auto& [named, pattern] : patterns) text += fmt::format("{:<8} {}\n", named.name, pattern.canonical());
  std::fputs((text + "\n" + table.text()).c_str(), stdout);
  return 0;
}

}  // namespace longspan::cli
