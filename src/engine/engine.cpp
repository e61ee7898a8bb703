#include "engine/engine.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <future>
#include <optional>
#include <unordered_map>
#include <utility>

#include "engine/io_thread.hpp"
#include "engine/long_rows.hpp"
#include "engine/row_copies.hpp"
#include "engine/stripe_lists.hpp"
#include "longspan/error.hpp"
#include "plan/memory.hpp"

namespace longspan::engine {

namespace {

constexpr int kTags = 1 << 20;
constexpr double kPoll = 0.0005;  // seconds between two looks at the messages while the device computes

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
               const plan::Shared& shared, plan::RankPlan plan, const std::vector<bool>& done, std::vector<int> host_of_rank)
    : ranks_(ranks),
      pattern_(pattern),
      blocks_(blocks),
      shared_(shared),
      plan_(std::move(plan)),
      host_of_rank_(host_of_rank.empty() ? ranks.host_of_rank() : std::move(host_of_rank)),
      row_ranks_(ranks.handle()) {
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
  schedule_ = agree_on_schedule(ranks, shared, plan_, host_of_rank_);
}

Engine::~Engine() = default;

class Engine::Run {
 public:
  Run(Engine& engine, Input& input, Output& output, kernels::Device& device, comm::Transport& transport, const RunOptions& options)
      : engine_(engine),
        shared_(engine.shared_),
        shape_(engine.shared_.shape),
        plan_(engine.plan_),
        input_(input),
        output_(output),
        copies_(input, output, shape_, engine.shared_.options.output_type, device.spare_threads()),
        device_(device),
        options_(options),
        heads_(engine.pattern_, shape_),
        pool_(shared_.keys_stay ? plan_.own : Intervals{}, engine.blocks_.count(), shape_.kv_heads, engine.schedule_.most_fetched_units,
              plan_.unit_bytes, device),
        exchange_(transport.between_pools(engine.ranks_, pool_.memory().units, plan_.unit_bytes)),
        long_rows_(engine.row_ranks_, shared_, engine.pattern_, engine.blocks_, plan_.rank, device) {
    exchange_->set_timeout(options.timeout);
    if (engine.schedule_.passes_on) {
      inside_host_ = transport.between_pools(engine.ranks_, pool_.memory().units, plan_.unit_bytes);
      inside_host_->set_timeout(options.timeout);
    }
    long_rows_.set_timeout(options.timeout);
    for (size_t s = 0; s < plan_.stripes.size(); ++s)
      for (int step = 0; step < engine.schedule_.steps[s]; ++step) order_.emplace_back(s, step);
    kept_.resize(shared_.classes.size());
    if (device.spare_threads() > 1) list_threads_.emplace(device.spare_threads());
  }

  Record execute() {
    const Clock::time_point start = Clock::now();
    allocate();
    if (shared_.keys_stay) load_own_keys();
    read_ahead(next_rows(0));
    start_first_fetches();  // beside the reading of queries and the making of lists
    size_t t = 0;
    for (size_t s = 0; s < plan_.stripes.size(); ++s) {
      begin_stripe(s);
      for (int step = 0; step < engine_.schedule_.steps[s]; ++step, ++t) {
        start_fetches(t + static_cast<size_t>(engine_.schedule_.ahead));
        finish_fetch(t);
        attend(s, step);
        finish_passing_on(t);
        release(s, step, static_cast<int64_t>(t));
      }
      end_stripe(s);
    }
    {
      const Timed timed(record_.output);
      for (std::future<void>& write : writes_)
        if (write.valid()) write.get();
    }
    finish_sends();
    record_.total = std::chrono::duration<double>(Clock::now() - start).count();
    account();
    return record_;
  }
  // After a failure, before the run is taken down: a device that waits for other ranks would never let go of its memory.
  void abandon() {
    exchange_->abandon();
    if (inside_host_) inside_host_->abandon();
  }

