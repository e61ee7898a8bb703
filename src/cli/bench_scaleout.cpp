// longspan bench scaleout: how a job scales over the ranks of this launch, and whether the cost model knows it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bench/scaleout.hpp"
#include "cli/bench_launch.hpp"
#include "cli/commands.hpp"
#include "cli/job_time.hpp"
#include "cli/machine_file.hpp"
#include "cli/subject.hpp"
#include "report/format.hpp"
#include "report/log.hpp"
#include "report/record.hpp"
#include "report/scaling_chart.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

using bench::ScaleoutPoint;
using nlohmann::ordered_json;

struct Row {
  std::string mode;  // strong, weak, or both: all tokens on all ranks
  ScaleoutPoint point;
};

// FLOP/s of a rank over that of the first point of the mode, which is strong scaling's t₁/(P·t_P), and holds for work that grows unevenly.
double efficiency(const ScaleoutPoint& point, const ScaleoutPoint& first) {
  const double base = first.flop_per_second_per_rank();
  return base > 0 ? point.flop_per_second_per_rank() / base : 0;
}

// The same of the small jobs that no other rank has a part in: what cores, caches and clocks leave of a rank when so many work at once.
double ceiling(const ScaleoutPoint& point, const ScaleoutPoint& first) {
  return first.probe_flop_per_second > 0 ? point.probe_flop_per_second / first.probe_flop_per_second : 0;
}

ordered_json sections_json(const bench::SectionTimes& times) {
  return {{"load", times.load},     {"plan", times.plan}, {"exchange", times.exchange},
          {"attend", times.attend}, {"rows", times.rows}, {"total", times.total}};
}

ordered_json point_json(const Row& row, const ScaleoutPoint& first, const Shape& shape, const BenchPlace& place) {
  const ScaleoutPoint& point = row.point;
  const double best = ceiling(point, first);
  ordered_json json = {
      {"mode", row.mode},
      {"ranks", point.ranks},
      {"hosts", point.hosts},
      {"threads", point.threads},
      {"tokens", point.tokens},
      {"documents", point.documents},
      {"seconds",
       {{"min", *std::min_element(point.seconds.begin(), point.seconds.end())},
        {"median", point.typical},
        {"max", *std::max_element(point.seconds.begin(), point.seconds.end())},
        {"all", point.seconds}}},
      {"tokens_per_second", static_cast<double>(point.tokens) / point.typical},
      {"flop", point.flop},
      {"flop_per_second_per_rank", point.flop_per_second_per_rank()},
      {"efficiency", efficiency(point, first)},
      {"ceiling", best},
      {"efficiency_of_ceiling", best > 0 ? ordered_json(efficiency(point, first) / best) : ordered_json()},
      {"exposed", point.exposed},
      {"imbalance", point.imbalance},
      {"ranks_with_keys_in_rows", point.ranks_with_keys_in_rows},
      {"ranks_that_share_keys", point.ranks_that_share_keys},
      {"kv_bytes_planned", point.kv_bytes_planned},
      {"kv_bytes_moved", point.kv_bytes_moved},
      {"kv_bytes_lower_bound", point.kv_bytes_lower_bound},
      {"moved_over_lower_bound", point.kv_bytes_lower_bound > 0 ? ordered_json(static_cast<double>(point.kv_bytes_moved) /
                                                                               static_cast<double>(point.kv_bytes_lower_bound))
                                                                : ordered_json()},
      {"long_row_bytes_moved", point.row_bytes_moved},
      {"sections", {{"mean", sections_json(point.mean)}, {"slowest", sections_json(point.slowest)}}},
      {"predicted", job_time_json(point.predicted)},
      {"prediction_error", point.prediction_error()},
      {"machine",
       machine_json(
           point.rates, shape,
           {.ranks = point.ranks, .hosts = point.hosts, .threads = point.threads, .device = place.kind, .target = place.device->name()})}};
  return json;
}

// The point on fewest ranks that `mode` has; of strong scaling for the point that both modes share.
const ScaleoutPoint& first_of(const std::vector<Row>& rows, const std::string& mode) {
  const ScaleoutPoint* first = nullptr;
  for (const Row& row : rows)
    if ((row.mode == mode || row.mode == "both" || (mode == "both" && row.mode == "strong")) && (!first || row.point.ranks < first->ranks))
      first = &row.point;
  if (!first) internal_error("a mode of scaling without a run");
  return *first;
}

