// longspan doctor: a minute's check of the ranks, hosts, GPUs, links and disk of a launch before the big job.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "bench/kernel.hpp"
#include "bench/link.hpp"
#include "bench/row_link.hpp"
#include "cli/commands.hpp"
#include "cli/effective.hpp"
#include "cli/rank_map.hpp"
#include "comm/link_rate.hpp"
#include "comm/transport.hpp"
#include "doctor/check.hpp"
#include "doctor/compute_rate.hpp"
#include "doctor/disk_rate.hpp"
#include "doctor/memory_rate.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/gpus.hpp"
#include "launch/gpu_choice.hpp"
#include "launch/topology.hpp"
#include "report/format.hpp"
#include "report/log.hpp"
#include "report/record.hpp"
#include "report/table.hpp"

namespace longspan::cli {

namespace {

using doctor::Better;
using doctor::Spread;
using doctor::Verdict;
using nlohmann::ordered_json;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr double kNcclTimeout = 60;     // seconds for NCCL to come up on all ranks
constexpr double kLatencyPatience = 5;  // latencies scatter: theirs is so many times the tolerance

// A figure's unit, and what it is divided by to be read.
struct Unit {
  const char* name;
  double size;
};
constexpr Unit kGigabytes{"GB/s", 1e9}, kGibibytes{"GiB", 1 << 30}, kGigaflop{"GFLOP/s", 1e9}, kTeraflop{"TFLOP/s", 1e12},
    kMicroseconds{"µs", 1e-6}, kMilliseconds{"ms", 1e-3}, kCount{"", 1};

const char* name_of(Verdict verdict) { return verdict == Verdict::ok ? "ok" : verdict == Verdict::slow ? "slow" : "UNFIT"; }

ordered_json number_or_null(double value) { return std::isfinite(value) ? ordered_json(value) : ordered_json(); }

ordered_json spread_json(const Spread& spread) {
  if (spread.worst_rank < 0) return nullptr;
  return {{"min", spread.least}, {"median", spread.median}, {"max", spread.most}, {"rank_of_worst", spread.worst_rank}};
}

// Collects the checks: every rank calls the same ones in the same order, each with its own value; the table and the record grow on all.
class Examination {
 public:
  Examination(const comm::Communicator& ranks, double tolerance)
      : ranks_(ranks),
        tolerance_(tolerance),
        table_({"<check", "<unit", "slowest", "median", "fastest", "slowest rank", "<verdict"}),
        per_rank_(static_cast<size_t>(ranks.size()), ordered_json::object()) {
    for (const std::string& host : ranks.gather(ranks.host())) hosts_.push_back(host);
  }

  // A figure of each rank (kNone: this one has none). Unfit when the worst rank is `patience` × tolerance times worse than the median, or
  // beyond `limit`. `key`: its name in the record of each rank. Collective.
  Spread add(const std::string& name, const Unit& unit, const std::string& key, double value, Better better, double patience = 1,
             double limit = kNone) {
    const std::vector<double> values = ranks_.all_gather(value);
    const Spread spread = doctor::spread_of(values, better);
    if (!key.empty())
      for (size_t r = 0; r < values.size(); ++r) per_rank_[r][key] = number_or_null(values[r]);
    if (spread.worst_rank < 0) return spread;
    Verdict verdict = std::isfinite(patience) ? doctor::judge(spread, better, patience * tolerance_) : Verdict::ok;
    const double worst = better == Better::higher ? spread.least : spread.most;
    const bool beyond = better == Better::higher ? worst < limit : worst > limit;
    if (beyond) verdict = Verdict::unfit;
    const auto text = [&](double figure) { return fmt::format("{:.4g}", figure / unit.size); };
    const std::string where = spread.least < spread.most ? place(spread.worst_rank) : "";
    table_.add({name, unit.name, text(worst), text(spread.median), text(better == Better::higher ? spread.most : spread.least), where,
                name_of(verdict)});
    std::string remark;
    const double factor = doctor::worse_by(spread, better);
    if (beyond) {
      remark = fmt::format("rank {}: {} is {} {}, the limit {}", place(spread.worst_rank), name, text(worst), unit.name, text(limit));
    } else if (verdict != Verdict::ok) {
      remark = fmt::format("rank {}: {} is {:.3g} times worse than the median", place(spread.worst_rank), name, factor);
    }
    if (std::isfinite(patience) && factor / patience > worst_factor_) {
      worst_factor_ = factor / patience;
      slowest_ = fmt::format("{}: {}, {:.2f} times worse than the median", place(spread.worst_rank), name, factor);
      slowest_rank_ = spread.worst_rank;
    }
    note(name, unit, spread, verdict, remark);
    return spread;
  }