  ExchangeTimes exchange(int times) {
    if (!shared_.keys_stay) internal_error("an exchange of keys that are read again");
    load_own_keys();
    ExchangeTimes result;
    for (int time = 0; time < times; ++time) {
      sent_ = started_ = 0;
      engine_.ranks_.barrier();
      const Clock::time_point start = Clock::now();
      start_first_fetches();
      for (size_t t = 0; t < order_.size(); ++t) {
        start_fetches(t + static_cast<size_t>(engine_.schedule_.ahead));
        finish_fetch(t);
        finish_passing_on(t);
        release(order_[t].first, order_[t].second, static_cast<int64_t>(t));
      }
      finish_sends();
      result.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
    account();
    result.bytes_received = record_.bytes_received / std::max(1, times);
    result.bytes_sent = record_.bytes_sent / std::max(1, times);
    for (const auto& stripe : engine_.schedule_.exchanges)
      for (const StepExchange& step : stripe)
        result.messages_received += static_cast<int64_t>(step.receive.size() + step.given_receive.size());
    return result;
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
  Intervals tokens_of(const Intervals& blocks) const {
    Intervals tokens;
    for (const Interval& run : blocks) tokens.push_back(tokens_of(run));
    return tokens;
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
    const auto reserve = [&](kernels::Buffer& buffer, int64_t bytes) {
      buffer = device_.allocate(bytes);
      record_.rows_bytes += bytes;
    };
    // Long stripes come first: their queries lie where the second stripe of own rows will have its own.
    reserve(q_[0], most_rows * q_row_bytes());
    reserve(q_[1], std::max(most_rows, most_q) * q_row_bytes());
    reserve(states_.m, most_states * shape_.heads * 4);
    reserve(states_.l, most_states * shape_.heads * 4);
    reserve(states_.o, most_states * shape_.heads * shape_.head_dim * 4);
    for (auto& [o, lse] : results_) {
      reserve(o, most_rows * o_row_bytes());
      reserve(lse, most_rows * shape_.heads * 4);
    }
    record_.pool_bytes = pool_.bytes();
  }

  // Rows of KV heads [kv_head, kv_head + kv_heads) from the input into their units, whose slots are [blocks][kv_heads].
  void load_units(int kv_head, int kv_heads, const Intervals& blocks, std::span<const int32_t> slots) {
    std::vector<int32_t> rows;
    for (const Interval& run : blocks)
      for (int64_t block = run.begin; block < run.end; ++block) rows.push_back(engine_.blocks_.rows(block));
    const Intervals tokens = tokens_of(blocks);
    device_.load_units(
        {.type = shape_.type, .head_dim = shape_.head_dim, .kv_heads = kv_heads, .rows = rows, .slots = slots},
        [&](int64_t first, int64_t count, std::byte* k, std::byte* v) { copies_.read_keys(tokens, first, count, kv_head, kv_heads, k, v); },
        pool_.memory());
  }

  void load_own_keys() {
    const Timed timed(record_.load);
    std::vector<int32_t> slots;
    for (const Interval& run : plan_.own)
      for (int64_t block = run.begin; block < run.end; ++block)
        for (int kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) slots.push_back(static_cast<int32_t>(pool_.slot(kv_head, block)));
    load_units(0, shape_.kv_heads, plan_.own, slots);
  }

  // The stripe of own rows at or after `s` that has any.
  size_t next_rows(size_t s) const {
    while (s < plan_.stripes.size() && stripe(s).query_blocks.empty()) ++s;
    return s;
  }

  void read_ahead(size_t s) {
    if (s >= plan_.stripes.size()) return;
    std::byte* to = q_[read_++ % 2].get();
    next_q_ = to;
    reading_ = io_.submit([this, to, s] {
      const Intervals tokens = tokens_of(stripe(s).query_blocks);
      device_.load_rows(
          size_of(tokens), q_row_bytes(),
          [&](int64_t first, int64_t count, std::byte* rows) { copies_.read_q(tokens, first, count, rows); }, to);
    });
  }

  void start_first_fetches() { start_fetches(std::max(engine_.schedule_.first_fetch, static_cast<size_t>(engine_.schedule_.ahead - 1))); }
  // Starts the fetches of steps up to `last`, in order.
  void start_fetches(size_t last) {
    for (; started_ <= last && started_ < order_.size(); ++started_) start_fetch(started_);
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
      // By block, then KV head, as the input's rows have them.
      std::vector<std::vector<int32_t>> slots;
      for (const UnitRun& run : runs) {
        slots.emplace_back();
        for (int64_t block = run.block; block < run.block + run.count; ++block)
          for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head)
            slots.back().push_back(static_cast<int32_t>(pool_.take(kv_head, block)));
        record_.bytes_read_again += run.units() * plan_.unit_bytes;
      }
      key_reads_[t] = io_.submit([this, runs, slots = std::move(slots)] {
        for (size_t r = 0; r < runs.size(); ++r)
          load_units(runs[r].kv_head, runs[r].kv_heads, {{runs[r].block, runs[r].block + runs[r].count}}, slots[r]);
      });
      return;
    }
    // A unit that is here and fetched anew has two slots until the older one is released: those taken for this step are what is passed on.
    std::unordered_map<int64_t, int32_t> taken;
    const auto take = [&](int kv_head, int64_t block) {
      const auto slot = static_cast<int32_t>(pool_.take(kv_head, block));
      if (!exchange.pass_on.empty()) taken[block * shape_.kv_heads + kv_head] = slot;
      arriving_[t].push_back(slot);
      return slot;
    };
    const std::vector<comm::PoolExchange::Message> receives = messages(exchange.receive, take);
    for (const comm::PoolExchange::Message& message : receives)
      if (engine_.host_of_rank_[static_cast<size_t>(message.peer)] != engine_.host_of_rank_[static_cast<size_t>(plan_.rank)])
        record_.bytes_from_other_hosts += static_cast<int64_t>(message.slots.size()) * plan_.unit_bytes;
    if (!exchange.given_receive.empty() || !exchange.pass_on.empty()) {
      Inside inside{t, messages(exchange.given_receive, take), {}};
      inside.sends = messages(exchange.pass_on, [&](int kv_head, int64_t block) {
        const auto now = taken.find(block * shape_.kv_heads + kv_head);
        return now != taken.end() ? now->second : slot_of(kv_head, block);
      });
      inside_waiting_.push_back(std::move(inside));
    }
    exchange_->start(tag_of(t), receives, sent_ <= t ? sends_of(sent_++) : std::vector<comm::PoolExchange::Message>{});
    if (!receives.empty()) {
      if (awaited_.empty()) awaited_since_ = Clock::now();
      awaited_.push_back(t);
    }
    for (; sent_ < order_.size() && exchange_->takes_sends_ahead(); ++sent_) exchange_->start(tag_of(sent_), {}, sends_of(sent_));
  }

