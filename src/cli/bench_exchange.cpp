// longspan bench exchange: what moves under a pattern, how fast, and how fast it could.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "bench/exchange.hpp"
#include "cli/bench_launch.hpp"
#include "cli/commands.hpp"
#include "cli/subject.hpp"
#include "report/format.hpp"
#include "report/log.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

using nlohmann::ordered_json;

struct NamedPattern {
  std::string name, text;
};

// What jobs move, from little to much: a halo; every 16th block, one by one; blocks from everywhere; everything before the query.
std::vector<NamedPattern> default_patterns(const Documents& documents) {
  const int64_t blocks = (documents.tokens() + plan::kBlock - 1) / plan::kBlock;
  return {{"window", "causal & window(4095)"},
          {"strided", "causal & (window(127) | fixed(2Ki, 128))"},
          {"random 1 %", fmt::format("causal & block_random(128, {}, 1, 1)", std::max<int64_t>(1, (blocks + 50) / 100))},
          {"causal", "causal"}};
}

std::string megabytes(double bytes) { return fmt::format("{:.{}f}", bytes / 1e6, bytes < 1e7 ? 2 : 1); }
std::string milliseconds(double seconds) { return fmt::format("{:.3f}", seconds * 1e3); }
std::string gigabytes_per_second(double rate) { return rate > 0 ? fmt::format("{:.2f}", rate / 1e9) : "-"; }

struct Summary {
  double typical = 0, contiguous = 0;                        // seconds
  double received_mean = 0, received_most = 0, busiest = 0;  // bytes; busiest: received or sent
  double messages_most = 0;
  double rate() const { return typical > 0 ? busiest / typical : 0; }
};

Summary summary_of(const bench::ExchangeMeasure& measure) {
  Summary summary{.typical = bench::median(measure.seconds), .contiguous = bench::median(measure.contiguous_seconds)};
  for (const bench::ExchangeOfRank& rank : measure.ranks) {
    const auto received = static_cast<double>(rank.bytes_received);
    summary.received_mean += received / static_cast<double>(measure.ranks.size());
    summary.received_most = std::max(summary.received_most, received);
    summary.busiest = std::max({summary.busiest, received, static_cast<double>(rank.bytes_sent)});
    summary.messages_most = std::max(summary.messages_most, static_cast<double>(rank.messages_received));
  }
  return summary;
}

ordered_json speed_json(const bench::LinkSpeed& speed) {
  if (speed.bytes_per_second <= 0) return nullptr;
  return {{"latency_seconds", speed.latency}, {"bytes_per_second", speed.bytes_per_second}};
}

ordered_json measure_json(const NamedPattern& pattern, const bench::PreparedJob& job, const bench::ExchangeMeasure& measure) {
  const Summary summary = summary_of(measure);
  ordered_json ranks = ordered_json::array();
  int64_t planned = 0, moved = 0, bound = 0, ring = 0;
  for (size_t r = 0; r < measure.ranks.size(); ++r) {
    const bench::ExchangeOfRank& rank = measure.ranks[r];
    planned += rank.planned_bytes_received, moved += rank.bytes_received, bound += rank.bytes_lower_bound, ring += rank.bytes_ring;
    ranks.push_back({{"rank", r},
                     {"bytes_planned", rank.planned_bytes_received},
                     {"bytes_received", rank.bytes_received},
                     {"bytes_sent", rank.bytes_sent},
                     {"bytes_from_other_hosts", rank.bytes_from_other_hosts},
                     {"messages_received", rank.messages_received},
                     {"steps", rank.steps},
                     {"seconds", rank.seconds},
                     {"link_seconds", rank.link_seconds}});
  }
  const auto share = [&](double part) { return summary.typical > 0 ? ordered_json(part / summary.typical) : ordered_json(); };
  return {{"name", pattern.name},
          {"pattern", job.job().pattern.canonical()},
          {"partition", plan::name_of(job.shared().partition.kind())},
          {"bytes_planned", planned},
          {"bytes_moved", moved},
          {"bytes_lower_bound", bound},
          {"bytes_ring", ring},
          {"bytes_between_hosts_planned", measure.bytes_between_hosts()},
          {"network_bytes", measure.network_bytes ? ordered_json(*measure.network_bytes) : ordered_json()},
          {"message_bytes", measure.message_bytes},
          {"seconds", measure.seconds},
          {"median_seconds", summary.typical},
          {"contiguous_seconds", measure.contiguous_seconds},
          {"link_seconds", measure.link_seconds},
          {"bytes_per_second", summary.rate()},
          {"of_link", share(measure.link_seconds)},
          {"pack_share", summary.typical > 0 ? ordered_json(1 - summary.contiguous / summary.typical) : ordered_json()},
          {"link", {{"within_host", speed_json(measure.within_host)}, {"across_hosts", speed_json(measure.across_hosts)}}},
          {"ranks", std::move(ranks)}};
}

}  // namespace

