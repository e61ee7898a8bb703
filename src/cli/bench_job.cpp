// longspan bench job: a whole job from file to file beside what its disk and its kernel allow, all measured in turns in one launch.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "bench/link.hpp"
#include "bench/probe.hpp"
#include "cli/bench_launch.hpp"
#include "cli/commands.hpp"
#include "cli/subject.hpp"
#include "doctor/disk_rate.hpp"
#include "io/posix_file.hpp"
#include "job/attend_job.hpp"
#include "report/build_info.hpp"
#include "report/format.hpp"
#include "report/log.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

using nlohmann::ordered_json;

// One run; sections of the rank that took longest.
struct Run {
  engine::Record slowest;
  double seconds = 0;
  double disk_read = 0, disk_write = 0;  // bytes per second of all ranks together, right after it
};

// Where the output goes for the time of the runs. It stays behind only where the program is ended from outside or by MPI_Abort.
class ScratchOutput {
 public:
  ScratchOutput(const comm::Communicator& ranks, const std::string& folder) : here_(ranks.rank() == 0) {
    const std::string name = fmt::format("longspan-bench-{}.h5", getpid());
    path_ = (std::filesystem::path(folder) / ranks.broadcast(name)).string();
  }
  ~ScratchOutput() {
    std::error_code ignored;
    for (const char* suffix : {"", ".ledger"})
      if (here_) std::filesystem::remove(path_ + suffix, ignored);
  }
  ScratchOutput(const ScratchOutput&) = delete;
  ScratchOutput& operator=(const ScratchOutput&) = delete;
  const std::string& path() const { return path_; }

 private:
  bool here_;
  std::string path_;
};

Run slowest_of(const comm::Communicator& ranks, const engine::Record& mine) {
  Run run;
  const std::vector<double> totals = ranks.all_gather(mine.total);
  const auto rank = static_cast<size_t>(std::max_element(totals.begin(), totals.end()) - totals.begin());
  run.seconds = totals[rank];
  for (double engine::Record::*section : {&engine::Record::load, &engine::Record::plan, &engine::Record::exchange, &engine::Record::attend,
                                          &engine::Record::finish, &engine::Record::input, &engine::Record::output})
    run.slowest.*section = ranks.all_gather(mine.*section)[rank];
  return run;
}

// Seconds of the rank with most to compute, at the rates that were measured.
double compute_seconds(const comm::Communicator& ranks, const job::AttendJob& job, const plan::Rates& rates) {
  const plan::Blocks blocks(job.pattern().documents());
  double seconds = 0;
  for (const plan::StripeWork& stripe : plan::work_of(job.shared(), job.pattern(), blocks, job.plan(), ranks.size()).stripes)
    for (const plan::StepWork& step : stripe.steps) seconds += plan::compute_seconds(step, rates);
  const std::vector<double> all = ranks.all_gather(seconds);
  return *std::max_element(all.begin(), all.end());
}

std::string gigabytes(double bytes) { return fmt::format("{:.3g}", bytes / 1e9); }

}  // namespace