  int32_t slot_of(int kv_head, int64_t block) const { return static_cast<int32_t>(pool_.slot(kv_head, block)); }

  template <typename Slot>
  static std::vector<comm::PoolExchange::Message> messages(const std::vector<PeerUnits>& peers, Slot slot) {
    std::vector<comm::PoolExchange::Message> messages;
    for (const PeerUnits& peer : peers) {
      messages.push_back({peer.peer, {}});
      for (const UnitRun& run : peer.runs)
        messages.back().runs.insert(messages.back().runs.end(), static_cast<size_t>(run.kv_heads), run.count);
      for_each_unit(peer.runs, [&](int kv_head, int64_t block) { messages.back().slots.push_back(slot(kv_head, block)); });
    }
    return messages;
  }

  std::vector<comm::PoolExchange::Message> sends_of(size_t t) {
    const auto [s, step] = order_[t];
    return messages(engine_.schedule_.exchanges[s][static_cast<size_t>(step)].send,
                    [&](int kv_head, int64_t block) { return slot_of(kv_head, block); });
  }

  // Inside the host, a step's units go on as soon as they are here; step by step. Some may have come with the step before, from elsewhere
  // or from inside, and nobody has waited for that one yet when this one comes early; all steps before it have been waited for.
  bool may_pass_on(size_t t) {
    const auto here = [&](size_t step) { return exchange_->received(tag_of(step)) && (step == t || inside_host_->received(tag_of(step))); };
    return here(t) && (t == 0 || here(t - 1));
  }
  void pass_on(size_t last) {
    while (!inside_waiting_.empty() && inside_waiting_.front().t <= last && may_pass_on(inside_waiting_.front().t)) {
      const Inside& next = inside_waiting_.front();
      inside_host_->start(tag_of(next.t), next.receives, next.sends);
      inside_waiting_.pop_front();
    }
  }