  // A yes or no of each rank: what is wrong with it, or nothing. `well`: what the table says when all is well. Collective.
  void add_fact(const std::string& name, const std::string& problem, const std::string& well) {
    const std::vector<int64_t> bad = ranks_.all_gather(int64_t{problem.empty() ? 0 : 1});
    const std::vector<std::string> texts = ranks_.gather(problem);
    std::string remark;
    std::vector<int> who;
    for (size_t r = 0; r < bad.size(); ++r)
      if (bad[r]) who.push_back(static_cast<int>(r));
    if (!who.empty() && !texts.empty())
      remark = fmt::format("{}: {} ({})", name, texts[static_cast<size_t>(who.front())], comm::describe_ranks(who));
    table_.add({name, "", "", who.empty() ? well : "see below", "", who.empty() ? "" : place(who.front()),
                name_of(who.empty() ? Verdict::ok : Verdict::unfit)});
    Spread spread;
    spread.worst_rank = who.empty() ? -1 : who.front();
    note(name, kCount, spread, who.empty() ? Verdict::ok : Verdict::unfit, remark);
  }

  std::string place(int rank) const {
    const auto r = static_cast<size_t>(rank);
    return r < hosts_.size() ? fmt::format("{} ({})", rank, hosts_[r]) : std::to_string(rank);
  }
  std::string table() const { return table_.text(); }
  const std::vector<std::string>& remarks() const { return remarks_; }
  const std::string& slowest() const { return slowest_; }
  bool fit() const { return fit_; }
  ordered_json& rank_record(int rank) { return per_rank_[static_cast<size_t>(rank)]; }
  ordered_json record() const {
    return {{"ranks", per_rank_},
            {"checks", checks_},
            {"slowest_rank", slowest_rank_ < 0 ? ordered_json() : ordered_json(slowest_rank_)},
            {"fit", fit_}};
  }

 private:
  void note(const std::string& name, const Unit& unit, const Spread& spread, Verdict verdict, const std::string& remark) {
    const bool has = spread.worst_rank >= 0;
    checks_.push_back({{"name", name},
                       {"unit", unit.name},
                       {"min", spread.least / unit.size},
                       {"median", spread.median / unit.size},
                       {"max", spread.most / unit.size},
                       {"slowest_rank", has ? ordered_json(spread.worst_rank) : ordered_json()},
                       {"slowest_host", has && static_cast<size_t>(spread.worst_rank) < hosts_.size()
                                            ? ordered_json(hosts_[static_cast<size_t>(spread.worst_rank)])
                                            : ordered_json()},
                       {"verdict", verdict == Verdict::ok     ? "ok"
                                   : verdict == Verdict::slow ? "slow"
                                                              : "unfit"},
                       {"remark", remark}});
    if (!remark.empty()) remarks_.push_back((verdict == Verdict::unfit ? "UNFIT " : "NOTE ") + remark);
    fit_ = fit_ && verdict != Verdict::unfit;
  }

