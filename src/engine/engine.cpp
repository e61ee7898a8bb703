#include "engine/engine.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <optional>
#include <utility>

#include "engine/io_thread.hpp"
#include "engine/long_rows.hpp"
#include "engine/stripe_lists.hpp"
#include "longspan/error.hpp"
#include "plan/memory.hpp"

namespace longspan::engine {

namespace {

constexpr int64_t kStagingBytes = int64_t{8} << 20;  // of key rows on their way from the input into units
constexpr int kTags = 1 << 20;
constexpr int64_t kMessagesAhead = 256;  // sends are posted before their step while fewer messages are in flight
constexpr double kPoll = 0.0005;         // seconds between two looks at the messages while the pool computes

using Clock = std::chrono::steady_clock;

// Adds the seconds of its scope to a section of the record.
class Timed {
 public:
  explicit Timed(double& section) : section_(section) {}
  ~Timed() { section_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& section_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace

Engine::Engine(const comm::Communicator& ranks, const pattern::BoundPattern& pattern, const plan::Blocks& blocks,
               const plan::Shared& shared, plan::RankPlan plan, const std::vector<bool>& done)
    : ranks_(ranks), pattern_(pattern), blocks_(blocks), shared_(shared), plan_(std::move(plan)), row_ranks_(ranks.handle()) {
  const size_t batches = shared.batches.size();
  // A long stripe is needed as long as one of its rows still waits for its home's stripe.
  std::vector<int64_t> batch_needed(batches, 0);
  const auto is_done = [&](size_t stripe) { return stripe - batches < done.size() && done[stripe - batches]; };
  for (size_t s = batches; s < plan_.stripes.size(); ++s) {
    if (is_done(s)) continue;
    for (size_t b = 0; b < batches; ++b)
      for (int64_t p = shared.batches[b].begin; p < shared.batches[b].end; ++p)
        if (contains(plan_.stripes[s].query_blocks, shared.long_rows[static_cast<size_t>(shared.pieces[static_cast<size_t>(p)].row)].block))
          batch_needed[b] = 1;
  }
  ranks.max(batch_needed);
  for (size_t s = 0; s < plan_.stripes.size(); ++s) {
    plan::Stripe& stripe = plan_.stripes[s];
    if (s < batches ? batch_needed[s] != 0 : !is_done(s)) continue;
    stripe.query_blocks.clear();
    stripe.pieces = {};
    std::fill(stripe.need.begin(), stripe.need.end(), Intervals{});
  }
  plan::plan_fetches(shared, plan_);
  schedule_ = agree_on_schedule(ranks, shared, plan_);
}

Engine::~Engine() = default;

class Engine::Run {
 public:
  Run(Engine& engine, Input& input, Output& output, const RunOptions& options)
      : engine_(engine),
        shared_(engine.shared_),
        shape_(engine.shared_.shape),
        plan_(engine.plan_),
        input_(input),
        output_(output),
        options_(options),
        heads_(engine.pattern_, shape_),
        pool_(shared_.keys_stay ? plan_.own : Intervals{}, shape_.kv_heads, engine.schedule_.most_fetched_units, plan_.unit_bytes),
        exchange_(engine.ranks_, plan_.unit_bytes),
        long_rows_(engine.row_ranks_, shared_, engine.pattern_, engine.blocks_, plan_.rank),
        threads_(options.threads) {
    exchange_.set_timeout(options.timeout);
    long_rows_.set_timeout(options.timeout);
    for (size_t s = 0; s < plan_.stripes.size(); ++s)
      for (int step = 0; step < engine.schedule_.steps[s]; ++step) order_.emplace_back(s, step);
    kept_.resize(shared_.classes.size());
  }

  Record execute() {
    const Clock::time_point start = Clock::now();
    allocate();
    if (shared_.keys_stay) load_own_keys();
    read_ahead(next_rows(0));
    if (!order_.empty()) start_fetch(0);
    size_t t = 0;
    for (size_t s = 0; s < plan_.stripes.size(); ++s) {
      begin_stripe(s);
      for (int step = 0; step < engine_.schedule_.steps[s]; ++step, ++t) {
        if (t + 1 < order_.size()) start_fetch(t + 1);
        finish_fetch(t);
        attend(s, step);
        release(s, step);
      }
      end_stripe(s);
    }
    {
      const Timed timed(record_.output);
      for (std::future<void>& write : writes_)
        if (write.valid()) write.get();
    }
    {
      const Timed timed(record_.exchange);
      for (size_t done = 0; done < order_.size(); ++done)
        if (shared_.keys_stay) exchange_.finish_sends(tag_of(done));
    }
    record_.total = std::chrono::duration<double>(Clock::now() - start).count();
    account();
    return record_;
  }

 private:
  static int tag_of(size_t t) { return static_cast<int>(t % kTags); }
  const plan::Stripe& stripe(size_t s) const { return plan_.stripes[s]; }
  int64_t q_row_bytes() const { return int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type)); }
  int64_t o_row_bytes() const {
    return int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(shared_.options.output_type));
  }