  // Before this rank waits for anything but one of the two exchanges by itself: others may be waiting for its blocks.
  void hand_over() {
    exchange_->hand_over();
    if (inside_host_) inside_host_->hand_over();
  }

  void move_messages() {
    exchange_->progress();
    if (inside_host_) {
      // Where all ranks must start all in one order, step t is passed on once step t + 1 has been started, and not before.
      if (!exchange_->starts_in_one_order()) pass_on(order_.size());
      inside_host_->progress();
    }
  }

  template <typename F>
  static void for_each_unit(const std::vector<UnitRun>& runs, F f) {
    for (const UnitRun& run : runs)
      for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head)
        for (int64_t block = run.block; block < run.block + run.count; ++block) f(kv_head, block);
  }

  void finish_fetch(size_t t) {
    const Timed timed(record_.exchange);
    if (shared_.keys_stay) {
      if (inside_host_) inside_host_->hand_over();
      exchange_->finish_receives(tag_of(t));
      if (inside_host_) {
        pass_on(t);
        exchange_->hand_over();
        inside_host_->finish_receives(tag_of(t));
      }
      note_arrivals();
      if (const auto arrived = arriving_.find(t); arrived != arriving_.end()) {
        device_.units_arrived(pool_.memory(), arrived->second, shape_.type, shape_.head_dim);
        arriving_.erase(arrived);
      }
    } else if (const auto read = key_reads_.find(t); read != key_reads_.end()) {
      read->second.get();
      key_reads_.erase(read);
    }
  }

  void finish_passing_on(size_t t) {
    if (!inside_host_) return;
    const Timed timed(record_.exchange);
    hand_over();
    inside_host_->finish_sends(tag_of(t));  // what is passed on may be released now
  }

  void finish_sends() {
    const Timed timed(record_.exchange);
    for (size_t t = 0; t < order_.size(); ++t)
      if (shared_.keys_stay) exchange_->finish_sends(tag_of(t));
  }

  void begin_stripe(size_t s) {
    if (next_lists_) {
      lists_ = std::exchange(next_lists_, std::nullopt);
    } else {
      const Timed timed(record_.plan);
      lists_ = make_lists(s);
    }
    if (stripe(s).is_long()) {
      layout_ = long_rows_.layout(stripe(s));
      const Timed timed(record_.exchange);
      hand_over();
      std::vector<std::byte> q(static_cast<size_t>(layout_.q_rows * q_row_bytes()));
      long_rows_.bring_queries(stripe(s), layout_, input_, q.data());
      device_.upload(q.data(), static_cast<int64_t>(q.size()), q_[1].get());
      device_.clear_states(layout_.state_rows * shape_.heads, shape_.head_dim, m(), l(), o());
    } else if (!stripe(s).query_blocks.empty()) {
      {
        const Timed timed(record_.input);
        reading_.get();
      }
      q_now_ = next_q_;
      read_ahead(next_rows(s + 1));
      {
        const Timed timed(record_.output);
        results_now_ = written_++ % 2;
        if (writes_[results_now_].valid()) writes_[results_now_].get();
      }
      prepare_states(s);
    }
  }

  // Kernels begin the states of rows with tiles (Work::begins); only those without any need one, and where the kernels also finish rows,
  // their results before the others'.
  void prepare_states(size_t s) {
    const Timed timed(record_.finish);
    bool needed = lists_->some_rows_see_nothing;
    for_each_block(s, [&](int64_t block, int64_t) { needed = needed || long_rows_.has_states(block); });
    if (!needed) return;
    device_.clear_states(rows_of(s) * shape_.heads, shape_.head_dim, m(), l(), o());
    for_each_block(s, [&](int64_t block, int64_t row) { long_rows_.put_states(block, row, m(), l(), o()); });
    if (device_.finishes_in_steps()) finish(s);
  }

  void finish(size_t s) {
    device_.finish({shape_.heads, shape_.head_dim, rows_of(s), m(), l(), o(), results().type, results().o, results().lse});
  }