  const comm::Communicator& ranks_;
  double tolerance_;
  std::vector<std::string> hosts_;  // of each rank; on rank 0
  report::Table table_;
  std::vector<ordered_json> per_rank_;
  ordered_json checks_ = ordered_json::array();
  std::vector<std::string> remarks_;
  std::string slowest_;
  int slowest_rank_ = -1;
  double worst_factor_ = 1;
  bool fit_ = true;
};

// How this rank's program differs from rank 0's, or nothing.
std::string program_difference(const comm::Communicator& ranks) {
  const std::string mine = version_text(), first = ranks.broadcast(mine);
  if (mine == first) return {};
  const auto at = static_cast<size_t>(std::mismatch(mine.begin(), mine.end(), first.begin(), first.end()).first - mine.begin());
  const auto line = [&](const std::string& text) {
    const size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  return fmt::format("\"{}\", but \"{}\" on rank 0", line(mine), line(first));
}

// Limits of the system that large jobs run into.
std::string limit_problem(const comm::Communicator& ranks) {
  struct rlimit files {};
  const auto needed = static_cast<uint64_t>(ranks.size()) + 64;  // a TCP connection to each rank, and the usual ones
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur != RLIM_INFINITY && files.rlim_cur < needed)
    return fmt::format("{} files may be open, {} connections and files may be needed: ulimit -n {}", files.rlim_cur, needed, needed);
  struct statvfs shared {};
  if (ranks.local_size() > 1 && statvfs("/dev/shm", &shared) == 0) {
    const int64_t free = static_cast<int64_t>(shared.f_bavail) * static_cast<int64_t>(shared.f_frsize),
                  least = doctor::kLeastSharedMemory * ranks.local_size();
    if (free < least)
      return fmt::format("/dev/shm has {} free, {} ranks of a host need {}", report::bytes_text(free), ranks.local_size(),
                         report::bytes_text(least));
  }
  return {};
}

ordered_json examine_link(const comm::Communicator& ranks, comm::Link link, const std::string& name, const std::string& key, int64_t bytes,
                          Examination& examination) {
  const std::optional<comm::LinkRate> rate = comm::measure_link(ranks, link, bytes);
  if (ranks.max(rate ? 1 : 0) == 0) return nullptr;
  ordered_json json;
  json["latency_seconds"] = spread_json(examination.add(name + ", latency", kMicroseconds, key + "_latency_seconds",
                                                        rate ? rate->latency : kNone, Better::lower, kLatencyPatience));
  json["bytes_per_second"] = spread_json(examination.add(name + ", all at once", kGigabytes, key + "_bytes_per_second",
                                                         rate ? rate->bytes_per_second : kNone, Better::higher));
  const bool alone = rate && rate->bytes_per_second_alone > 0;
  json["bytes_per_second_alone"] = spread_json(examination.add(name + ", one of a host", kGigabytes, key + "_bytes_per_second_alone",
                                                               alone ? rate->bytes_per_second_alone : kNone, Better::higher));
  ordered_json& sizes = json["sizes"] = ordered_json::array();
  const int64_t count = ranks.max(rate ? static_cast<int64_t>(rate->by_size.size()) : 0);
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    const int64_t size = ranks.max(rate ? rate->by_size[i].first : 0);
    const Spread spread = doctor::spread_of(ranks.all_gather(rate ? rate->by_size[i].second : kNone), Better::higher);
    sizes.push_back({{"bytes", size}, {"bytes_per_second", spread.median}});
  }
  if (ranks.min(!rate || rate->intact ? 1 : 0) == 0)
    examination.add_fact(name + ", contents", rate && !rate->intact ? "a message held something else than was sent" : "", "intact");
  return json;
}

constexpr ElementType kTypes[] = {ElementType::bfloat16, ElementType::float16, ElementType::float32};
constexpr int kHeadDims[] = {64, 128};

// Seconds for a 64×64 quarter in full tiles and in partial ones, of this rank, as a row of the record.
ordered_json examine_compute(const comm::Communicator& ranks, const std::string& name, const Unit& unit, ElementType type, int head_dim,
                             const doctor::ComputeRate& rate, Examination& examination) {
  const auto seconds = [&](double one) {
    return ordered_json{{"seconds_per_quarter", spread_json(doctor::spread_of(ranks.all_gather(one), Better::lower))}};
  };
  ordered_json row = {
      {"type", longspan::name_of(type)}, {"head_dim", head_dim}, {"full", seconds(rate.full)}, {"partial", seconds(rate.partial)}};
  row["flop_per_second"] = spread_json(examination.add(fmt::format("{} {}, head_dim {}", name, longspan::name_of(type), head_dim), unit,
                                                       fmt::format("{}_{}_flop_per_second", longspan::name_of(type), head_dim),
                                                       4.0 * 64 * 64 * head_dim / rate.full, Better::higher));
  return row;
}

// A GPU's kernels: dense, and with three partial tiles a row.
doctor::ComputeRate gpu_compute_rate(ElementType type, int head_dim, kernels::Device& device) {
  constexpr int kTimes = 7;
  const auto quarter = [&](const char* pattern, int64_t tokens, int kv_heads) {
    const Shape shape{.tokens = tokens, .heads = 16, .kv_heads = kv_heads, .head_dim = head_dim, .type = type};
    const bench::KernelMeasure measure = bench::measure_kernel(pattern::Pattern::parse(pattern), shape, kTimes, device, [] { return 1.0; });
    return 4.0 * 64 * 64 * head_dim / measure.rate();
  };
  return {.full = quarter("full", 8192, 16), .partial = quarter("window(100, 100)", 32768, 1)};
}

// One message to the neighbour and one from it, all ranks at once, through what carries keys between GPUs.
ordered_json examine_gpu_link(const comm::Communicator& ranks, const bench::Neighbours& neighbours, const std::string& name,
                              const std::string& key, kernels::Device& device, comm::Transport& transport, Examination& examination) {
  constexpr int kTimes = 5;
  if (ranks.max(neighbours.to >= 0 ? 1 : 0) == 0) return nullptr;
  const auto seconds = [&](int64_t bytes, int times) {
    const double typical = bench::median(bench::exchange_seconds(ranks, neighbours, device, transport, bytes, times));
    return typical > 0 ? typical : kNone;
  };
  ordered_json json;
  json["latency_seconds"] = spread_json(examination.add(name + ", latency", kMicroseconds, key + "_latency_seconds",
                                                        seconds(8, 10 * kTimes), Better::lower, kLatencyPatience));
  ordered_json& sizes = json["sizes"] = ordered_json::array();
  double rate = kNone;
  for (const int64_t bytes : {int64_t{1} << 20, int64_t{16} << 20, int64_t{64} << 20, int64_t{256} << 20}) {
    rate = static_cast<double>(bytes) / seconds(bytes, kTimes);
    sizes.push_back(
        {{"bytes", bytes}, {"bytes_per_second", number_or_null(doctor::spread_of(ranks.all_gather(rate), Better::higher).median)}});
  }
  json["bytes_per_second"] =
      spread_json(examination.add(name + ", all at once", kGigabytes, key + "_bytes_per_second", rate, Better::higher));
  return json;
}

// The medians of a few times.
bench::RowLinkRates row_link_rates(kernels::Device& device, int64_t bytes) {
  constexpr int kRepeats = 5;
  bench::RowLink link(device, bytes);
  std::vector<double> in, out, both;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const bench::RowLinkRates rates = link.measure();
    in.push_back(rates.in), out.push_back(rates.out), both.push_back(rates.both);
  }
  return {.in = bench::median(in), .out = bench::median(out), .both = bench::median(both)};
}