  int64_t rows_of(size_t s) const {
    int64_t rows = 0;
    for (const Interval& run : stripe(s).query_blocks) rows += tokens_of(run).length();
    return rows;
  }
  Interval tokens_of(Interval run) const { return {engine_.blocks_.tokens(run.begin).begin, engine_.blocks_.tokens(run.end - 1).end}; }

  void allocate() {
    int64_t most_rows = 0, most_states = 0, most_q = 0;
    for (size_t s = 0; s < plan_.stripes.size(); ++s) {
      if (stripe(s).is_long()) {
        const LongRows::Layout layout = long_rows_.layout(stripe(s));
        most_states = std::max(most_states, layout.state_rows);
        most_q = std::max(most_q, layout.q_rows);
      } else {
        most_rows = std::max(most_rows, rows_of(s));
      }
    }
    most_states = std::max(most_states, most_rows);
    // Long stripes come first: their queries lie where the second stripe of own rows will have its own.
    q_[0].resize(static_cast<size_t>(most_rows * q_row_bytes()));
    q_[1].resize(static_cast<size_t>(std::max(most_rows, most_q) * q_row_bytes()));
    m_.resize(static_cast<size_t>(most_states * shape_.heads));
    l_.resize(m_.size());
    o_.resize(m_.size() * static_cast<size_t>(shape_.head_dim));
    most_rows_ = most_rows;
    record_.rows_bytes = static_cast<int64_t>(q_[0].size() + q_[1].size() + (m_.size() * 2 + o_.size()) * sizeof(float)) +
                         2 * most_rows * (o_row_bytes() + int64_t{shape_.heads} * 4);
    record_.pool_bytes = pool_.bytes();
  }

  // Rows of `blocks` of KV heads [kv_head, kv_head + kv_heads) from the input into their units.
  void load_units(int kv_head, int kv_heads, Interval blocks, const std::function<std::byte*(int kv_head, int64_t block)>& unit) {
    const auto row = static_cast<int64_t>(size_of(shape_.type)) * shape_.head_dim;
    const int64_t at_once = std::max<int64_t>(1, kStagingBytes / (2 * plan::kBlock * kv_heads * row));
    std::vector<std::byte> k, v;
    for (int64_t first = blocks.begin; first < blocks.end; first += at_once) {
      const Interval part{first, std::min(blocks.end, first + at_once)};
      const Interval tokens = tokens_of(part);
      k.resize(static_cast<size_t>(tokens.length() * kv_heads * row));
      v.resize(k.size());
      input_.read_k(tokens.begin, tokens.length(), kv_head, kv_heads, k.data());
      input_.read_v(tokens.begin, tokens.length(), kv_head, kv_heads, v.data());
      for (int64_t block = part.begin; block < part.end; ++block) {
        const Interval rows = engine_.blocks_.tokens(block);
        for (int h = 0; h < kv_heads; ++h) {
          std::byte* to_k = unit(kv_head + h, block);
          std::byte* to_v = to_k + plan::kBlock * row;
          for (int64_t r = 0; r < rows.length(); ++r) {
            const int64_t from = ((rows.begin - tokens.begin + r) * kv_heads + h) * row;
            std::memcpy(to_k + r * row, k.data() + from, static_cast<size_t>(row));
            std::memcpy(to_v + r * row, v.data() + from, static_cast<size_t>(row));
          }
          const auto rest = static_cast<size_t>((plan::kBlock - rows.length()) * row);
          std::memset(to_k + rows.length() * row, 0, rest);
          std::memset(to_v + rows.length() * row, 0, rest);
        }
      }
    }
  }

  void load_own_keys() {
    const Timed timed(record_.load);
    for (const Interval& run : plan_.own)
      load_units(0, shape_.kv_heads, run, [&](int kv_head, int64_t block) { return pool_.at(pool_.slot(kv_head, block)); });
  }