  // Calls f(block, its first row) for the own query blocks of a stripe.
  template <typename F>
  void for_each_block(size_t s, F f) const {
    int64_t row = 0;
    for (const Interval& run : stripe(s).query_blocks)
      for (int64_t block = run.begin; block < run.end; ++block) f(block, row), row += engine_.blocks_.rows(block);
  }

  StripeLists make_lists(size_t s) {
    std::map<int64_t, int64_t> first_row;  // of own query blocks
    for_each_block(s, [&](int64_t block, int64_t row) { first_row[block] = row; });
    const LongRows::Layout layout = stripe(s).is_long() ? long_rows_.layout(stripe(s)) : LongRows::Layout{};
    const auto place = [&](const plan::StripeRow& row) {
      if (row.piece < 0) return StripeLists::Place{first_row.at(row.block), first_row.at(row.block)};
      return StripeLists::Place{layout.q_row.at(row.block),
                                layout.state_row.at({row.block, shared_.pieces[static_cast<size_t>(row.piece)].key_blocks.begin})};
    };
    return StripeLists::make(
        shared_, plan_, engine_.pattern_, engine_.blocks_, stripe(s), engine_.schedule_.steps[s], heads_, place,
        [this] { move_messages(); }, list_threads_ ? &*list_threads_ : nullptr);
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
    arguments.q = stripe(s).is_long() ? q_[1].get() : q_now_;
    arguments.pool = pool_.memory().units;
    arguments.slots = slots_.data();
    arguments.key_rows = key_rows_.data();
    arguments.resident = resident;
    arguments.work = lists.work;
    arguments.tiles = lists.tiles;
    arguments.head_lists = heads_.heads;
    arguments.masks = lists_->masks;
    arguments.m = m();
    arguments.l = l();
    arguments.o = o();
    device_.start(arguments, stripe(s).is_long() ? layout_.q_rows : rows_of(s), pool_.memory(), results());
    // This thread has time: the next stripe's lists are made while the device computes this one's last step.
    if (step + 1 == engine_.schedule_.steps[s] && s + 1 < plan_.stripes.size()) next_lists_ = make_lists(s + 1);
    while (!device_.wait_for(kPoll)) {
      move_messages();
      long_rows_.progress();
      note_arrivals();
    }
  }

  void note_arrivals() {
    if (awaited_.empty()) return;
    std::erase_if(awaited_, [&](size_t t) { return exchange_->received(tag_of(t)); });
    if (awaited_.empty()) record_.in_flight += std::chrono::duration<double>(Clock::now() - awaited_since_).count();
  }

  void release(size_t s, int step, int64_t t) {
    const auto held = [&](size_t c) { return held_blocks(engine_.schedule_.hold_at, t, c); };
    for (size_t c = 0; c < shared_.classes.size(); ++c) release(c, subtract(held_blocks(engine_.schedule_.let_go_at, t, c), held(c)));
    if (static_cast<size_t>(step) < stripe(s).fetch.size())
      for (size_t c = 0; c < shared_.classes.size(); ++c)
        release(c, subtract(subtract(stripe(s).fetch[static_cast<size_t>(step)][c], stripe(s).keep[c]), held(c)));
    if (step + 1 < engine_.schedule_.steps[s]) return;
    for (size_t c = 0; c < shared_.classes.size(); ++c) release(c, subtract(subtract(kept_[c], stripe(s).keep[c]), held(c)));
    kept_ = stripe(s).keep;
  }

  static Intervals held_blocks(const std::map<int64_t, std::vector<HeldBlocks>>& by_step, int64_t t, size_t key_class) {
    Intervals blocks;
    const auto found = by_step.find(t);
    if (found == by_step.end()) return blocks;
    for (const HeldBlocks& held : found->second)
      if (static_cast<size_t>(held.key_class) == key_class) blocks.push_back(held.blocks);
    return normalised(std::move(blocks));
  }

  void release(size_t key_class, const Intervals& blocks) {
    for (const Interval& run : blocks)
      for (int64_t block = run.begin; block < run.end; ++block)
        for (int kv_head : shared_.classes[key_class].kv_heads) pool_.release(kv_head, block);
  }

