#include "bench/probe.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "bench/link.hpp"
#include "bench/partial_rates.hpp"
#include "bench/prepared_job.hpp"
#include "plan/memory.hpp"

namespace longspan::bench {

namespace {

// Only partial tiles: around the diagonal, and one to each side.
constexpr const char* kPartialTiles = "window(100, 100)";
constexpr const char* kFullTiles = "full";
// A list for each KV head, of tiles that lie apart, one quarter of each (but where two blocks happen to lie in one).
constexpr const char* kManyEntries = "block_random(64, 12, 1)";
// Runs of seven full tiles between two partial ones: what is left of their time is a row's. (Of shorter rows a GPU's memory would decide.)
constexpr const char* kShortRuns = "window(511, 511)";
// Each block of queries looks at this many blocks of keys, anywhere.
constexpr const char* kFarKeys = "block_random(128, 8, 1)";
constexpr int kFarBlocks = 8;

}  // namespace

// A job of this rank alone.
class Probe::SelfJob {
 public:
  SelfJob(const comm::Communicator& ranks, const Shape& shape, int64_t blocks, const char* text, ElementType output_type)
      : ranks_(ranks.alone()), prepared_(*ranks_, job(shape, blocks * plan::kBlock, text, output_type)) {}

  // `keys_into_pool` as in engine::RunOptions.
  engine::Record run(RowSource& rows, kernels::Device& device, bool keys_into_pool = false) {
    return prepared_.run(rows.of(prepared_.tokens()), device, transport_, keys_into_pool);
  }
  double quarters() const { return static_cast<double>(plan().weighted_quarters()); }
  // Of its only step.
  plan::StepWork work() const {
    return plan::work_of(prepared_.shared(), prepared_.pattern(), prepared_.blocks(), plan(), 1).stripes.front().steps.front();
  }
  double list_rows() const { return static_cast<double>(plan().stripes.front().list_rows); }
  double entries() const { return static_cast<double>(plan().stripes.front().list_entries); }
  double states() const { return static_cast<double>(shape().tokens * shape().heads); }
  double key_bytes() const { return static_cast<double>(size_of(plan().own) * shape().kv_heads * plan().unit_bytes); }

 private:
  static Job job(Shape shape, int64_t tokens, const char* text, ElementType output_type) {
    shape.tokens = tokens;
    return {.pattern = pattern::Pattern::parse(text),
            .shape = shape,
            .documents = Documents::single(tokens),
            .output_type = output_type,
            .keep = false};  // making lists is measured
  }
  const plan::RankPlan& plan() const { return prepared_.plan(); }
  const Shape& shape() const { return prepared_.job().shape; }

  std::unique_ptr<comm::Communicator> ranks_;
  comm::MpiTransport transport_;  // nothing goes through it
  PreparedJob prepared_;
};

// One job on all ranks, whose keys lie with all of them, and the same on this rank alone: as many tiles for each rank, but for chance. What
// its compute takes longer is what the keys cost that move beside it: who copies them shares the cores, or NCCL the multiprocessors; and
// they come in steps.
class Probe::MovingJob {
 public:
  MovingJob(const comm::Communicator& ranks, const Job& like, int64_t blocks, comm::Transport& transport)
      : ranks_(ranks),
        transport_(transport),
        alone_(ranks, like.shape, blocks, kFarKeys, like.output_type),
        prepared_(ranks, job(ranks, like, blocks)) {}

  // Of all ranks together: where they share cores, one of them computes at another's expense.
  void sample(RowSource& rows, kernels::Device& device) {
    const engine::Record moving = prepared_.run(rows.of(prepared_.tokens()), device, transport_);
    ranks_.barrier();
    const double alone = alone_.run(rows, device, !moving.keys_in_rows).attend / alone_.quarters();
    const double more = moving.attend - alone * static_cast<double>(prepared_.plan().weighted_quarters());
    const std::vector<double> all = ranks_.all_gather(more);
    const auto bytes = static_cast<double>(std::max<int64_t>(1, ranks_.sum(moving.bytes_received)));
    seconds_per_byte_.push_back(std::max(0.0, std::accumulate(all.begin(), all.end(), 0.0)) / bytes);
    const std::vector<double> in_flight = ranks_.all_gather(moving.in_flight);
    in_flight_.push_back(std::accumulate(in_flight.begin(), in_flight.end(), 0.0) / ranks_.size());
    const std::vector<double> waits = ranks_.all_gather(moving.exchange);
    waits_.push_back(std::accumulate(waits.begin(), waits.end(), 0.0));
    bytes_ = bytes;
  }
  double seconds_per_byte() const { return median(seconds_per_byte_); }
  double slowdown_of_links(const plan::Rates& rates) const {
    const double said = plan::predict(prepared_.shared(), prepared_.pattern(), prepared_.blocks(), rates).mean.in_flight;
    return said > 0 ? std::max(1.0, median(in_flight_) / said) : 1;
  }
  double exposed_byte(const plan::Rates& rates) const {
    const double said = plan::predict(prepared_.shared(), prepared_.pattern(), prepared_.blocks(), rates).mean.exchange;
    return std::max(0.0, (median(waits_) - said * ranks_.size()) / bytes_);
  }