  // The stripe of own rows at or after `s` that has any.
  size_t next_rows(size_t s) const {
    while (s < plan_.stripes.size() && stripe(s).query_blocks.empty()) ++s;
    return s;
  }

  void read_ahead(size_t s) {
    if (s >= plan_.stripes.size()) return;
    std::byte* to = q_[read_++ % 2].data();
    std::vector<Interval> runs;
    for (const Interval& run : stripe(s).query_blocks) runs.push_back(tokens_of(run));
    next_q_ = to;
    reading_ = io_.submit([this, to, runs] {
      std::byte* at = to;
      for (const Interval& run : runs) {
        input_.read_q(run.begin, run.length(), at);
        at += run.length() * q_row_bytes();
      }
    });
  }

  // Keys of step t: receives and sends are posted, or read again from the input.
  void start_fetch(size_t t) {
    const auto [s, step] = order_[t];
    const StepExchange& exchange = engine_.schedule_.exchanges[s][static_cast<size_t>(step)];
    if (!shared_.keys_stay) {
      if (static_cast<size_t>(step) >= stripe(s).fetch.size()) return;
      std::vector<UnitRun> runs;
      for (size_t c = 0; c < shared_.classes.size(); ++c) {
        const plan::KeyClass& key_class = shared_.classes[c];
        for (const Interval& run : stripe(s).fetch[static_cast<size_t>(step)][c])
          runs.push_back({key_class.kv_heads.front(), static_cast<int32_t>(key_class.kv_heads.size()), run.begin, run.length()});
      }
      std::map<std::pair<int, int64_t>, std::byte*> places;
      for_each_unit(runs, [&](int kv_head, int64_t block) { places[{kv_head, block}] = pool_.at(pool_.take(kv_head, block)); });
      record_.bytes_read_again += static_cast<int64_t>(places.size()) * plan_.unit_bytes;
      key_reads_[t] = io_.submit([this, runs, places = std::move(places)] {
        for (const UnitRun& run : runs)
          load_units(run.kv_head, run.kv_heads, {run.block, run.block + run.count}, [&](int kv_head, int64_t block) {
            return places.at({kv_head, block});
          });
      });
      return;
    }
    std::vector<comm::BlockExchange::Message> receives;
    for (const PeerUnits& peer : exchange.receive) {
      receives.push_back({peer.peer, {}});
      for_each_unit(peer.runs, [&](int kv_head, int64_t block) { add_piece(receives.back(), pool_.at(pool_.take(kv_head, block))); });
    }
    exchange_.start(tag_of(t), receives, {});
    if (!receives.empty()) awaited_.emplace(t, Clock::now());
    post_sends(t);
  }

  // Posts the sends of step t, and of later ones while there are few messages on their way: own keys never change, so a rank that is ahead
  // need not wait until this one gets there.
  void post_sends(size_t t) {
    while (sent_ < order_.size() && (sent_ <= t || exchange_.messages_in_flight() < kMessagesAhead)) {
      const auto [s, step] = order_[sent_];
      std::vector<comm::BlockExchange::Message> sends;
      for (const PeerUnits& peer : engine_.schedule_.exchanges[s][static_cast<size_t>(step)].send) {
        sends.push_back({peer.peer, {}});
        for_each_unit(peer.runs, [&](int kv_head, int64_t block) { add_piece(sends.back(), pool_.at(pool_.slot(kv_head, block))); });
      }
      exchange_.start(tag_of(sent_++), {}, sends);
    }
  }

  template <typename F>
  static void for_each_unit(const std::vector<UnitRun>& runs, F f) {
    for (const UnitRun& run : runs)
      for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head)
        for (int64_t block = run.block; block < run.block + run.count; ++block) f(kv_head, block);
  }

  void add_piece(comm::BlockExchange::Message& message, std::byte* unit) const {
    if (!message.pieces.empty() && message.pieces.back().address + message.pieces.back().blocks * plan_.unit_bytes == unit) {
      ++message.pieces.back().blocks;
    } else {
      message.pieces.push_back({unit, 1});
    }
  }

  void finish_fetch(size_t t) {
    const Timed timed(record_.exchange);
    if (shared_.keys_stay) {
      exchange_.finish_receives(tag_of(t));
      note_arrivals();
    } else if (const auto read = key_reads_.find(t); read != key_reads_.end()) {
      read->second.get();
      key_reads_.erase(read);
    }
  }

