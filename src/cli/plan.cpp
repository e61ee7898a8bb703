#include "cli/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cli/commands.hpp"
#include "cli/job_time.hpp"
#include "cli/machine_file.hpp"
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
  options.exchange = plan::exchange_kind_named(settings.text("exchange")).value();
  options.reproducible = settings.flag("reproducible");
  options.machine = settings.maybe_text("machine");
  if (const auto count = settings.maybe_integer("ranks-per-host")) options.ranks_per_host = static_cast<int>(*count);
  if (options.ranks_per_host && !options.machine)
    problems.push_back(settings.problem("ranks-per-host", "nothing is predicted without a machine", "--machine FILE beside it"));
  options.json = settings.maybe_text("json");
  if (!problems.empty()) throw Error(problems);
  return options;
}

namespace {

std::vector<int> ranks_to_plan(const PlanOptions& options, int ranks_per_host) {
  return options.rank ? std::vector<int>{static_cast<int>(*options.rank)} : plan::sampled_ranks(options.ranks, ranks_per_host);
}

std::string prediction_text(const plan::JobTime& time, const plan::JobTime& worst, const MachineRates& machine, const PlanOptions& options,
                            double flop) {
  const double seconds = std::max(time.seconds, 1e-9);
  std::vector<std::pair<std::string, std::string>> lines{{"rates", fmt::format("{}: {}", *options.machine, machine.measured_on)}};
  if (options.rank) {
    lines.emplace_back("time", report::duration_text(time.seconds) + " on this rank");
  } else {
    lines.emplace_back("time", fmt::format("{}, rank {} the slowest; {} at the rates of the machine's slowest rank",
                                           report::duration_text(time.seconds), time.slowest_rank, report::duration_text(worst.seconds)));
    lines.emplace_back("throughput", fmt::format("{}, {} per rank",
                                                 report::rate_text(static_cast<double>(options.subject.shape.tokens) / seconds, "tokens"),
                                                 report::rate_text(flop / seconds, "FLOP")));
    lines.emplace_back("imbalance", fmt::format("{:.2f} (busiest rank over mean)", time.imbalance));
  }
  lines.emplace_back("time per step", report::duration_text(time.step_seconds));
  lines.emplace_back("exposed exchange", report::percent_text(time.exposed) + " of the time");
  lines.emplace_back("memory", report::bytes_text(time.memory) + (options.rank ? "" : " on the rank that takes most"));
  if (time.busiest_sender > 0.5 * time.seconds)
    lines.emplace_back("busiest sender",
                       fmt::format("rank {} sends for {}", time.busiest_sender_rank, report::duration_text(time.busiest_sender)));
  for (const std::string& remark : machine.remarks) lines.emplace_back("assumed", remark);
  report::Table table({"<seconds", "mean", "slowest rank"});
  for (const JobTimeSection& section : kJobTimeSections)
    table.add({section.title, fmt::format("{:.4g}", time.mean.*section.seconds), fmt::format("{:.4g}", time.slowest.*section.seconds)});
  return "\nPredicted\n" + report::pairs_text(lines, 2) + "\n" + table.text(2);
}

nlohmann::ordered_json prediction_json(const plan::JobTime& time, const plan::JobTime& worst, const MachineRates& machine,
                                       const PlanOptions& options, double flop) {
  const double seconds = std::max(time.seconds, 1e-9);
  nlohmann::ordered_json json = {{"machine", *options.machine},
                                 {"measured_on", machine.measured_on},
                                 {"remarks", machine.remarks},
                                 {"worst_rates_seconds", worst.seconds},
                                 {"tokens_per_second", static_cast<double>(options.subject.shape.tokens) / seconds},
                                 {"flop_per_second_per_rank", flop / seconds}};
  json.update(job_time_json(time));
  return json;
}

}  // namespace

int run_plan(const Settings& settings, const Context& context) {
  const PlanOptions options = plan_options(settings);
  const pattern::BoundPattern pattern(options.pattern, options.subject.shape.heads, options.subject.shape.kv_heads,
                                      options.subject.documents, options.subject.sources);
  const plan::Blocks blocks(options.subject.documents);
  plan::Options planning;
  planning.partition = options.partition;
  planning.exchange = options.exchange;
  planning.reproducible = options.reproducible;
  planning.output_type = options.subject.shape.type;
  planning.memory = options.memory.value_or(int64_t{1} << 50);
  std::optional<MachineRates> machine;
  if (options.machine) {
    machine = read_machine(*options.machine, options.subject.shape, planning.output_type);
    planning.on_gpu = machine->on_gpu;
    for (plan::Rates* rates : {&machine->typical, &machine->worst}) {
      if (options.ranks_per_host) rates->ranks_per_host = *options.ranks_per_host;
      // The disk is one for all ranks.
      rates->read_bytes_per_second /= static_cast<double>(options.ranks);
      rates->write_bytes_per_second /= static_cast<double>(options.ranks);
    }
  }
  const std::vector<int> ranks = ranks_to_plan(options, machine ? machine->typical.ranks_per_host : 1);
  planning.exact_tiles /= static_cast<int64_t>(ranks.size());  // in all
  const auto start = std::chrono::steady_clock::now();
  const plan::Shared shared = plan::make_shared(pattern, blocks, options.subject.shape, static_cast<int>(options.ranks), planning);
  std::vector<std::vector<Figure>> figures;
  std::vector<plan::RankPlan> plans;
  std::vector<plan::RankWork> works;
  double flop = 0;  // of a rank, mean
  bool estimated = false;
  for (int rank : ranks) {
    plan::RankPlan plan = plan::make_rank_plan(shared, pattern, blocks, rank);
    figures.push_back(figures_of(shared, plan, blocks));
    estimated = estimated || plan.estimated();
    if (!machine) continue;
    works.push_back(plan::work_of(shared, pattern, blocks, plan, machine->typical.ranks_per_host));
    flop += plan.flop(options.subject.shape) / static_cast<double>(ranks.size());
    plans.push_back(std::move(plan));
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  if (machine) plan::share_within_hosts(shared, plans, machine->typical.ranks_per_host, works);
  const auto predicted = [&](const plan::Rates& rates) { return plan::play(works, static_cast<int>(options.ranks), rates); };
  const plan::JobTime time = machine ? predicted(machine->typical) : plan::JobTime{};
  const plan::JobTime worst = machine ? predicted(machine->worst) : plan::JobTime{};

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
    if (machine) record["prediction"] = prediction_json(time, worst, *machine, options, flop);
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
  if (machine) fmt::print("{}", prediction_text(time, worst, *machine, options, flop));
  return 0;
}

}  // namespace longspan::cli