int run_bench_job(const Settings& settings, const Context& context) {
  const comm::Communicator& ranks = *context.ranks;
  check_bench(ranks, settings);
  job::AttendRequest request;
  ranks.agreed([&] { request.pattern = pattern_from(settings); });
  const io::CorpusLayout corpus = *bench_corpus(ranks, settings);
  const BenchPlace place = bench_place(ranks, settings);
  const std::unique_ptr<comm::Transport> transport = bench_transport(ranks, settings, place);
  const ScratchOutput output(ranks, settings.text("folder"));
  request.input = corpus.paths;
  request.output = output.path();
  request.memory = settings.maybe_integer("memory");
  request.default_memory = place.memory;
  request.step_bytes = transport->passes_host_memory() ? place.host_memory / 4 : 0;
  request.device = place.identity;
  if (settings.given("partition")) request.partition = plan::partition_kind_named(settings.text("partition"));
  request.exchange = plan::exchange_kind_named(settings.text("exchange")).value();
  request.overwrite = true;
  request.timeout = settings.real("timeout");
  request.version = request.build = report::version();

  const bool to_stdout = settings.maybe_text("json") == "-";
  report::Log log(report::Level::info, ranks.rank() == 0, to_stdout ? stderr : stdout);
  const auto times = static_cast<int>(settings.integer("iterations"));
  const Shape& shape = corpus.shape;
  const int64_t documents = corpus.document_offsets.empty() ? 1 : static_cast<int64_t>(corpus.document_offsets.size()) - 1;
  log.info(fmt::format("# longspan bench job: {} rank{} on {} host{}, {}, {}\n# {}\n# {}\n# {} run{}, the input out of memory before each",
                       ranks.size(), ranks.size() == 1 ? "" : "s", ranks.hosts(), ranks.hosts() == 1 ? "" : "s", place.text,
                       transport->name(), request.pattern.canonical(), shape_text(shape, documents), times, times == 1 ? "" : "s"));

  bench::Probe probe(ranks, shape, shape.type, *place.device, settings.real("probe-time"));
  std::vector<Run> runs;
  double compute = 0;
  for (int time = 0; time < times; ++time) {
    io::forget_cached(corpus.paths.file);
    ranks.barrier();
    {
      job::AttendJob job(ranks, request);
      runs.push_back(slowest_of(ranks, job.run(*place.device, *transport, [](int64_t, int64_t) {})));
      probe.sample();
      compute = compute_seconds(ranks, job, probe.rates());
    }
    const doctor::DiskRate disk = doctor::disk_rate(ranks, settings.text("folder"), settings.integer("disk-bytes"));
    std::vector<Problem> problems;
    if (!disk.problem.empty())
      problems.push_back({.code = ExitCode::io, .what = "the folder cannot be measured", .seen = disk.problem, .from = "option --folder"});
    ranks.agree(problems);
    runs.back().disk_read = disk.read_bytes_per_second;
    runs.back().disk_write = disk.write_bytes_per_second;
  }

  const auto tokens = static_cast<double>(shape.tokens), element = static_cast<double>(size_of(shape.type));
  const double read = tokens * (shape.heads + 2 * shape.kv_heads) * shape.head_dim * element;
  const double written = tokens * shape.heads * (shape.head_dim * element + sizeof(float));
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.seconds < b.seconds; });
  const Run& typical = runs[runs.size() / 2];
  std::vector<double> reads, writes;
  for (const Run& run : runs) reads.push_back(run.disk_read), writes.push_back(run.disk_write);
  const double disk_read = bench::median(reads), disk_write = bench::median(writes);
  const double disk = read / disk_read + written / disk_write, bound = std::max(disk, compute);

  report::Table table({"<", "seconds", "GB", "GB/s", "of the run"});
  const auto add = [&](const std::string& what, double seconds, double bytes) {
    table.add({what, fmt::format("{:.3f}", seconds), bytes > 0 ? gigabytes(bytes) : "",
               bytes > 0 && seconds > 0 ? gigabytes(bytes / seconds) : "", report::percent_text(seconds / typical.seconds)});
  };
  add("the job, median", typical.seconds, read + written);
  add("  keys and values in", typical.slowest.load, 0);
  add("  making lists", typical.slowest.plan, 0);
  add("  waiting for keys", typical.slowest.exchange, 0);
  add("  computing", typical.slowest.attend + typical.slowest.finish, 0);
  add("  waiting for queries", typical.slowest.input, 0);
  add("  waiting for results to be written", typical.slowest.output, 0);
  add("the disk alone: reading", read / disk_read, read);
  add("the disk alone: writing, synced", written / disk_write, written);
  add("the kernel alone", compute, 0);
  log.info(table.text());
  log.info(
      fmt::format("# {:.2f} times the larger of disk ({:.3g} s) and kernel ({:.3g} s), each at the rate measured after the runs.\n"
                  "# sections: of the rank that took longest. the disk: {} a rank written to {} and read back, not from memory.",
                  typical.seconds / bound, disk, compute, report::bytes_text(settings.integer("disk-bytes")), settings.text("folder")));

  if (settings.has("json")) {
    ordered_json record = bench_record(settings, context, place, shape, documents);
    record["transport"] = transport->name();
    record["pattern"] = request.pattern.canonical();
    ordered_json& all = record["runs"] = ordered_json::array();
    for (const Run& run : runs)
      all.push_back({{"seconds", run.seconds},
                     {"sections",
                      {{"load", run.slowest.load},
                       {"plan", run.slowest.plan},
                       {"exchange", run.slowest.exchange},
                       {"attend", run.slowest.attend},
                       {"finish", run.slowest.finish},
                       {"input", run.slowest.input},
                       {"output", run.slowest.output}}},
                     {"disk_read_bytes_per_second", run.disk_read},
                     {"disk_write_bytes_per_second", run.disk_write}});
    record["result"] = {{"median_seconds", typical.seconds}, {"bytes_read", read},
                        {"bytes_written", written},          {"disk_seconds", disk},
                        {"kernel_seconds", compute},         {"over_bound", typical.seconds / bound}};
    ranks.on_root([&] { report::write_record(record, settings.text("json")); });
  }
  return 0;
}

}  // namespace longspan::cli