  void begin_stripe(size_t s) {
    if (stripe(s).is_long()) {
      layout_ = long_rows_.layout(stripe(s));
      {
        const Timed timed(record_.exchange);
        long_rows_.bring_queries(stripe(s), layout_, input_, q_[1].data());
      }
      kernels::cpu::clear_states(layout_.state_rows * shape_.heads, shape_.head_dim, m_.data(), l_.data(), o_.data(), threads_);
    } else if (!stripe(s).query_blocks.empty()) {
      {
        const Timed timed(record_.input);
        reading_.get();
      }
      q_now_ = next_q_;
      read_ahead(next_rows(s + 1));
      const Timed timed(record_.finish);
      kernels::cpu::clear_states(rows_of(s) * shape_.heads, shape_.head_dim, m_.data(), l_.data(), o_.data(), threads_);
      int64_t row = 0;
      for (const Interval& run : stripe(s).query_blocks) {
        for (int64_t block = run.begin; block < run.end; ++block) {
          long_rows_.put_states(block, row, m_.data(), l_.data(), o_.data());
          row += engine_.blocks_.rows(block);
        }
      }
    }
    if (next_lists_) {
      lists_ = std::exchange(next_lists_, std::nullopt);
    } else {
      const Timed timed(record_.plan);
      lists_ = make_lists(s);
    }
  }

  StripeLists make_lists(size_t s) {
    std::map<int64_t, int64_t> first_row;  // of own query blocks
    int64_t rows = 0;
    for (const Interval& run : stripe(s).query_blocks)
      for (int64_t block = run.begin; block < run.end; ++block) first_row[block] = rows, rows += engine_.blocks_.rows(block);
    const LongRows::Layout layout = stripe(s).is_long() ? long_rows_.layout(stripe(s)) : LongRows::Layout{};
    const auto place = [&](const plan::StripeRow& row) {
      if (row.piece < 0) return StripeLists::Place{first_row.at(row.block), first_row.at(row.block)};
      return StripeLists::Place{layout.q_row.at(row.block),
                                layout.state_row.at({row.block, shared_.pieces[static_cast<size_t>(row.piece)].key_blocks.begin})};
    };
    return StripeLists::make(shared_, plan_, engine_.pattern_, engine_.blocks_, stripe(s), engine_.schedule_.steps[s], heads_, place,
                             [this] { exchange_.progress(); });
  }

  void attend(size_t s, int step) {
    const StepLists& lists = lists_->steps[static_cast<size_t>(step)];
    const Timed timed(record_.attend);
    if (lists.work.empty()) return;
    const int64_t resident = size_of(lists.resident);
    slots_.assign(static_cast<size_t>(resident * shape_.kv_heads), -1);
    key_rows_.clear();
    for (const Interval& run : lists.resident) {
      for (int64_t block = run.begin; block < run.end; ++block) {
        for (int kv_head = 0; kv_head < shape_.kv_heads; ++kv_head)
          slots_[static_cast<size_t>(kv_head * resident) + key_rows_.size()] = static_cast<int32_t>(pool_.slot(kv_head, block));
        key_rows_.push_back(engine_.blocks_.rows(block));
      }
    }
    kernels::Step arguments;
    arguments.type = shape_.type;
    arguments.heads = shape_.heads;
    arguments.kv_heads = shape_.kv_heads;
    arguments.head_dim = shape_.head_dim;
    arguments.scale = options_.scale;
    arguments.q = stripe(s).is_long() ? q_[1].data() : q_now_;
    arguments.pool = pool_.base();
    arguments.slots = slots_.data();
    arguments.key_rows = key_rows_.data();
    arguments.resident = resident;
    arguments.work = lists.work;
    arguments.tiles = lists.tiles;
    arguments.head_lists = heads_.heads;
    arguments.masks = lists_->masks;
    arguments.m = m_.data();
    arguments.l = l_.data();
    arguments.o = o_.data();
    kernels::cpu::start_forward(arguments, threads_);
    // This thread has time: the next stripe's lists are made while the pool computes this one's last step.
    if (step + 1 == engine_.schedule_.steps[s] && s + 1 < plan_.stripes.size()) next_lists_ = make_lists(s + 1);
    while (!threads_.wait_for(kPoll)) {
      exchange_.progress();
      long_rows_.progress();
      note_arrivals();
    }
  }

  void note_arrivals() {
    if (!awaited_ || !exchange_.received(tag_of(awaited_->first))) return;
    record_.in_flight += std::chrono::duration<double>(Clock::now() - awaited_->second).count();
    awaited_.reset();
  }

