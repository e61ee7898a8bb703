#include "cli/attend.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "cli/commands.hpp"
#include "cli/rank_figures.hpp"
#include "cli/rank_map.hpp"
#include "cli/subject.hpp"
#include "job/attend_job.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/device.hpp"
#include "kernels/gpus.hpp"
#include "launch/gpu_choice.hpp"
#include "launch/signals.hpp"
#include "launch/topology.hpp"
#include "report/build_info.hpp"
#include "report/format.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

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
  options.bind = settings.text("bind") == "cores";
  if (settings.given("partition")) options.partition = plan::partition_kind_named(settings.text("partition"));
  if (const auto type = settings.maybe_text("output-type")) options.output_type = element_type_named(*type);
  options.device = device_kind_named(settings.text("device")).value();
  options.share_gpu = settings.flag("share-gpu");
  options.transport = comm::transport_kind_named(settings.text("transport")).value();
  options.exchange = plan::exchange_kind_named(settings.text("exchange")).value();
  options.host_memory = settings.integer("host-memory");
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

namespace {

using nlohmann::ordered_json;

// Wall time of the ranks by section, as GROMACS and LAMMPS print it.
struct Section {
  const char* key;
  const char* title;
  double engine::Record::*seconds;
};
constexpr Section kSections[] = {
    {"load", "load own keys", &engine::Record::load},      {"plan", "tile lists", &engine::Record::plan},
    {"exchange", "wait: keys", &engine::Record::exchange}, {"attend", "attend", &engine::Record::attend},
    {"finish", "merge, round", &engine::Record::finish},   {"input", "wait: read", &engine::Record::input},
    {"output", "wait: write", &engine::Record::output},
};

struct Spread {
  double least = 0, mean = 0, most = 0;
  int rank_of_most = 0;
};

Spread spread_of(const comm::Communicator& ranks, double value) {
  const std::vector<double> all = ranks.all_gather(value);
  Spread spread{all.front(), 0, all.front(), 0};
  for (size_t r = 0; r < all.size(); ++r) {
    spread.least = std::min(spread.least, all[r]);
    if (all[r] > spread.most) spread.most = all[r], spread.rank_of_most = static_cast<int>(r);
    spread.mean += all[r] / static_cast<double>(all.size());
  }
  return spread;
}

ordered_json to_json(const Spread& spread) {
  return {{"min", spread.least}, {"mean", spread.mean}, {"max", spread.most}, {"rank_of_max", spread.rank_of_most}};
}

// The figures of all ranks on rank 0 (few of them when there are very many ranks: their numbers in `shown`).
std::vector<std::vector<Figure>> gather_figures(const comm::Communicator& ranks, std::vector<Figure> mine, std::vector<int>& shown) {
  std::vector<std::vector<Figure>> all(static_cast<size_t>(ranks.size()), mine);
  for (size_t f = 0; f < mine.size(); ++f) {
    const std::vector<double> values = ranks.all_gather(mine[f].value);
    for (size_t r = 0; r < values.size(); ++r) all[r][f].value = values[r];
  }
  shown.resize(all.size());
  std::iota(shown.begin(), shown.end(), 0);
  return all;
}

class Notes {
 public:
  void add(const std::string& id, double lost, const std::string& what, const std::string& option) {
    if (lost < 0.05) return;
    lines_.push_back(fmt::format("NOTE {} of the time is lost: {}. Try {}.", report::percent_text(lost), what, option));
    json_.push_back({{"id", id}, {"lost", lost}, {"message", what}, {"option", option}});
  }
  const std::vector<std::string>& lines() const { return lines_; }
  const ordered_json& json() const { return json_; }

 private:
  std::vector<std::string> lines_;
  ordered_json json_ = ordered_json::array();
};

std::string device_text(const launch::GpuChoice& choice, const comm::Transport& transport) {
  if (!choice.gpu) return kernels::cpu::target_names();
  return fmt::format("{} (compute capability {}.{}), CUDA {}, driver for {}, keys by {}", choice.gpu->name, choice.gpu->major,
                     choice.gpu->minor, kernels::cuda_toolkit_version(), kernels::cuda_driver_version(), transport.name());
}

ordered_json device_json(const launch::GpuChoice& choice, const kernels::Device& device, const comm::Transport& transport) {
  ordered_json json{{"kind", choice.gpu ? "cuda" : "cpu"}, {"name", device.name()}, {"transport", transport.name()}};
  if (choice.gpu) {
    json["compute_capability"] = fmt::format("{}.{}", choice.gpu->major, choice.gpu->minor);
    json["memory"] = choice.gpu->memory;
    json["ranks_per_gpu"] = choice.sharers;
    json["cuda_toolkit"] = kernels::cuda_toolkit_version();
    json["cuda_driver"] = kernels::cuda_driver_version();
  }
  return json;
}

// A record that the user asked for by name must not fail after the work is done. (One beside the output shares its folder's fate.)
void check_record(const Settings& settings, const std::string& record) {
  if (!settings.has("json") || record == "-" || std::filesystem::exists(record)) return;
  const std::filesystem::path folder = std::filesystem::absolute(record).parent_path();
  if (access(folder.c_str(), W_OK | X_OK) == 0) return;
  const int reason = errno;
  throw Error({.code = ExitCode::io,
               .what = "run record cannot be written",
               .seen = fmt::format("{} for folder {}", std::strerror(reason), folder.string()),
               .from = record + ", option --json",
               .mend = "name a folder that exists and may be written to"});
}

}  // namespace