 private:
  static Job job(const comm::Communicator& ranks, const Job& like, int64_t blocks) {
    Job job{.pattern = pattern::Pattern::parse(kFarKeys), .shape = like.shape, .output_type = like.output_type};
    job.shape.tokens = blocks * plan::kBlock * ranks.size();
    job.documents = Documents::single(job.shape.tokens);
    job.exchange = like.exchange, job.through_host_memory = like.through_host_memory, job.host_memory = like.host_memory;
    job.timeout = like.timeout, job.on_gpu = like.on_gpu;
    return job;
  }

  const comm::Communicator& ranks_;
  comm::Transport& transport_;
  SelfJob alone_;
  PreparedJob prepared_;
  std::vector<double> seconds_per_byte_, in_flight_, waits_;  // by sample; waits: of all ranks
  double bytes_ = 1;                                          // that come to all ranks
};

namespace {

constexpr int64_t kProbeRows = 1 << 18;  // that differ, where they lie in memory for a GPU

// Half a million tokens, what a GPU takes a fifth of a second for, copies included; and 8 GiB of its memory.
constexpr int64_t kMostBlocks = 4096, kMostBytes = int64_t{8} << 30;

// Blocks of a job that takes about `seconds`, `first` to `most` of them; the same on all ranks. `taken(blocks)` says what one takes, where
// work grows with blocks^power. What a small job takes is mostly what any job does, so that the first guess is too small: it is asked
// again.
template <typename Taken>
int64_t blocks_for(const comm::Communicator& ranks, int64_t first, int64_t most, double seconds, double power, Taken taken) {
  constexpr int kGuesses = 4;
  int64_t blocks = first;
  most = std::max(first, most);
  for (int guess = 0; guess < kGuesses && blocks < most; ++guess) {
    const double factor = std::pow(seconds / std::max(taken(blocks), 1e-6), 1 / power);
    const int64_t next = ranks.min(std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(blocks) * factor), first, most));
    const bool near = 2 * next <= 3 * blocks;
    blocks = next;
    if (near) break;
  }
  return blocks;
}

}  // namespace

Probe::Probe(const comm::Communicator& ranks, const Shape& shape, ElementType output_type, kernels::Device& device, double seconds,
             RowsIn rows)
    : ranks_(ranks),
      device_(device),
      seconds_(seconds),
      query_bytes_(static_cast<double>(shape.head_dim) * static_cast<double>(size_of(shape.type))),
      result_bytes_(static_cast<double>(shape.head_dim) * static_cast<double>(size_of(output_type)) + 4),
      rows_(synthetic_rows(shape, output_type, kProbeRows, device, rows)) {
  constexpr int64_t kFirst = 4;
  // A GPU reads keys out of gigabytes more slowly than out of one.
  const int64_t most_listed = device.memory_is_host() ? 1024 : kMostBlocks;
  const int64_t block_bytes = shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim) + plan::block_row_bytes(shape, output_type);
  for (auto [job, text, power] : {std::tuple(&full_, kFullTiles, 2.0), std::tuple(&partial_, kPartialTiles, 1.0),
                                  std::tuple(&listed_, kManyEntries, 1.0), std::tuple(&short_, kShortRuns, 1.0)}) {
    const auto taken = [&, of = text](int64_t blocks) {
      SelfJob small(ranks, shape, blocks, of, output_type);
      double least = std::numeric_limits<double>::infinity();
      for (int time = 0; time < 2; ++time) {
        ranks.barrier();
        least = std::min(least, small.run(*rows_, device).attend);
      }
      return least;
    };
    const int64_t most = job == &listed_ ? most_listed : kMostBlocks;
    const int64_t blocks = blocks_for(ranks, kFirst, std::min(most, kMostBytes / block_bytes), seconds, power, taken);
    *job = std::make_unique<SelfJob>(ranks, shape, blocks, text, output_type);
  }
  constexpr int64_t kLinkBytes = int64_t{128} << 20;
  if (!device.memory_is_host() && rows == RowsIn::host) row_link_ = std::make_unique<RowLink>(device, kLinkBytes);
  for (const SelfJob* job : {partial_.get(), listed_.get(), short_.get()}) partial_work_.push_back(job->work());
  partial_seconds_.resize(partial_work_.size());
}

Probe::~Probe() = default;

void Probe::also_move(const Job& like, comm::Transport& transport) {
  if (ranks_.size() == 1) return;
  constexpr int64_t kFirst = 2 * kFarBlocks;
  const Shape& shape = like.shape;
  const int64_t held = 1 + std::min(kFarBlocks, ranks_.size() - 1);  // blocks of keys in a rank's memory, for each of its own
  const int64_t block_bytes =
      held * shape.kv_heads * kernels::unit_bytes(shape.type, shape.head_dim) + plan::block_row_bytes(shape, like.output_type);
  const auto taken = [&](int64_t blocks) {
    SelfJob small(ranks_, shape, blocks, kFarKeys, like.output_type);
    ranks_.barrier();
    return small.run(*rows_, device_).attend;
  };
  moving_ = std::make_unique<MovingJob>(
      ranks_, like, blocks_for(ranks_, kFirst, std::min(kMostBlocks, kMostBytes / block_bytes), seconds_, 1, taken), transport);
}