report::ScalingCurve curve(const std::string& title, const std::vector<Row>& rows, const std::string& mode, bool dashed,
                           const std::function<double(const ScaleoutPoint& point, const ScaleoutPoint& first)>& speedup) {
  report::ScalingCurve curve{.title = title, .dashed = dashed};
  const ScaleoutPoint& first = first_of(rows, mode);
  for (const Row& row : rows)
    if (row.mode == mode || row.mode == "both")
      curve.points.push_back({static_cast<double>(row.point.ranks), row.point.ranks * speedup(row.point, first)});
  std::sort(curve.points.begin(), curve.points.end(), [](const auto& a, const auto& b) { return a.ranks < b.ranks; });
  return curve;
}

double predicted_efficiency(const ScaleoutPoint& point, const ScaleoutPoint& first) {
  const double base = first.flop / std::max(first.predicted.seconds, 1e-12) / first.ranks;
  return base > 0 ? point.flop / std::max(point.predicted.seconds, 1e-12) / point.ranks / base : 0;
}

}  // namespace

int run_bench_scaleout(const Settings& settings, const Context& context) {
  const comm::Communicator& ranks = *context.ranks;
  check_bench(ranks, settings);
  bench::Job job;
  const std::string mode = settings.text("mode");
  ranks.agreed([&] {
    const pattern::Pattern pattern = pattern_from(settings);
    job = bench_job(settings, pattern);
    if (mode != "strong" && !job.sources.empty())
      throw Error(
          settings.problem("mode", "weak scaling cuts the sequence, and lists of block_mask do not fit a part of it", "--mode strong"));
    if (job.shape.tokens < ranks.size())
      throw Error({.code = ExitCode::usage,
                   .what = "fewer tokens than ranks",
                   .seen = std::to_string(job.shape.tokens),
                   .expected = fmt::format("at least {}", ranks.size()),
                   .from = settings.given("tokens") ? "option --tokens" : ""});
  });
  const std::optional<io::CorpusLayout> corpus = bench_corpus(ranks, settings);
  const BenchPlace place = bench_place(ranks, settings);
  job.host_memory = place.host_memory;
  job.on_gpu = !place.device->memory_is_host();
  const auto rows_in = settings.text("rows-in") == "host" ? bench::RowsIn::host : bench::RowsIn::device;
  job.share_keys = settings.text("rows-in") == "shared";
  job.rows_are_copied = job.on_gpu && rows_in == bench::RowsIn::host;
  if (place.gpu && rows_in == bench::RowsIn::device && !job.memory) {
    // In weak scaling alone a rank never has more than its share, or what an uneven partition makes of it; else one has all tokens.
    constexpr int64_t kUneven = 2;
    const int64_t all = job.shape.tokens, share = mode == "weak" ? (all + ranks.size() - 1) / ranks.size() : all;
    const int64_t least = ranks.min(place.memory);  // all plan with as much
    ranks.agreed([&] { job.memory = bench::memory_beside_rows(job, share, std::min(all, kUneven * share), least); });
  }
  const bool to_stdout = settings.maybe_text("json") == "-";
  report::Log log(report::Level::info, ranks.rank() == 0, to_stdout ? stderr : stdout);
  bench::ScaleoutOptions options;
  options.times = static_cast<int>(settings.integer("iterations"));
  options.probe_seconds = settings.real("probe-time");
  options.rows = [&](const bench::PreparedJob& prepared) { return bench_rows(prepared, corpus, *place.device, rows_in); };
  options.rows_in = rows_in;
  options.transport = [&](const comm::Communicator& few) { return bench_transport(few, settings, place); };

  log.info(
      fmt::format("# longspan bench scaleout: {} rank{} on {} host{}, {}\n# {}\n# {}\n# rows in {}; {} runs after one that does not "
                  "count, medians of the slowest rank; rates of the prediction measured in this launch",
                  ranks.size(), ranks.size() == 1 ? "" : "s", ranks.hosts(), ranks.hosts() == 1 ? "" : "s", place.text,
                  job.pattern.canonical(), shape_text(job.shape, job.documents.count()),
                  job.share_keys                     ? "the device's memory, used in place, also by GPUs with peer access"
                  : rows_in == bench::RowsIn::device ? "the device's memory, used in place"
                  : job.rows_are_copied              ? "pinned memory"
                                                     : "memory",
                  options.times));

  std::vector<Row> rows;
  const auto measure = [&](const std::string& name, int count, int64_t tokens) {
    const auto point = bench::measure_scaleout(ranks, count, job, tokens, *place.device, place.threads, options);
    if (ranks.rank() == 0 && point) rows.push_back({name, *point});
  };
  const std::vector<int> counts = bench::rank_counts(ranks.size());
  const auto part = [&](int count) { return std::max<int64_t>(1, job.shape.tokens / ranks.size() * count); };
  if (mode != "weak")
    for (int count : counts) measure(mode == "both" && count == ranks.size() ? "both" : "strong", count, job.shape.tokens);
  if (mode != "strong")
    for (int count : counts)
      if (mode == "weak" || count < ranks.size()) measure("weak", count, count == ranks.size() ? job.shape.tokens : part(count));

  if (ranks.rank() == 0) {
    report::Table table({"<scaling", "ranks", "hosts", "tokens", "time ms", "tokens/s", "GFLOP/s/rank", "efficiency", "cores give",
                         "of that", "exposed", "imbalance", "moved MB", "over bound", "predicted ms", "error"});
    ordered_json results = ordered_json::array();
    for (const Row& row : rows) {
      const ScaleoutPoint& point = row.point;
      const ScaleoutPoint& first = first_of(rows, row.mode);
      const double efficient = efficiency(point, first), best = ceiling(point, first);
      table.add({row.mode, std::to_string(point.ranks), std::to_string(point.hosts), report::count_text(point.tokens),
                 fmt::format("{:.1f}", point.typical * 1e3), report::amount_text(static_cast<double>(point.tokens) / point.typical, ""),
                 fmt::format("{:.1f}", point.flop_per_second_per_rank() / 1e9), report::percent_text(efficient), report::percent_text(best),
                 best > 0 ? report::percent_text(efficient / best) : "-", report::percent_text(point.exposed),
                 fmt::format("{:.2f}", point.imbalance), fmt::format("{:.1f}", static_cast<double>(point.kv_bytes_moved) / 1e6),
                 point.kv_bytes_lower_bound > 0
                     ? fmt::format("{:.3f}", static_cast<double>(point.kv_bytes_moved) / static_cast<double>(point.kv_bytes_lower_bound))
                     : "-",
                 fmt::format("{:.1f}", point.predicted.seconds * 1e3), fmt::format("{:+.1f} %", 100 * point.prediction_error())});
      results.push_back(point_json(row, first, job.shape, place));
    }
    log.info(table.text());
    log.info(
        "# efficiency: a rank's FLOP/s over those on one rank; cores give: the same of small jobs without exchange, as many ranks at "
        "once;\n"
        "# of that: the one over the other. exposed: time in which ranks start messages and wait for others. moved: K and V of all ranks.\n"
        "# both: all tokens on all ranks, the last point of either mode. weak: ranks/all of the tokens.");
    if (settings.has("svg")) {
      std::vector<report::ScalingCurve> curves;
      for (const char* which : {"strong", "weak"}) {
        if (mode != "both" && mode != which) continue;
        curves.push_back(curve(fmt::format("{}, measured", which), rows, which, false, efficiency));
        curves.push_back(curve(fmt::format("{}, predicted", which), rows, which, true, predicted_efficiency));
        curves.push_back(curve(fmt::format("{}, what the cores give", which), rows, which, true, ceiling));
      }
      report::write_text(
          report::scaling_svg(job.pattern.canonical(), shape_text(job.shape, job.documents.count()) + "\n" + place.text, curves),
          settings.text("svg"));
    }
    if (settings.has("json")) {
      ordered_json record = bench_record(settings, context, place, job.shape, job.documents.count());
      record["pattern"] = job.pattern.canonical();
      record["iterations"] = options.times;
      // The rates with all ranks at work: what plan --machine takes.
      for (const ordered_json& result : results)
        if (result["ranks"] == ranks.size()) record["machine"] = result["machine"];
      record["results"] = std::move(results);
      report::write_record(record, settings.text("json"));
    }
  }
  ranks.barrier_at_rest();
  return 0;
}

}  // namespace longspan::cli
