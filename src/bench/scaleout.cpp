#include "bench/scaleout.hpp"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>

#include <fmt/format.h>

#include "bench/link.hpp"
#include "bench/probe.hpp"
#include "engine/list_maker.hpp"
#include "longspan/error.hpp"

namespace longspan::bench {

namespace {

constexpr int kLinkTimes = 9;

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(std::max<size_t>(1, values.size()));
}

double most_of(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

SectionTimes sections_of(const engine::Record& record) {
  return {.load = record.load,
          .plan = record.plan,
          .exchange = record.exchange,
          .attend = record.attend,
          .rows = record.input + record.finish + record.output,
          .total = record.total};
}

// What the links are measured with: between GPUs as much as comes to a rank in the job's step with most, since NCCL gives 1 GiB three times
// the rate of 16 MiB. In one message, though several peers may send: one of a third, on four H100, was predicted to take three times as
// long as the step with three of them took.
int64_t link_bytes(const comm::Communicator& ranks, const PreparedJob& job, int64_t least) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (!job.job().on_gpu || job.job().through_host_memory) return least;
  int64_t largest = 0;
  for (const plan::StripeWork& stripe : plan::work_of(job.shared(), job.pattern(), job.blocks(), job.plan(), 1, 1).stripes)
    for (const plan::StepWork& step : stripe.steps) largest = std::max(largest, step.bytes_across);
  return std::max(least, std::min(ranks.max(largest), kMost));
}

ScaleoutPoint measure(const comm::Communicator& ranks, PreparedJob& job, const JobRows& rows, kernels::Device& device,
                      comm::Transport& transport, const ScaleoutOptions& options) {
  const Job& what = job.job();
  const std::vector<int>& hosts = ranks.host_of_rank();
  const int64_t bytes = link_bytes(ranks, job, options.link_bytes);
  const auto link = [&](const Neighbours& neighbours, plan::LinkRates& to) {
    const LinkSpeed speed = measure_link(ranks, neighbours, device, transport, bytes, kLinkTimes);
    if (speed.bytes_per_second > 0) to = {.latency = speed.latency, .bytes_per_second = speed.bytes_per_second};
  };
  plan::LinkRates within, across;
  link(neighbours_within_host(hosts, ranks.rank()), within);
  link(neighbours_across_hosts(hosts, ranks.rank()), across);

  Probe probe(ranks, what.shape, what.output_type, device, options.probe_seconds, options.rows_in);
  probe.also_move(what, transport);
  ScaleoutPoint point{.ranks = ranks.size(), .hosts = ranks.hosts(), .tokens = what.shape.tokens, .documents = what.documents.count()};
  std::vector<engine::Record> records;
  for (int time = -1; time < options.times; ++time) {
    probe.sample();
    ranks.barrier();
    const engine::Record record = job.run(rows, device, transport);
    if (time < 0) continue;
    records.push_back(record);
    point.seconds.push_back(most_of(ranks.all_gather(record.total)));
  }
  probe.sample();
  plan::Rates rates = probe.rates();
  rates.within_host = within;
  rates.across_hosts = across;
  rates.ranks_per_host = static_cast<int>(ranks.max(ranks.local_size()));
  rates.link_slowdown = probe.slowdown_of_links(rates);
  rates.exposed_byte = probe.exposed_byte(rates);

  point.typical = median(point.seconds);
  size_t nearest = 0;
  for (size_t t = 0; t < point.seconds.size(); ++t)
    if (std::abs(point.seconds[t] - point.typical) < std::abs(point.seconds[nearest] - point.typical)) nearest = t;
  const engine::Record& typical = records[nearest];
  const SectionTimes mine = sections_of(typical);
  const std::vector<double> totals = ranks.all_gather(mine.total);
  const auto slowest = static_cast<size_t>(std::max_element(totals.begin(), totals.end()) - totals.begin());
  for (double SectionTimes::*section : {&SectionTimes::load, &SectionTimes::plan, &SectionTimes::exchange, &SectionTimes::attend,
                                        &SectionTimes::rows, &SectionTimes::total}) {
    const std::vector<double> all = ranks.all_gather(mine.*section);
    point.mean.*section = mean_of(all);
    point.slowest.*section = all[slowest];
  }
  point.exposed = point.mean.total > 0 ? point.mean.exchange / point.mean.total : 0;
  point.imbalance = point.mean.attend > 0 ? most_of(ranks.all_gather(mine.attend)) / point.mean.attend : 1;
  const std::vector<double> flop = ranks.all_gather(job.plan().flop(what.shape));
  point.flop = std::accumulate(flop.begin(), flop.end(), 0.0);
  point.ranks_with_keys_in_rows = static_cast<int>(ranks.sum(int64_t{typical.keys_in_rows ? 1 : 0}));
  point.ranks_that_share_keys = static_cast<int>(ranks.sum(int64_t{typical.keys_shared ? 1 : 0}));
  point.kv_bytes_planned = ranks.sum(typical.planned_bytes_received);
  point.kv_bytes_moved = ranks.sum(typical.bytes_received);
  point.kv_bytes_lower_bound = ranks.sum(job.plan().bytes_lower_bound());
  point.row_bytes_moved = ranks.sum(typical.row_bytes_received);
  point.rates = rates;
  point.probe_flop_per_second = 4.0 * 64 * 64 * what.shape.head_dim / rates.full_quarter;
  // Rank 0 alone, as `plan` does without any rank.
  const bool lists_stay = engine::ListMaker::can_keep(job.plan(), job.shared().memory.lists);
  if (ranks.min(lists_stay ? 1 : 0) > 0) rates.list_row = rates.list_entry = 0;  // the run that does not count has made them
  if (ranks.rank() == 0) point.predicted = plan::predict(job.shared(), job.pattern(), job.blocks(), rates);
  ranks.barrier_at_rest();
  return point;
}

}  // namespace