int run_attend(const Settings& settings, const Context& context) {
  const comm::Communicator& ranks = *context.ranks;
  const launch::StopSignals signals;  // from now on: a signal while the job plans stops it after its first stripe
  std::vector<Problem> problems;
  if (const auto lonely = launch::lonely_rank(ranks.size())) problems.push_back(*lonely);
  ranks.agree(problems);
  AttendOptions options;
  ranks.agreed([&] { options = attend_options(settings); });
  ranks.on_root([&] { check_record(settings, options.record); });
  const launch::GpuChoice choice = launch::choose_gpu(ranks, options.device, options.share_gpu);
  const Launch launched = launch_ranks(ranks, options.bind, options.threads, choice.gpu);
  std::unique_ptr<kernels::Device> device;
  ranks.agreed([&] {
    if (choice.gpu)
      device = kernels::open_gpu(*choice.gpu, {.host_bytes = options.host_memory});
    else
      device = std::make_unique<kernels::cpu::CpuDevice>(launched.place.threads);
  });
  const std::unique_ptr<comm::Transport> transport = comm::make_transport(
      ranks, options.transport, choice.gpu ? std::optional(choice.gpu->ordinal) : std::nullopt, choice.sharers > 1, options.timeout);
  job::AttendRequest request{
      .input = options.input,
      .output = options.output,
      .pattern = options.pattern,
      .scale = options.scale,
      .memory = options.memory,
      .output_type = options.output_type,
      .default_memory = choice.gpu ? launch::memory_share(choice.free_memory, choice.sharers) : launched.share.memory,
      .step_bytes = transport->passes_host_memory() ? options.host_memory / 4 : 0,
      .device = choice.gpu ? fmt::format("cuda {}.{}", choice.gpu->major, choice.gpu->minor) : "cpu",
      .exchange = options.exchange,
      .reproducible = options.reproducible,
      .go_on = options.go_on,
      .overwrite = options.overwrite,
      .dry_run = options.dry_run,
      .timeout = options.timeout,
      .build = fmt::format("{} {} {} {} {}", report::version(), report::git_commit(), report::compiler(), report::build_type(),
                           kernels::cpu::target_name(ElementType::bfloat16)),
      .version = report::version()};
  if (settings.given("partition")) request.partition = options.partition;
  const bool to_stdout = options.record == "-";
  report::Log log(options.log_level, ranks.rank() == 0, to_stdout ? stderr : stdout);

  const auto start = std::chrono::steady_clock::now();
  job::AttendJob job(ranks, request);
  const double planning = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const Shape& shape = job.corpus().shape;
  const plan::Blocks blocks(job.pattern().documents());
  std::vector<int> shown;
  const auto figures = gather_figures(ranks, figures_of(job.shared(), job.plan(), blocks), shown);
  const std::vector<launch::Place> places = gather_places(ranks, launched.place);

  // Start block: versions, effective options, shape, where it runs, the plan.
  log.info(version_text());
  std::vector<std::pair<std::string, std::string>> lines;
  for (const Setting& setting : settings.all())
    lines.emplace_back("--" + setting.name, fmt::format("{}  ({})", setting.shown, setting.origin));
  log.info("Options\n" + report::pairs_text(lines, 2));
  log.info(fmt::format("Ranks: {} on {} host{}, {}\n{}", ranks.size(), ranks.hosts(), ranks.hosts() == 1 ? "" : "s",
                       device_text(choice, *transport), launch::map_text(places, 2)));
  const std::string kernel = choice.gpu ? kernels::gpu_kernel(*choice.gpu, shape.type, shape.head_dim, static_cast<float>(job.scale()))
                                        : kernels::cpu::target_name(shape.type);
  lines = {
      {"pattern", options.pattern.canonical()},
      {"shape", fmt::format("{} tokens in {} document{}, {} heads, {} KV heads, head_dim {}, {} -> {}", report::count_text(shape.tokens),
                            report::count_text(job.pattern().documents().count()), job.pattern().documents().count() == 1 ? "" : "s",
                            shape.heads, shape.kv_heads, shape.head_dim, name_of(shape.type), name_of(job.output_type()))},
      {"scale", report::exact_text(job.scale())},
      {"kernel", kernel},
      {"memory", fmt::format("{} a rank may use", report::bytes_text(job.shared().options.memory))}};
  for (auto& line : shared_lines(job.shared())) lines.push_back(std::move(line));
  lines.emplace_back("stripes", fmt::format("{}, {} steps in all", job.stripes(), job.total_steps()));
  lines.emplace_back("planned in", report::duration_text(planning));
  log.info("Plan\n" + report::pairs_text(lines, 2));
  log.info(figures_text(figures, shown, false));
  if (!choice.remark.empty()) log.warning(choice.remark);
  for (const std::string& remark : job.remarks()) log.warning(remark);
  if (const std::string remark = binding_remark(places, launch::slurm_allotment(), launch::Machine().cpus()); !remark.empty())
    log.warning(remark);

  ordered_json record = report::new_record("attend");
  record["command_line"] = context.command_line;
  ordered_json& effective = record["options"] = ordered_json::object();
  for (const Setting& setting : settings.all()) effective[setting.name] = {{"value", setting.shown}, {"origin", setting.origin}};
  record["ranks"] = {{"count", ranks.size()}, {"hosts", ranks.hosts()}, {"target", kernels::cpu::target_name(shape.type)}};
  for (const launch::Place& place : places) record["ranks"]["map"].push_back(place_json(place));
  record["device"] = device_json(choice, *device, *transport);
  record["device"]["kernel"] = kernel;
  record["pattern"] = options.pattern.canonical();
  record["scale"] = job.scale();
  record["shape"] = {{"tokens", shape.tokens},
                     {"documents", job.pattern().documents().count()},
                     {"heads", shape.heads},
                     {"kv_heads", shape.kv_heads},
                     {"head_dim", shape.head_dim},
                     {"type", name_of(shape.type)},
                     {"output_type", name_of(job.output_type())}};
  record["plan"] = shared_json(job.shared());
  record["plan"]["stripes"] = job.stripes();
  record["plan"]["steps"] = job.total_steps();
  record["plan"]["seconds"] = planning;
  record["plan"]["per_rank"] = figures_json(figures, shown);
  const auto write_record = [&] {
    ranks.on_root([&] { report::write_record(record, options.record); });
    if (!to_stdout) log.info("Run record: " + options.record);
  };
  if (options.dry_run) {
    record["dry_run"] = true;
    if (settings.has("json")) write_record();  // else it would replace the record of the run that made the output
    log.info("Dry run: nothing was computed and no output was touched.");
    return 0;
  }
  if (job.already_complete()) {
    log.info(fmt::format("{} is complete already: nothing to do.", options.output));
    return 0;
  }
  if (job.finished_stripes() > 0)
    log.info(fmt::format("Going on: {} stripes of all ranks are finished.", report::count_text(job.finished_stripes())));

  std::optional<report::Progress> progress;
  progress.emplace(log, "attend", job.stripes() + static_cast<int64_t>(job.shared().batches.size()), "stripes");
  const engine::Record mine = job.run(
      *device, *transport, [&](int64_t stripe, int64_t) { progress->update(stripe); }, [&] { return signals.stop_requested(); });
  progress->finish();

  // End block: where the time went, what moved, what to change.
  const Spread total = spread_of(ranks, mine.total), attend = spread_of(ranks, mine.attend), exchange = spread_of(ranks, mine.exchange);
  const Spread load = spread_of(ranks, mine.load), input = spread_of(ranks, mine.input), output = spread_of(ranks, mine.output);
  report::Table table({"<seconds", "min", "mean", "max", "rank of max", "% of total"});
  ordered_json& sections = record["sections"] = ordered_json::object();
  for (const Section& section : kSections) {
    const Spread spread = spread_of(ranks, mine.*section.seconds);
    sections[section.key] = to_json(spread);
    table.add({section.title, fmt::format("{:.3f}", spread.least), fmt::format("{:.3f}", spread.mean), fmt::format("{:.3f}", spread.most),
               std::to_string(spread.rank_of_most), report::percent_text(total.mean > 0 ? spread.mean / total.mean : 0)});
  }
  table.add({"total", fmt::format("{:.3f}", total.least), fmt::format("{:.3f}", total.mean), fmt::format("{:.3f}", total.most),
             std::to_string(total.rank_of_most), ""});
  sections["total"] = to_json(total);

  const int64_t received = ranks.sum(mine.bytes_received), planned = ranks.sum(mine.planned_bytes_received);
  const int64_t rows_moved = ranks.sum(mine.row_bytes_received), read_again = ranks.sum(mine.bytes_read_again);
  const int64_t lower_bound = ranks.sum(job.plan().bytes_lower_bound());
  const int64_t ring = ranks.sum(job.plan().ring_bytes(job.shared()));
  double flop = 0;
  for (double rank : ranks.all_gather(job.plan().flop(shape))) flop += rank;
  const double in_flight = spread_of(ranks, mine.in_flight).mean;
  const double overlap = in_flight > 0 ? std::max(0.0, 1 - exchange.mean / in_flight) : 1;
  const double imbalance = attend.mean > 0 ? attend.most / attend.mean : 1;
  const Spread peak = spread_of(ranks, static_cast<double>(launch::peak_memory()));
  const double seconds = std::max(total.most, 1e-9);
  const bool whole = job.finished_stripes() == 0;
  std::vector<std::pair<std::string, std::string>> summary{
      {"wall time", report::duration_text(total.most)},
      {"throughput", whole ? report::rate_text(static_cast<double>(shape.tokens) / seconds, "tokens") + ", " +
                                 report::rate_text(flop / seconds, "FLOP") + " over visited 64x64 quarters"
                           : "not told for a part of a job"},
      {"K/V moved", fmt::format("{} = planned; lower bound {}, a dense ring {}", report::bytes_text(received),
                                report::bytes_text(lower_bound), report::bytes_text(ring))},
      {"overlap", in_flight > 0
                      ? fmt::format("{} of the time that keys were on their way was hidden by compute", report::percent_text(overlap))
                      : "nothing to hide"},
      {"imbalance", fmt::format("{:.2f} (busiest rank over mean)", imbalance)},
      {"peak memory", fmt::format("{} (rank {}; the plan's and what the program itself takes)",
                                  report::bytes_text(static_cast<int64_t>(peak.most)), peak.rank_of_most)}};
  const int64_t crossed = ranks.sum(mine.bytes_from_other_hosts), if_flat = ranks.sum(mine.bytes_from_other_hosts_if_flat);
  const int64_t least_crossing = ranks.sum(mine.least_bytes_to_host);
  if (if_flat > 0) {
    summary.emplace_back("between hosts", fmt::format("{}; lower bound, once to each host, {}; flat {}", report::bytes_text(crossed),
                                                      report::bytes_text(least_crossing), report::bytes_text(if_flat)));
  }
  if (rows_moved > 0) summary.emplace_back("long rows", report::bytes_text(rows_moved) + " of queries and states moved");
  if (read_again > 0) summary.emplace_back("read again", report::bytes_text(read_again) + " of keys and values");
  summary.emplace_back("output", options.output);
  log.info("Time by section, over the ranks\n" + table.text(2));
  log.info("Done\n" + report::pairs_text(summary, 2));

  Notes notes;
  const auto lost = [&](double part) { return total.mean > 0 ? part / total.mean : 0; };
  const bool sharing = std::any_of(places.begin(), places.end(), [](const launch::Place& place) { return place.threads == 1; });
  if (seconds > 1) {  // shorter jobs are all start-up
    notes.add("imbalance", lost(attend.most - attend.mean), "ranks wait for the busiest one",
              "--partition auto or balanced, or fewer ranks");
    notes.add("exchange", lost(exchange.mean),
              read_again > 0 ? "keys are read again because memory is small" : "ranks wait for keys of others",
              read_again > 0 ? "a larger --memory, or more ranks"
              : sharing      ? "fewer ranks with more --threads"
                             : "a larger --memory, or fewer ranks");
    notes.add("input", lost(load.mean + input.mean), "ranks wait for the input to be read",
              "a faster disk, or a contiguous (unfiltered) input");
    notes.add("output", lost(output.mean), "ranks wait for results to be written", "--output on a faster disk, or --output-type bfloat16");
  }
  for (const std::string& note : notes.lines()) log.info(note);

  record["result"] = {{"wall_seconds", total.most},
                      {"tokens_per_second", whole ? ordered_json(static_cast<double>(shape.tokens) / seconds) : ordered_json()},
                      {"flop", flop},
                      {"flop_per_second", whole ? ordered_json(flop / seconds) : ordered_json()},
                      {"kv_bytes_planned", planned},
                      {"kv_bytes_moved", received},
                      {"kv_bytes_lower_bound", lower_bound},
                      {"kv_bytes_ring", ring},
                      {"kv_bytes_read_again", read_again},
                      {"long_row_bytes_moved", rows_moved},
                      {"kv_bytes_between_hosts", crossed},
                      {"kv_bytes_between_hosts_lower_bound", least_crossing},
                      {"kv_bytes_between_hosts_flat", if_flat},
                      {"imbalance", imbalance},
                      {"overlap", overlap},
                      {"peak_memory", to_json(peak)},
                      {"finished_stripes_before", job.finished_stripes()},
                      {"output", options.output}};
  record["notes"] = notes.json();
  write_record();
  return 0;
}

}  // namespace longspan::cli
