// longspan bench kernel: how near the attention kernel of a CPU or a GPU comes to what its arithmetic gives at best.
#include <fmt/format.h>

#include "bench/kernel.hpp"
#include "bench/link.hpp"
#include "cli/commands.hpp"
#include "cli/effective.hpp"
#include "cli/subject.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/device.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/gpus.hpp"
#include "plan/blocks.hpp"
#include "report/format.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

struct NamedPattern {
  std::string name, text;
};
constexpr double kPeakSeconds = 0.05;
const std::vector<NamedPattern> kPatterns{
    {"full", "full"}, {"causal", "causal"}, {"window", "causal & window(1023)"}, {"bigbird", "bigbird(64, 3, 3, 1, 0)"}};

// What is measured, and what it gives at best.
struct Place {
  std::optional<kernels::Gpu> gpu;
  int threads = 0;  // of the CPU's kernels
  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<kernels::cpu::ThreadPool> peak_threads;

  std::string kernel(ElementType type, int head_dim) const {
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    return gpu ? kernels::gpu_kernel(*gpu, type, head_dim, scale) : kernels::cpu::target_name(type);
  }
  double peak(ElementType type) const {
    return gpu ? kernels::product_rate(*gpu, type) : kernels::cpu::peak_rate(type, kPeakSeconds, *peak_threads);
  }
  std::string text() const {
    if (gpu) return gpu->name;
    return fmt::format("{}, {} thread{}", kernels::cpu::target_names(), threads, threads == 1 ? "" : "s");
  }
};

Place place_from(const Settings& settings) {
  Place place;
  const std::string kind = settings.text("device");
  if (kind != "cpu") {
    const kernels::Gpus gpus = kernels::find_gpus();
    if (!gpus.usable.empty()) place.gpu = gpus.usable.front();
    if (!place.gpu && kind == "cuda")
      throw Error({.code = ExitCode::device,
                   .what = "no GPU to compute on",
                   .seen = gpus.why_none,
                   .from = "option --device cuda",
                   .mend = "start where nvidia-smi lists a GPU, or take --device cpu"});
  }
  if (place.gpu) {
    place.device = kernels::open_gpu(*place.gpu);
  } else {
    place.threads = static_cast<int>(settings.maybe_integer("threads").value_or(kernels::cpu::available_cpus()));
    place.device = std::make_unique<kernels::cpu::CpuDevice>(place.threads);
    place.peak_threads = std::make_unique<kernels::cpu::ThreadPool>(place.threads);
  }
  return place;
}

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

  const Place place = place_from(settings);
  const std::optional<std::string> json_file = settings.maybe_text("json");
  nlohmann::ordered_json json = report::new_record("bench kernel");
  json["options"] = settings_json(settings);
  if (place.gpu)
    json["device"] = {{"kind", "cuda"}, {"name", place.gpu->name}, {"copy_bytes_per_second", kernels::copy_rate(*place.gpu)}};
  else
    json["device"] = {{"kind", "cpu"}, {"name", kernels::cpu::target_names()}, {"threads", place.threads}};
  json["measures"] = nlohmann::ordered_json::array();
  report::Table table({"<type", "head_dim", "<pattern", "<kernel", "time ms", "GFLOP/s", "peak", "of peak"});
  for (const ElementType type : types) {
    for (const int64_t head_dim : head_dims) {
      shape.type = type, shape.head_dim = static_cast<int>(head_dim);
      for (const auto& [named, pattern] : patterns) {
        const bench::KernelMeasure measure = bench::measure_kernel(pattern, shape, static_cast<int>(settings.integer("iterations")),
                                                                   *place.device, [&, type = type] { return place.peak(type); });
        const std::string kernel = place.kernel(type, shape.head_dim);
        const double seconds = bench::median(measure.seconds);
        json["measures"].push_back(
            {{"type", name_of(type)},
             {"head_dim", head_dim},
             {"pattern", named.text},
             {"kernel", kernel},
             {"flop", measure.flop},
             {"seconds", measure.seconds},
             {"flop_per_second", measure.rate()},
             {"peak_flop_per_second", measure.peaks},
             {"share_of_peak", measure.peak() > 0 ? nlohmann::ordered_json(measure.share()) : nlohmann::ordered_json()}});
        const auto giga = [](double rate) { return fmt::format("{:.1f}", rate / 1e9); };
        table.add({std::string(name_of(type)), std::to_string(head_dim), named.name, kernel, fmt::format("{:.2f}", seconds * 1e3),
                   giga(measure.rate()), giga(measure.peak()), measure.peak() > 0 ? report::percent_text(measure.share()) : "-"});
      }
    }
  }
  if (json_file) report::write_record(json, *json_file);
  if (json_file == "-") return 0;
  std::vector<std::pair<std::string, std::string>> lines{
      {place.gpu ? "GPU" : "kernels", place.text()},
      {"shape", fmt::format("{} tokens, {} heads, {} KV heads", report::count_text(shape.tokens), shape.heads, shape.kv_heads)}};
  if (place.gpu) lines.emplace_back("copy", fmt::format("{:.2f} TB/s read and written", kernels::copy_rate(*place.gpu) / 1e12));
  std::string text = report::pairs_text(lines);
  for (const auto& [named, pattern] : patterns) text += fmt::format("{:<8} {}\n", named.name, pattern.canonical());
  std::fputs((text + "\n" + table.text()).c_str(), stdout);
  return 0;
}

}  // namespace longspan::cli