// Collective. What carries keys between the ranks' GPUs; null, and unfit, where it does not come up on all of them: all else about such a
// cluster is still worth knowing. Throws AgreedError where --transport asks for what cannot be had.
std::unique_ptr<comm::Transport> way_between_gpus(const comm::Communicator& ranks, const Settings& settings,
                                                  const launch::GpuChoice& choice, Examination& examination) {
  std::unique_ptr<comm::Transport> transport;
  std::string why_not;
  try {
    transport = comm::make_transport(ranks, comm::transport_kind_named(settings.text("transport")).value(), choice.gpu->ordinal,
                                     choice.sharers > 1, kNcclTimeout);
  } catch (const comm::AgreedError&) {
    throw;
  } catch (const Error& error) {
    const Problem& problem = error.problems().front();
    why_not = problem.seen.empty() ? problem.what : problem.what + ": " + problem.seen;
  }
  if (ranks.max(why_not.empty() ? 0 : 1) == 0) return transport;
  examination.add_fact("GPUs to each other", why_not, "");
  static_cast<void>(transport.release());  // to take down what is up on some ranks alone would wait for the others
  return nullptr;
}

// All ranks work at the same time, as in a job. Enters the GPUs' figures in `machine` in place of the CPUs'. `transport`: null if there is
// none.
void examine_gpus(const comm::Communicator& ranks, const launch::GpuChoice& choice, kernels::Device& device, comm::Transport* transport,
                  ordered_json& machine, Examination& examination) {
  machine["device"] = "cuda";
  machine["target"] = device.name();
  machine["row_seconds_per_state"] = 0.0;  // kernels round the results
  machine["compute"] = ordered_json::array();
  for (const ElementType type : kTypes) {
    for (const int head_dim : kHeadDims) {
      ranks.barrier();
      machine["compute"].push_back(
          examine_compute(ranks, "GPU attention", kTeraflop, type, head_dim, gpu_compute_rate(type, head_dim, device), examination));
    }
  }
  ranks.barrier();
  constexpr int64_t kBytes = int64_t{256} << 20;
  const double copy = kernels::copy_rate(*choice.gpu);
  const bench::RowLinkRates rows = row_link_rates(device, kBytes);
  ordered_json& memory = machine["gpu_memory"];
  const auto enter = [&](const char* name, const std::string& key, double value) {
    memory[key] = spread_json(examination.add(name, kGigabytes, "gpu_" + key, value, Better::higher));
  };
  enter("GPU memory copy", "copy_bytes_per_second", copy);
  enter("host to GPU", "to_gpu_bytes_per_second", rows.in);
  enter("GPU to host", "from_gpu_bytes_per_second", rows.out);
  enter("both ways at once", "both_ways_bytes_per_second", rows.both);
  memory["free_bytes"] = spread_json(
      examination.add("GPU memory free", kGibibytes, "gpu_free_bytes", static_cast<double>(choice.free_memory), Better::higher));
  machine["links"] = {{"within_host", nullptr}, {"across_hosts", nullptr}};
  if (transport == nullptr) return;
  const std::vector<int> hosts = ranks.host_of_rank();
  const std::string name = transport->passes_host_memory() ? "GPUs by MPI" : transport->name();
  machine["links"]["within_host"] = examine_gpu_link(ranks, bench::neighbours_within_host(hosts, ranks.rank()), name + " in a host",
                                                     "gpu_within_host", device, *transport, examination);
  machine["links"]["across_hosts"] = examine_gpu_link(ranks, bench::neighbours_across_hosts(hosts, ranks.rank()), name + " across hosts",
                                                      "gpu_across_hosts", device, *transport, examination);
}

}  // namespace