int run_bench_exchange(const Settings& settings, const Context& context) {
  const comm::Communicator& ranks = *context.ranks;
  check_bench(ranks, settings);
  std::vector<NamedPattern> patterns;
  bench::Job first;
  ranks.agreed([&] {
    if (settings.has("pattern")) {
      const pattern::Pattern pattern = pattern_from(settings);
      patterns.push_back({"given", pattern.text()});
      first = bench_job(settings, pattern);
    } else {
      first = bench_job(settings, pattern::Pattern::parse("causal"));
      patterns = default_patterns(first.documents);
    }
  });
  const std::optional<io::CorpusLayout> corpus = bench_corpus(ranks, settings);
  const auto times = static_cast<int>(settings.integer("iterations"));
  const BenchPlace place = bench_place(ranks, settings);
  first.on_gpu = !place.device->memory_is_host();
  const std::unique_ptr<comm::Transport> transport = bench_transport(ranks, settings, place);
  const bool to_stdout = settings.maybe_text("json") == "-";
  report::Log log(report::Level::info, ranks.rank() == 0, to_stdout ? stderr : stdout);

  log.info(fmt::format("# longspan bench exchange: {} rank{} on {} host{}, {}, {}\n# {}\n# {} times after one that does not count; medians",
                       ranks.size(), ranks.size() == 1 ? "" : "s", ranks.hosts(), ranks.hosts() == 1 ? "" : "s", place.text,
                       transport->name(), shape_text(first.shape, first.documents.count()), times));

  report::Table table({"<pattern", "received MB", "most MB", "messages", "steps", "time ms", "GB/s", "link GB/s", "of link",
                       "contiguous ms", "pack", "of a ring", "between hosts MB", "on the wire"});
  ordered_json results = ordered_json::array();
  std::string texts;
  for (const NamedPattern& pattern : patterns) {
    std::optional<bench::PreparedJob> job;
    bench::JobRows rows;
    bench::Job what = first;
    what.pattern = pattern::Pattern::parse(pattern.text);
    what.through_host_memory = transport->passes_host_memory();
    job.emplace(ranks, std::move(what));
    ranks.agreed([&] { rows = bench_rows(*job, corpus, *place.device, bench::RowsIn::host); });
    const bench::ExchangeMeasure measure = bench::measure_exchange(ranks, *job, *rows.input, *place.device, *transport, times);
    const Summary summary = summary_of(measure);
    int64_t steps = 0, ring = 0, moved = 0;
    for (const bench::ExchangeOfRank& rank : measure.ranks)
      steps = std::max(steps, rank.steps), ring += rank.bytes_ring, moved += rank.bytes_received;
    const bool moves = summary.busiest > 0 && summary.typical > 0;
    const double link_rate = measure.link_seconds > 0 ? summary.busiest / measure.link_seconds : 0;
    const int64_t between = measure.bytes_between_hosts();
    table.add({pattern.name, megabytes(summary.received_mean), megabytes(summary.received_most),
               fmt::format("{:.0f}", summary.messages_most), std::to_string(steps), moves ? milliseconds(summary.typical) : "-",
               gigabytes_per_second(moves ? summary.rate() : 0), gigabytes_per_second(link_rate),
               moves ? report::percent_text(measure.link_seconds / summary.typical) : "-", moves ? milliseconds(summary.contiguous) : "-",
               moves ? report::percent_text(std::max(0.0, 1 - summary.contiguous / summary.typical)) : "-",
               ring > 0 ? report::percent_text(static_cast<double>(moved) / static_cast<double>(ring)) : "-",
               ranks.hosts() > 1 ? megabytes(static_cast<double>(between)) : "-",
               measure.network_bytes && between > 0
                   ? fmt::format("{:.3f}", static_cast<double>(*measure.network_bytes) / static_cast<double>(between))
                   : "-"});
    texts += fmt::format("#   {}: {}, {}\n", pattern.name, job->job().pattern.canonical(), plan::name_of(job->shared().partition.kind()));
    results.push_back(measure_json(pattern, *job, measure));
  }
  log.info("# patterns\n" + texts);
  log.info(table.text());
  log.info(
      "# K and V that come to a rank (mean, most) in one message per peer and step. GB/s: of the rank that receives or sends most.\n"
      "# link: what it takes the same bytes in one message to one neighbour, every rank sending and receiving at once, in this run.\n"
      "# contiguous: the same messages, each in one run of memory; pack: what gathering and scattering blocks adds.\n"
      "# on the wire: bytes that all hosts' network interfaces sent, over those planned between hosts.");

  if (settings.has("json")) {
    ordered_json record = bench_record(settings, context, place, first.shape, first.documents.count());
    record["transport"] = transport->name();
    record["iterations"] = times;
    record["results"] = std::move(results);
    ranks.on_root([&] { report::write_record(record, settings.text("json")); });
  }
  return 0;
}

}  // namespace longspan::cli