int64_t memory_beside_rows(const Job& job, int64_t tokens, int64_t most_tokens, int64_t memory) {
  constexpr int64_t kProbe = int64_t{10} << 30;
  const auto gibibytes = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const Shape& shape = job.shape;
  const auto element = static_cast<int64_t>(size_of(shape.type));
  const int64_t keys = 2 * int64_t{shape.kv_heads} * shape.head_dim * element;
  const int64_t queries = int64_t{shape.heads} * shape.head_dim * element;
  const int64_t results = int64_t{shape.heads} * (shape.head_dim * static_cast<int64_t>(size_of(job.output_type)) + 4);
  const int64_t rows = most_tokens * (keys + queries + results), left = memory - rows - kProbe;
  if (left < tokens * keys)
    throw Error({.code = ExitCode::usage,
                 .what = "this job does not fit into a rank's part of its GPU",
                 .seen = fmt::format("{:.1f} GiB of rows and results, {:.1f} of keys, {:.1f} for small jobs", gibibytes(rows),
                                     gibibytes(tokens * keys), gibibytes(kProbe)),
                 .expected = fmt::format("at most {:.1f} GiB in all", gibibytes(memory)),
                 .from = fmt::format("{} tokens on one rank", tokens),
                 .mend = fmt::format("--rows-in host, fewer --tokens, or fewer ranks on a GPU{}",
                                     tokens == shape.tokens ? "; or --mode weak, with which no rank has all tokens" : "")});
  return left;
}

std::vector<int> rank_counts(int ranks) {
  std::vector<int> counts;
  for (int count = 1; count < ranks; count *= 2) counts.push_back(count);
  counts.push_back(ranks);
  return counts;
}

Documents first_documents(const Documents& documents, int64_t tokens) {
  std::vector<int64_t> offsets;
  for (int64_t offset : documents.offsets()) {
    if (offset >= tokens) break;
    offsets.push_back(offset);
  }
  offsets.push_back(tokens);
  return Documents(std::move(offsets));
}

std::optional<ScaleoutPoint> measure_scaleout(const comm::Communicator& world, int ranks, const Job& job, int64_t tokens,
                                              kernels::Device& device, int threads, const ScaleoutOptions& options) {
  const std::unique_ptr<comm::Communicator> few = world.first(ranks);
  std::optional<ScaleoutPoint> point;
  std::vector<Problem> problems;
  if (few) {
    try {
      Job part = job;
      part.shape.tokens = tokens;
      part.documents = first_documents(job.documents, tokens);
      const std::unique_ptr<comm::Transport> transport = options.transport(*few);
      part.through_host_memory = transport->passes_host_memory();
      part.share_keys = part.share_keys && transport->reads_from_peers();
      JobRows rows;  // go last: the job may have others' open
      PreparedJob prepared(*few, std::move(part));
      few->agreed([&] { rows = options.rows(prepared); });
      point = measure(*few, prepared, rows, device, *transport, options);
      point->whole = tokens == job.shape.tokens;
      point->threads = threads;
    } catch (const comm::AgreedError& error) {
      problems = error.problems();
    } catch (const Error& error) {
      world.abort(error.problems().front());
    } catch (const std::bad_alloc&) {
      world.abort({.code = ExitCode::environment, .what = "out of memory", .mend = "use fewer tokens, or more hosts"});
    }
  }
  world.barrier_at_rest();
  world.agree(problems);
  return point;
}

}  // namespace longspan::bench