void Probe::sample() {
  double in = std::numeric_limits<double>::infinity(), out = in, load = 0, in_rows = 0;
  double partial_lists = 0;  // seconds
  for (const auto& job : {full_.get(), partial_.get()}) {
    ranks_.barrier();
    const engine::Record record = job->run(*rows_, device_);
    if (job == full_.get())
      full_quarter_.push_back(record.attend / job->quarters());
    else
      partial_seconds_[0].push_back(record.attend);
    state_.push_back(record.finish / job->states());
    if (job == partial_.get()) partial_lists = record.lists;
    // The job that has more of something tells better what it costs.
    in = std::min(in, record.queries_in / job->states());
    out = std::min(out, record.output / job->states());
    double& rate = record.keys_in_rows ? in_rows : load;
    rate = std::max(rate, job->key_bytes() / std::max(record.keys_in, 1e-9));
  }
  if (ranks_.max(int64_t{in_rows > 0 ? 1 : 0}) > 0) {
    // On any of them. Jobs that have more to send, or to make of each key, bring theirs into the pool.
    ranks_.barrier();
    load = std::max(load, partial_->key_bytes() / std::max(partial_->run(*rows_, device_, true).keys_in, 1e-9));
  }
  ranks_.barrier();
  const engine::Record many = listed_->run(*rows_, device_);
  const double many_lists = many.lists;
  partial_seconds_[1].push_back(many.attend);
  ranks_.barrier();
  partial_seconds_[2].push_back(short_->run(*rows_, device_).attend);
  if (row_link_) {
    ranks_.barrier();
    const RowLinkRates link = row_link_->measure();
    link_in_.push_back(link.in), link_out_.push_back(link.out), both_ways_.push_back(link.slowdown());
  }
  if (moving_) {
    ranks_.barrier();
    moving_->sample(*rows_, device_);
  }
  // What a row costs, and what an entry: the jobs have different numbers of entries in a row.
  const double per_row = partial_lists / partial_->list_rows(), per_long_row = many_lists / listed_->list_rows();
  const double entries = partial_->entries() / partial_->list_rows(), many_entries = listed_->entries() / listed_->list_rows();
  const bool differ = many_entries > 1.5 * entries;  // or the difference is noise
  const double entry = differ ? std::clamp((per_long_row - per_row) / (many_entries - entries), 0.0, per_long_row / many_entries)
                              : per_row / std::max(1.0, entries);
  entry_.push_back(entry), list_row_.push_back(std::max(0.0, per_row - entry * entries));
  state_in_.push_back(in), state_out_.push_back(out), load_.push_back(load), in_rows_.push_back(in_rows);
}

plan::Rates Probe::rates() const {
  const auto over_ranks = [&](const std::vector<double>& values) { return median(ranks_.all_gather(median(values))); };
  plan::Rates rates;
  rates.full_quarter = over_ranks(full_quarter_);
  std::vector<TimedStep> steps;
  for (size_t job = 0; job < partial_work_.size(); ++job) steps.push_back({partial_work_[job], over_ranks(partial_seconds_[job])});
  // A GPU multiplies the quarters of a partial tile as it does a full one's; a CPU leaves out what is masked.
  const bool quarters_alike = !device_.memory_is_host();
  const PartialRates partial = partial_rates(steps, rates.full_quarter, quarters_alike);
  rates.partial_quarter = partial.quarter, rates.partial_tile = partial.tile, rates.tile_row = partial.row;
  rates.state = over_ranks(state_);
  rates.state_in = over_ranks(state_in_);
  rates.state_out = over_ranks(state_out_);
  rates.key_bytes_per_second = over_ranks(load_);
  rates.row_bytes_per_second = over_ranks(in_rows_);
  if (row_link_) {
    // The small jobs of several ranks do not copy at the same moments. Host memory that is enough for one GPU may be too little for four.
    const double in = over_ranks(link_in_), out = over_ranks(link_out_);
    rates.state_in = std::max(rates.state_in, query_bytes_ / in);
    rates.state_out = std::max(rates.state_out, result_bytes_ / out);
    rates.key_bytes_per_second = std::min(rates.key_bytes_per_second, in);
    rates.both_ways = over_ranks(both_ways_);
  }
  rates.list_row = over_ranks(list_row_);
  rates.list_entry = over_ranks(entry_);
  rates.lists_beside = device_.spare_threads() > 1;
  if (moving_) rates.hidden_byte = moving_->seconds_per_byte();
  return rates;
}

double Probe::slowdown_of_links(const plan::Rates& rates) const { return moving_ ? moving_->slowdown_of_links(rates) : 1; }
double Probe::exposed_byte(const plan::Rates& rates) const { return moving_ ? moving_->exposed_byte(rates) : 0; }

}  // namespace longspan::bench