  void end_stripe(size_t s) {
    {
      const Timed timed(record_.exchange);
      hand_over();
    }
    if (stripe(s).is_long()) {
      const Timed timed(record_.exchange);
      long_rows_.bring_states_home(stripe(s), layout_, m(), l(), o());
    } else if (!stripe(s).query_blocks.empty()) {
      if (!device_.finishes_in_steps()) {
        const Timed timed(record_.finish);
        finish(s);
      }
      write_results(s);
    }
    if (options_.progress) options_.progress(static_cast<int64_t>(s) + 1, static_cast<int64_t>(plan_.stripes.size()));
  }

  void write_results(size_t s) {
    writes_[results_now_] = io_.submit([this, s, from = results()] {
      const Intervals tokens = tokens_of(stripe(s).query_blocks);
      device_.store_rows(
          from, size_of(tokens), shape_.heads, shape_.head_dim,
          [&](int64_t first, int64_t count, const std::byte* o, const float* lse) { copies_.write(tokens, first, count, o, lse); });
      output_.stripe_written(static_cast<int64_t>(s - shared_.batches.size()));
    });
  }

  float* m() const { return reinterpret_cast<float*>(states_.m.get()); }
  float* l() const { return reinterpret_cast<float*>(states_.l.get()); }
  float* o() const { return reinterpret_cast<float*>(states_.o.get()); }
  kernels::Results results() const {
    const auto& [o, lse] = results_[results_now_];
    return {shared_.options.output_type, o.get(), reinterpret_cast<float*>(lse.get())};
  }

  void account() {
    record_.bytes_from_other_hosts_if_flat = engine_.schedule_.units_from_other_hosts_if_flat * plan_.unit_bytes;
    record_.least_bytes_to_host = engine_.schedule_.least_units_to_host * plan_.unit_bytes;
    record_.bytes_received = exchange_->bytes_received() + (inside_host_ ? inside_host_->bytes_received() : 0);
    record_.bytes_sent = exchange_->bytes_sent() + (inside_host_ ? inside_host_->bytes_sent() : 0);
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
  RowCopies copies_;
  kernels::Device& device_;
  const RunOptions& options_;
  Record record_;

  HeadSets heads_;
  KeyPool pool_;
  std::unique_ptr<comm::PoolExchange> exchange_;     // with the homes
  std::unique_ptr<comm::PoolExchange> inside_host_;  // among the ranks of the host; where nothing is passed on there is none
  struct Inside {
    size_t t;
    std::vector<comm::PoolExchange::Message> receives, sends;
  };
  std::deque<Inside> inside_waiting_;  // until the step's units from elsewhere are here
  LongRows long_rows_;
  LongRows::Layout layout_;

  std::vector<std::pair<size_t, int>> order_;  // (stripe, step) in the order they run
  std::optional<kernels::cpu::ThreadPool> list_threads_;
  std::optional<StripeLists> lists_, next_lists_;
  std::vector<Intervals> kept_;
  std::map<size_t, std::future<void>> key_reads_;
  std::map<size_t, std::vector<int32_t>> arriving_;  // by step: slots that messages fill
  std::vector<size_t> awaited_;                      // steps whose keys are on their way
  Clock::time_point awaited_since_;                  // the first of them

  kernels::Buffer q_[2];
  struct {
    kernels::Buffer m, l, o;
  } states_;
  struct {
    kernels::Buffer o, lse;
  } results_[2];
  std::byte *q_now_ = nullptr, *next_q_ = nullptr;
  size_t read_ = 0, written_ = 0, started_ = 0, sent_ = 0, results_now_ = 0;
  std::vector<int32_t> slots_, key_rows_;
  std::future<void> reading_, writes_[2];
  IoThread io_;  // last: its tasks use everything above, and it is joined first
};

Record Engine::forward(Input& input, Output& output, kernels::Device& device, comm::Transport& transport, const RunOptions& options) {
  Run run(*this, input, output, device, transport, options);
  try {
    return run.execute();
  } catch (...) {
    run.abandon();
    throw;
  }
}

ExchangeTimes Engine::exchange(Input& input, kernels::Device& device, comm::Transport& transport, const RunOptions& options, int times) {
  class NoOutput : public Output {
    void write(int64_t, int64_t, const std::byte*, const float*) override {}
  } none;
  return Run(*this, input, none, device, transport, options).exchange(times);
}

}  // namespace longspan::engine