  void release(size_t s, int step) {
    if (static_cast<size_t>(step) < stripe(s).fetch.size())
      for (size_t c = 0; c < shared_.classes.size(); ++c)
        release(c, subtract(stripe(s).fetch[static_cast<size_t>(step)][c], stripe(s).keep[c]));
    if (step + 1 < engine_.schedule_.steps[s]) return;
    for (size_t c = 0; c < shared_.classes.size(); ++c) release(c, subtract(kept_[c], stripe(s).keep[c]));
    kept_ = stripe(s).keep;
  }

  void release(size_t key_class, const Intervals& blocks) {
    for (const Interval& run : blocks)
      for (int64_t block = run.begin; block < run.end; ++block)
        for (int kv_head : shared_.classes[key_class].kv_heads) pool_.release(kv_head, block);
  }

  void end_stripe(size_t s) {
    if (stripe(s).is_long()) {
      const Timed timed(record_.exchange);
      long_rows_.bring_states_home(stripe(s), layout_, m_.data(), l_.data(), o_.data(), threads_);
    } else if (!stripe(s).query_blocks.empty()) {
      write_results(s);
    }
    if (options_.progress) options_.progress(static_cast<int64_t>(s) + 1, static_cast<int64_t>(plan_.stripes.size()));
  }

  void write_results(size_t s) {
    const size_t buffer = written_++ % 2;
    if (writes_[buffer].valid()) {
      const Timed timed(record_.output);
      writes_[buffer].get();
    }
    const int64_t rows = rows_of(s);
    out_[buffer].resize(static_cast<size_t>(most_rows_ * o_row_bytes()));  // not before: states of long rows travel in this memory's stead
    lse_[buffer].resize(static_cast<size_t>(most_rows_ * shape_.heads));
    {
      const Timed timed(record_.finish);
      kernels::cpu::finish({shape_.heads, shape_.head_dim, rows, m_.data(), l_.data(), o_.data(), shared_.options.output_type,
                            out_[buffer].data(), lse_[buffer].data()},
                           threads_);
    }
    writes_[buffer] = io_.submit([this, s, buffer] {
      int64_t row = 0;
      for (const Interval& run : stripe(s).query_blocks) {
        const Interval tokens = tokens_of(run);
        output_.write(tokens.begin, tokens.length(), out_[buffer].data() + row * o_row_bytes(), lse_[buffer].data() + row * shape_.heads);
        row += tokens.length();
      }
      output_.stripe_written(static_cast<int64_t>(s - shared_.batches.size()));
    });
  }

  void account() {
    record_.bytes_received = exchange_.bytes_received();
    record_.bytes_sent = exchange_.bytes_sent();
    record_.planned_bytes_received = plan_.units_moved * plan_.unit_bytes;
    record_.planned_bytes_sent = engine_.schedule_.units_to_send * plan_.unit_bytes;
    record_.row_bytes_received = long_rows_.bytes_received();
    record_.planned_row_bytes_received = plan_.row_bytes_moved;
  }

  Engine& engine_;
  const plan::Shared& shared_;
  const Shape& shape_;
  const plan::RankPlan& plan_;
  Input& input_;
  Output& output_;
  const RunOptions& options_;
  Record record_;

  HeadSets heads_;
  KeyPool pool_;
  comm::BlockExchange exchange_;
  LongRows long_rows_;
  LongRows::Layout layout_;
  kernels::cpu::ThreadPool threads_;

  std::vector<std::pair<size_t, int>> order_;  // (stripe, step) in the order they run
  std::optional<StripeLists> lists_, next_lists_;
  std::vector<Intervals> kept_;
  std::map<size_t, std::future<void>> key_reads_;
  std::optional<std::pair<size_t, Clock::time_point>> awaited_;  // the step whose keys are on their way, and since when

  std::vector<std::byte> q_[2], out_[2];
  std::vector<float> m_, l_, o_, lse_[2];
  std::byte *q_now_ = nullptr, *next_q_ = nullptr;
  size_t read_ = 0, written_ = 0, sent_ = 0;
  int64_t most_rows_ = 0;
  std::vector<int32_t> slots_, key_rows_;
  std::future<void> reading_, writes_[2];
  IoThread io_;  // last: its tasks use everything above, and it is joined first
};

Record Engine::forward(Input& input, Output& output, const RunOptions& options) { return Run(*this, input, output, options).execute(); }

}  // namespace longspan::engine