int run_doctor(const Settings& settings, const Context& context) {
  const comm::Communicator& ranks = *context.ranks;
  std::vector<Problem> problems;
  if (const auto lonely = launch::lonely_rank(ranks.size())) problems.push_back(*lonely);
  ranks.agree(problems);
  const std::optional<std::string> save = settings.maybe_text("save");
  std::optional<int> asked;
  if (const auto threads = settings.maybe_integer("threads")) asked = static_cast<int>(*threads);
  const launch::GpuChoice choice =
      launch::choose_gpu(ranks, device_kind_named(settings.text("device")).value(), settings.flag("share-gpu"));
  const Launch launched = launch_ranks(ranks, settings.text("bind") == "cores", asked, choice.gpu);
  const std::vector<launch::Place> places = gather_places(ranks, launched.place);
  report::Log log(report::Level::info, ranks.rank() == 0, save == "-" ? stderr : stdout);
  log.info(version_text());
  log.info(
      fmt::format("Ranks: {} on {} host{}\n{}", ranks.size(), ranks.hosts(), ranks.hosts() == 1 ? "" : "s", launch::map_text(places, 2)));

  Examination examination(ranks, settings.real("tolerance"));
  for (size_t r = 0; r < places.size(); ++r) examination.rank_record(static_cast<int>(r)) = place_json(places[r]);
  examination.add_fact("program", program_difference(ranks), "same on all");
  examination.add_fact("system limits", limit_problem(ranks), "wide enough");
  const double offset = std::abs(comm::clock_offset(ranks));
  examination.add("clock offset", kMilliseconds, "clock_offset_seconds", ranks.local_rank() == 0 ? offset : kNone, Better::lower, HUGE_VAL,
                  doctor::kMostClockOffset);
  examination.add("threads", kCount, "", launched.place.threads, Better::higher);
  if (settings.text("device") == "auto" && !choice.gpu) {
    const kernels::Gpus gpus = kernels::find_gpus();
    if (ranks.max(gpus.usable.empty() ? 0 : 1) > 0) examination.add_fact("GPUs", gpus.why_none, "on all ranks");
  }

  ordered_json machine = {{"ranks", ranks.size()},
                          {"hosts", ranks.hosts()},
                          {"ranks_per_host", ranks.max(ranks.local_size())},
                          {"device", "cpu"},
                          {"target", kernels::cpu::target_names()},
                          {"threads", ranks.min(launched.place.threads)},
                          {"compute", ordered_json::array()},
                          {"row_seconds_per_state", nullptr}};
  // All ranks work at the same time, as in a job.
  {
    kernels::cpu::ThreadPool pool(launched.place.threads);
    for (const ElementType type : kTypes) {
      for (const int head_dim : kHeadDims) {
        if (choice.gpu) continue;
        ranks.barrier();
        machine["compute"].push_back(
            examine_compute(ranks, "attention", kGigaflop, type, head_dim, doctor::compute_rate(type, head_dim, pool), examination));
      }
    }
    ranks.barrier();
    const int64_t free = launched.share.memory / 4 * 5;
    const doctor::MemoryRate memory = doctor::memory_rate(std::min(int64_t{512} << 20, free / 4), pool);
    machine["memory"]["read_bytes_per_second"] =
        spread_json(examination.add("memory read", kGigabytes, "memory_read_bytes_per_second", memory.read, Better::higher));
    machine["memory"]["copy_bytes_per_second"] =
        spread_json(examination.add("memory copy", kGigabytes, "memory_copy_bytes_per_second", memory.copy, Better::higher));
    machine["memory"]["free_bytes"] = spread_json(examination.add("memory free", kGibibytes, "free_bytes", static_cast<double>(free),
                                                                  Better::higher, 1, static_cast<double>(doctor::kLeastMemory)));
  }
  const int64_t message = std::min(int64_t{64} << 20, launched.share.memory / 8);
  machine["links"]["within_host"] = examine_link(ranks, comm::Link::within_host, "MPI in a host", "within_host", message, examination);
  machine["links"]["across_hosts"] =
      examine_link(ranks, comm::Link::across_hosts, "MPI across hosts", "across_hosts", message, examination);
  if (choice.gpu) {
    const std::unique_ptr<comm::Transport> transport = way_between_gpus(ranks, settings, choice, examination);
    std::unique_ptr<kernels::Device> device;
    ranks.agreed([&] { device = kernels::open_gpu(*choice.gpu); });
    examine_gpus(ranks, choice, *device, transport.get(), machine, examination);
  } else {
    comm::make_transport(ranks, comm::transport_kind_named(settings.text("transport")).value(), std::nullopt, false, kNcclTimeout);
  }

  const std::string folder = settings.text("folder");
  const doctor::DiskRate disk = doctor::disk_rate(ranks, folder, settings.integer("disk-bytes"));
  machine["disk"] = nullptr;
  examination.add_fact("files", disk.problem, "same on all");
  if (ranks.max(disk.problem.empty() ? 0 : 1) == 0) {
    const auto bytes = static_cast<double>(disk.bytes_per_rank);
    const Spread write =
        examination.add("disk write, fsynced", kGigabytes, "disk_write_bytes_per_second", bytes / std::max(disk.write_seconds, 1e-9),
                        Better::higher, HUGE_VAL, doctor::kLeastDiskRate / ranks.size());
    const Spread read = examination.add("disk read", kGigabytes, "disk_read_bytes_per_second", bytes / std::max(disk.read_seconds, 1e-9),
                                        Better::higher, HUGE_VAL, doctor::kLeastDiskRate / ranks.size());
    machine["disk"] = {{"folder", folder},
                       {"bytes_per_rank", disk.bytes_per_rank},
                       {"write_bytes_per_second", disk.write_bytes_per_second},
                       {"read_bytes_per_second", disk.read_bytes_per_second},
                       {"write_bytes_per_second_per_rank", spread_json(write)},
                       {"read_bytes_per_second_per_rank", spread_json(read)}};
  }

  log.info(examination.table());
  if (machine["disk"].is_object())
    log.info(fmt::format("Disk, all ranks together: {:.3g} GB/s written and synced, {:.3g} GB/s read", disk.write_bytes_per_second / 1e9,
                         disk.read_bytes_per_second / 1e9));
  if (!choice.gpu)
    log.info("GPUs: not checked; " + (settings.text("device") == "cpu" ? "--device cpu"
                                      : choice.remark.empty()          ? kernels::find_gpus().why_none
                                                                       : choice.remark));
  if (const std::string remark = binding_remark(places, launch::slurm_allotment(), launch::Machine().cpus()); !remark.empty())
    log.info("NOTE " + remark);
  for (const std::string& remark : examination.remarks()) log.info(remark);
  if (!examination.slowest().empty()) log.info("Slowest rank: " + examination.slowest());
  log.info(examination.fit() ? "Fit." : "UNFIT: see above.");

  if (save) {
    ordered_json record = report::new_record("doctor");
    record["command_line"] = context.command_line;
    record["options"] = settings_json(settings);
    record["machine"] = std::move(machine);
    record.update(examination.record());
    ranks.on_root([&] { report::write_record(record, *save); });
    if (*save != "-") log.info("Measured rates: " + *save);
  }
  return static_cast<int>(examination.fit() ? ExitCode::ok : ExitCode::environment);
}

}  // namespace longspan::cli
