#include "engine/engine.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <limits>
#include <optional>
#include <thread>
#include <utility>

#include "engine/fetches.hpp"
#include "engine/io_thread.hpp"
#include "engine/kept.hpp"
#include "engine/key_loader.hpp"
#include "engine/list_maker.hpp"
#include "engine/long_rows.hpp"
#include "engine/row_copies.hpp"
#include "engine/step_starter.hpp"
#include "engine/stripe_lists.hpp"
#include "engine/stripe_rows.hpp"
#include "engine/timed.hpp"
#include "longspan/error.hpp"
#include "plan/memory.hpp"

namespace longspan::engine {

Engine::Engine(const comm::Communicator& ranks, const pattern::BoundPattern& pattern, const plan::Blocks& blocks,
               const plan::Shared& shared, plan::RankPlan plan, const std::vector<bool>& done, std::vector<int> host_of_rank)
    : ranks_(ranks),
      pattern_(pattern),
      blocks_(blocks),
      shared_(shared),
      plan_(std::move(plan)),
      host_of_rank_(host_of_rank.empty() ? ranks.host_of_rank() : std::move(host_of_rank)),
      row_ranks_(ranks.handle()) {
  leave_out_done(ranks, shared, done, plan_);
  plan::plan_fetches(shared, plan_);
  schedule_ = agree_on_schedule(ranks, shared, plan_, host_of_rank_);
}

Engine::~Engine() = default;

class Engine::Run {
 public:
  Run(Engine& engine, Kept& kept, Input& input, Output& output, kernels::Device& device, const RunOptions& options)
      : engine_(engine),
        shared_(engine.shared_),
        shape_(engine.shared_.shape),
        plan_(engine.plan_),
        input_(input),
        output_(output),
        copies_(input, output, shape_, engine.shared_.options.output_type, device),
        device_(device),
        options_(options),
        kept_(kept),
        fetches_(kept.fetches),
        long_rows_(kept.long_rows),
        rows_(kept.rows),
        key_loader_(shape_, engine.blocks_, copies_, device, fetches_.pool(), io_),
        list_maker_(
            plan_, shared_.memory.lists, device.spare_threads(), [this](size_t s, auto* threads) { return make_lists(s, threads); },
            options.keep ? &kept.lists.of_stripes : nullptr),
        starter_(shape_, kept.heads, options.scale, list_maker_.keeps(), device, fetches_) {
    long_rows_.begin(options.timeout);
    begin_fetches();
  }

  Record execute() {
    const double start = seconds_now();
    if (list_maker_.has_thread()) list_maker_.make_ahead();
    allocate();
    // Other ranks wait for them: where the device loads the keys, it brings them first.
    if (shared_.keys_stay && !plan_.stripes.empty() && stripe(0).is_long() && key_loader_.is_the_devices(plan_.own)) read_queries(0);
    start_loading_keys();
    read_ahead(next_rows(0));
    prepare_beside_loading();
    finish_loading_keys();
    may_start_first_ = false;
    {
      const Timed timed(record_.exchange);
      fetches_.start_first();  // beside the reading of queries
    }
    size_t t = 0;
    for (size_t s = 0; s < plan_.stripes.size(); ++s) {
      begin_stripe(s);
      for (int step = 0; step < engine_.schedule_.steps[s]; ++step, ++t) {
        fetch(t);
        attend(s, step, t);
        if (!stripe(s).is_long() && !long_rows_.own_states()) finish_sending_states();  // it had a step's time (own_states(): has more)
        finish_passing_on(t);
        fetches_.release(t);
      }
      end_stripe(s);
    }
    merge_long_rows();
    {
      const Timed timed(record_.output);
      for (std::future<void>& write : writes_) wait_for_io(write);
    }
    finish_sends();
    record_.total = seconds_now() - start;
    account();
    return record_;
  }
  // After a failure, before the run is taken down: a device that waits for other ranks would never let go of its memory.
  void abandon() { fetches_.abandon(); }

  ExchangeTimes exchange(int times) {
    if (!shared_.keys_stay) internal_error("an exchange of keys that are read again");
    start_loading_keys();
    finish_loading_keys();
    ExchangeTimes result;
    for (int time = 0; time < times; ++time) {
      begin_fetches();
      engine_.ranks_.barrier();
      const double start = seconds_now();
      fetches_.start_first();
      for (size_t t = 0; t < fetches_.order().size(); ++t) {
        fetch(t);
        finish_passing_on(t);
        fetches_.release(t);
      }
      finish_sends();
      result.seconds.push_back(seconds_now() - start);
    }
    account();
    result.bytes_received = record_.bytes_received;
    result.bytes_sent = record_.bytes_sent;
    result.messages_received = engine_.schedule_.messages_received();
    return result;
  }

 private:
  void begin_fetches() {
    fetches_.begin(options_.timeout, options_.keep,
                   [this](auto runs, auto slots) { return read_keys_again(std::move(runs), std::move(slots)); });
  }
  const plan::Stripe& stripe(size_t s) const { return plan_.stripes[s]; }
  int64_t q_row_bytes() const { return int64_t{shape_.heads} * shape_.head_dim * static_cast<int64_t>(size_of(shape_.type)); }
  int64_t rows_of(size_t s) const { return size_of(tokens_of(stripe(s).query_blocks)); }
  Intervals tokens_of(const Intervals& blocks) const { return engine_.blocks_.tokens(blocks); }

  void allocate() {
    const Timed timed(record_.plan);
    std::vector<Intervals> tokens(plan_.stripes.size());
    int64_t most_states = 0, long_queries = 0;
    for (size_t s = 0; s < plan_.stripes.size(); ++s) {
      tokens[s] = tokens_of(stripe(s).query_blocks);
      most_states = std::max(most_states, size_of(tokens[s]));
      if (!stripe(s).is_long()) continue;
      const LongRows::Layout& layout = long_rows_.layout(stripe(s));
      most_states = std::max(most_states, layout.state_rows);
      long_queries = std::max(long_queries, layout.q_rows);
    }
    rows_.begin(copies_, tokens, long_queries);
    const int64_t states = most_states * shape_.heads;
    if (kept_.states < states) {
      kept_.m = device_.allocate(states * 4);
      kept_.l = device_.allocate(states * 4);
      kept_.o = device_.allocate(states * shape_.head_dim * 4);
      kept_.states = states;
    }
    record_.rows_bytes = rows_.bytes() + states * (shape_.head_dim + 2) * 4;
    long_rows_.make_room(plan_.stripes);
    record_.pool_bytes = fetches_.pool().bytes();
  }

  void start_loading_keys() {
    const Timed timed(record_.load);
    if (!shared_.keys_stay) return;
    const bool can = !options_.keys_into_pool && key_loader_.is_the_devices(plan_.own) &&
                     device_.attends_rows(shape_.type, shape_.head_dim, options_.scale);
    const auto stay = [&](int64_t sent) {  // blocks, by way of the pool
      return can && plan::keys_stay_in_rows(plan_.weighted_tiles(), size_of(plan_.own) * shape_.kv_heads, sent * shape_.kv_heads) &&
             key_loader_.leave_in_rows(plan_.own);
    };
    // Others who read them in rows leave nothing to be loaded, however much they get.
    record_.keys_shared = options_.share_keys && stay(0) && fetches_.send_from_rows();
    if (!record_.keys_shared) fetches_.send_from_pool();
    record_.keys_in_rows = record_.keys_shared || stay(fetches_.sent().blocks);
    if (can && !kept_.masked) kept_.masked = kept_.lists.masked(plan_.stripes.size());
    fetches_.look_through(can && kept_.masked ? &*kept_.masked : nullptr);
    if (!record_.keys_in_rows) return key_loader_.start_own(plan_.own, fetches_.first_sent());
    static const Fetches::Sent nothing;
    const Fetches::Sent& loaded = record_.keys_shared ? nothing : fetches_.sent();
    key_loader_.start_in_rows(loaded.first, loaded.later, kept_.masked ? intersect(plan_.own, *kept_.masked) : plan_.own);
  }

  // What the first stripes need of this thread, while the keys are loaded: messages, long rows' queries, and lists.
  void prepare_beside_loading() {
    if (!key_loader_.is_started() || plan_.stripes.empty()) return;
    const double begin = seconds_now() - record_.plan;
    if (stripe(0).is_long()) start_queries(0);
    {
      const Timed timed(record_.plan);
      while (fetches_.prepare_one_of_first()) long_rows_.progress(), key_loader_.here_at();  // notes the time
    }
    may_start_first_ = true;
    if (record_.keys_shared) move_messages();  // there is nothing to wait for
    const auto list_more = [&] {
      const Timed timed(record_.plan);
      return list_maker_.make_ahead();
    };
    list_more();
    if (stripe(0).is_long()) begin_stripe(0);  // its queries come from their homes
    prepare_next(-1, 0);
    // Until the own keys are there nothing has waited for other ranks.
    const double beside = std::clamp(key_loader_.here_at() - record_.plan - begin, 0.0, record_.exchange);
    record_.load += beside, record_.exchange -= beside;
    while (std::isinf(key_loader_.here_at()) && list_more()) continue;
  }

  void finish_loading_keys() {
    const Timed timed(record_.load);
    while (!key_loader_.wait_for(poll())) move_messages();
    record_.keys_in = key_loader_.seconds();
  }

  // Others may be waiting for what this rank sends: it moves on meanwhile.
  void wait_for_io(std::future<void>& task) {
    if (!task.valid()) return;
    while (task.wait_for(std::chrono::duration<double>(poll())) != std::future_status::ready) move_messages();
    task.get();
  }

  static constexpr double kPatience = 0.1;  // seconds
  static constexpr size_t kAllParts = std::numeric_limits<size_t>::max();
  // Seconds between looks at the messages: less where this thread takes nothing from the device, and where both sides look for many parts.
  double poll() const { return !device_.memory_is_host() || long_rows_.is_moving() ? 0.00005 : 0.0005; }
  void move_messages() {
    if (may_start_first_) fetches_.start_first(record_.keys_shared ? kAllParts : key_loader_.parts_here());
    fetches_.progress();
    if (may_start_first_) fetches_.note_arrivals();
    long_rows_.progress();
  }

  // The stripe of own rows at or after `s` that has any.
  size_t next_rows(size_t s) const {
    while (s < plan_.stripes.size() && stripe(s).query_blocks.empty()) ++s;
    return s;
  }

  void read_ahead(size_t s) {
    if (s >= plan_.stripes.size()) return;
    next_q_ = rows_.q_in_place(s);
    if (next_q_ != nullptr) return;
    std::byte* to = rows_.q_buffer(read_++);
    next_q_ = to;
    reading_ = io_.submit([this, to, s] {
      const Timed timed(record_.queries_in);
      const Intervals tokens = tokens_of(stripe(s).query_blocks);
      device_.load_rows(
          size_of(tokens), q_row_bytes(),
          [&](int64_t first, int64_t count, std::byte* rows) { return copies_.read_q(tokens, first, count, rows); }, to);
    });
  }

  // Units for the steps of keys that do not stay.
  std::future<void> read_keys_again(std::vector<UnitRun> runs, std::vector<std::vector<int32_t>> slots) {
    return io_.submit([this, runs = std::move(runs), slots = std::move(slots)] {
      for (size_t r = 0; r < runs.size(); ++r) key_loader_.load(runs[r].kv_head, runs[r].kv_heads, {runs[r].blocks()}, slots[r]);
    });
  }

  void fetch(size_t t) {
    const Timed timed(record_.exchange);
    fetches_.start(t + static_cast<size_t>(engine_.schedule_.ahead)), fetches_.finish(t);
  }
  void finish_passing_on(size_t t) {
    const Timed timed(record_.exchange);
    if (!fetches_.can_be_computed_early(t + 1)) long_rows_.hand_over();  // this rank may wait for others now, and for the next step's keys
    fetches_.finish_passing_on(t);
  }
  void finish_sends() {
    const Timed timed(record_.exchange);
    fetches_.finish_sends(), long_rows_.finish_sending();
  }
  void finish_sending_states() {
    if (!long_rows_.is_sending()) return;
    const Timed timed(record_.exchange);
    fetches_.hand_over();
    long_rows_.finish_sending();
  }

  void read_queries(size_t s) {
    const Timed timed(record_.exchange);
    if (queries_read_ <= s) long_rows_.read_queries(stripe(s), input_, rows_.long_q_on_host()), queries_read_ = s + 1;
  }
  void start_queries(size_t s) {
    read_queries(s);
    const Timed timed(record_.exchange);
    if (queries_started_ <= s) long_rows_.start_queries(stripe(s), rows_.long_q_on_host()), queries_started_ = s + 1;
  }

  void begin_stripe(size_t s) {
    if (s < begun_) return;
    begun_ = s + 1;
    {
      const Timed timed(record_.plan);
      lists_ = list_maker_.take([this](std::future<void>& lists) { wait_for_io(lists); });
    }
    if (stripe(s).is_long()) {
      merge_long_rows();
      layout_ = &long_rows_.layout(stripe(s));
      start_queries(s);
      const Timed timed(record_.exchange);
      fetches_.hand_over();
      // Keys that have been loaded go out meanwhile; not for ever, since finish_queries() knows when to give up.
      for (const double since = seconds_now(); !long_rows_.queries_are_here() && seconds_now() - since < kPatience;)
        move_messages(), std::this_thread::yield();
      long_rows_.finish_queries();
      if (!device_.memory_is_host()) device_.start_upload(rows_.long_q_on_host(), layout_->q_rows * q_row_bytes(), rows_.long_q());
      const auto [m, l, o] = states_of(s);
      device_.clear_states(layout_->state_rows * shape_.heads, shape_.head_dim, m, l, o);
    } else if (!stripe(s).query_blocks.empty()) {
      {
        const Timed timed(record_.input);
        wait_for_io(reading_);
      }
      q_now_ = next_q_;
      read_ahead(next_rows(s + 1));
      {
        const Timed timed(record_.output);
        turn_ = written_++ % 2;
        wait_for_io(writes_[turn_]);
      }
      results_now_ = rows_.results(s, turn_);
      if (!long_rows_.own_states()) merge_long_rows();  // what came while this rank waited for queries
      clear_rows_that_see_nothing(s);
    } else if (!long_rows_.own_states()) {
      merge_long_rows();  // nothing to compute here, but others wait to be rid of their states
    }
  }

  void merge_long_rows() {  // of the long stripe before this one; not at its end, since others have yet to end theirs
    if (!std::exchange(states_to_merge_, false)) return;
    const Timed timed(record_.exchange);
    fetches_.hand_over();
    long_rows_.merge_states(*layout_, long_rows_.own_states().value_or(states()));
  }

  // Kernels begin the states of rows with tiles (Work::begins); only those without any need one, and where the kernels also finish rows,
  // their results before the others'.
  void clear_rows_that_see_nothing(size_t s) {
    if (!lists_->some_rows_see_nothing) return;
    finish_sending_states();
    const Timed timed(record_.finish);
    device_.clear_states(rows_of(s) * shape_.heads, shape_.head_dim, m(), l(), o());
    if (device_.finishes_in_steps()) finish(s);
  }

  void finish(size_t s) {
    device_.finish({shape_.heads, shape_.head_dim, rows_of(s), m(), l(), o(), results_now_.type, results_now_.o, results_now_.lse});
  }

  // Last, since finish() of a stripe writes something in their place.
  void finish_long_rows(size_t s) {
    const Numbering rows(tokens_of(stripe(s).query_blocks));
    std::vector<std::pair<int64_t, int64_t>> blocks;  // and their first rows
    for (const int64_t block : long_rows_.own_blocks())
      if (contains(stripe(s).query_blocks, block)) blocks.emplace_back(block, rows.of(engine_.blocks_.tokens(block).begin));
    if (blocks.empty()) return;
    merge_long_rows();
    finish_sending_states();
    const Timed timed(record_.finish);
    long_rows_.finish(blocks, results_now_);
  }

  // By this thread, or by another one with `threads`: then messages are this one's to move.
  StripeLists make_lists(size_t s, kernels::cpu::ThreadPool* threads) {
    const Timed timed(record_.lists);
    std::map<int64_t, int64_t> first_row;  // of own query blocks
    int64_t rows = 0;
    for (const Interval& run : stripe(s).query_blocks)
      for (int64_t block = run.begin; block < run.end; ++block) first_row[block] = rows, rows += engine_.blocks_.rows(block);
    const auto place = [&](const plan::StripeRow& row) {
      if (row.piece < 0) return StripeLists::Place{first_row.at(row.block), first_row.at(row.block)};
      const LongRows::Layout& layout = long_rows_.layout(stripe(s));
      return StripeLists::Place{layout.q_row.at(row.block), layout.state_row.at({row.block, row.key_blocks.begin})};
    };
    const auto between = [this, mine = threads == nullptr] {
      if (mine) move_messages();
    };
    return StripeLists::make(shared_, plan_, engine_.pattern_, engine_.blocks_, stripe(s), engine_.schedule_.steps[s], kept_.heads, place,
                             between, threads);
  }

  void attend(size_t s, int step, size_t t) {
    const StepLists& lists = lists_->steps[static_cast<size_t>(step)];
    if (lists.work.empty()) return;
    if (!std::exchange(runs_already_, false)) {
      {
        const Timed timed(record_.exchange);
        fetches_.let_it_begin();
      }
      if (!starter_.is_prepared(lists)) {
        const Timed timed(record_.plan);
        starter_.prepare(*lists_, lists, t);
      }
      const Timed timed(record_.attend);
      const bool is_long = stripe(s).is_long();
      starter_.start(*lists_, lists, rows_at(s, is_long ? rows_.long_q() : q_now_, is_long ? layout_->q_rows : rows_of(s), results_now_));
    }
    const Timed timed(record_.attend);
    if (packs_states_beside(s) && step + 1 == engine_.schedule_.steps[s])
      long_rows_.pack_states(stripe(s), *layout_, *long_rows_.own_states());
    prepare_next(step, t + 1), fetches_.prepare_release(t);  // this thread has time
    const bool may_start_next = leaves_next_alone(s, step);
    while (!device_.wait_for(poll())) {
      move_messages();
      fetches_.note_arrivals(), fetches_.accept(t + 1);
      if (states_to_merge_ && device_.work_waits_for_step() && long_rows_.own_states() && long_rows_.states_are_here())
        states_to_merge_ = false, long_rows_.merge_states(*layout_, *long_rows_.own_states());
      if (may_start_next && !runs_already_) start_early(s + 1, t + 1);
    }
  }
  StepStarter::Rows rows_at(size_t s, const std::byte* q, int64_t count, const kernels::Results& results) const {
    const auto [m, l, o] = states_of(s);
    return {q, count, m, l, o, results};
  }

  // The next step that has work, while the device computes step `step` of the stripe, or -1 before its first. `t`: the job's next step.
  void prepare_next(int step, size_t t) {
    const auto prepare = [&](const StripeLists& lists, size_t from) {
      const auto next = std::find_if(lists.steps.begin() + static_cast<int64_t>(from), lists.steps.end(),
                                     [](const StepLists& of) { return !of.work.empty(); });
      if (next != lists.steps.end()) starter_.prepare(lists, *next, t + static_cast<size_t>(next - lists.steps.begin()) - from);
      t += lists.steps.size() - from;
      return next != lists.steps.end();
    };
    if (lists_ && prepare(*lists_, static_cast<size_t>(step + 1))) return;
    if (const StripeLists* lists = list_maker_.next()) prepare(*lists, 0);
  }

  bool packs_states_beside(size_t s) const { return stripe(s).is_long() && long_rows_.own_states() && device_.work_waits_for_step(); }

  // Whether nothing is asked of the device between this step and the next stripe's only one, for which that would have to wait.
  bool leaves_next_alone(size_t s, int step) const {
    const bool leaves_states = stripe(s).is_long() && !packs_states_beside(s);
    if (!device_.can_start_beside() || !device_.finishes_in_steps() || leaves_states || step + 1 < engine_.schedule_.steps[s] ||
        s + 1 == plan_.stripes.size() || engine_.schedule_.steps[s + 1] != 1 || stripe(s + 1).query_blocks.empty())
      return false;
    const std::set<int64_t> own = long_rows_.own_blocks();
    return (!states_to_merge_ || long_rows_.own_states()) &&
           std::none_of(own.begin(), own.end(), [&](int64_t block) { return contains(stripe(s).query_blocks, block); });
  }

  // The only step of stripe `s`, while that of the one before is computed, if all it needs is there: begin_stripe() and fetch() find it so.
  void start_early(size_t s, size_t t) {
    const StripeLists* lists = list_maker_.next();
    if (lists == nullptr || lists->some_rows_see_nothing || !starter_.can_start_beside(lists->steps.front()) ||
        !fetches_.can_be_computed_early(t))
      return;
    const auto is_over = [](const std::future<void>& task) {
      return !task.valid() || task.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    };
    const size_t turn = written_ % 2;
    if (!is_over(reading_) || !is_over(writes_[turn])) return;
    const StepStarter::Rows rows = rows_at(s, next_q_, rows_of(s), rows_.results(s, turn));
    if (stripe(s - 1).is_long())
      starter_.start_behind(*lists, lists->steps.front(), rows);  // and behind the packing, which others wait for
    else
      starter_.start_beside(*lists, lists->steps.front(), rows);
    runs_already_ = true, ++record_.steps_beside;
  }

  void end_stripe(size_t s) {
    {
      const Timed timed(record_.exchange);
      fetches_.hand_over();
      if (options_.progress && !stripe(s).is_long()) long_rows_.hand_over();  // it may wait for the other ranks
    }
    if (stripe(s).is_long()) {
      const Timed timed(record_.exchange);
      long_rows_.send_states(stripe(s), *layout_, states_of(s));
      states_to_merge_ = true;
    } else if (!stripe(s).query_blocks.empty()) {
      {
        const Timed timed(record_.exchange);
        long_rows_.give_room_back();
      }
      if (!device_.finishes_in_steps()) {
        const Timed timed(record_.finish);
        finish(s);
      }
      finish_long_rows(s);
      write_results(s);
    }
    if (options_.progress) options_.progress(static_cast<int64_t>(s) + 1, static_cast<int64_t>(plan_.stripes.size()));
  }

  void write_results(size_t s) {
    if (rows_.results_in_place(s) && !writes_[0].valid() && !writes_[1].valid()) {
      output_.stripe_written(static_cast<int64_t>(s - shared_.batches.size()));  // no thread has anything to do
      return;
    }
    if (!device_.memory_is_host() && output_.from_any_thread() && !results_thread_) results_thread_.emplace();
    writes_[turn_] = (results_thread_ ? *results_thread_ : io_).submit([this, s, from = results_now_] {
      const Intervals tokens = tokens_of(stripe(s).query_blocks);
      if (!rows_.results_in_place(s))
        device_.store_rows(
            from, size_of(tokens), shape_.heads, shape_.head_dim,
            [&](int64_t first, int64_t count) { return copies_.place(tokens, first, count); },
            [&](int64_t first, int64_t count, const std::byte* o, const float* lse) { copies_.write(tokens, first, count, o, lse); });
      output_.stripe_written(static_cast<int64_t>(s - shared_.batches.size()));
    });
  }

  LongRows::States states() const { return {m(), l(), o()}; }
  LongRows::States states_of(size_t s) const { return stripe(s).is_long() ? long_rows_.own_states().value_or(states()) : states(); }
  float* m() const { return reinterpret_cast<float*>(kept_.m.get()); }
  float* l() const { return reinterpret_cast<float*>(kept_.l.get()); }
  float* o() const { return reinterpret_cast<float*>(kept_.o.get()); }

  void account() {
    record_.bytes_from_other_hosts_if_flat = engine_.schedule_.bytes_from_other_hosts_if_flat;
    record_.least_bytes_to_host = engine_.schedule_.least_bytes_to_host;
    record_.in_flight = fetches_.in_flight();
    record_.bytes_received = fetches_.bytes_received();
    record_.bytes_sent = fetches_.bytes_sent();
    record_.bytes_from_other_hosts = fetches_.bytes_from_other_hosts();
    record_.bytes_read_again = fetches_.bytes_read_again();
    record_.units_stayed = fetches_.units_stayed();
    record_.planned_bytes_received = plan_.bytes_moved;
    record_.planned_bytes_sent = engine_.schedule_.bytes_to_send;
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

  Kept& kept_;
  Fetches& fetches_;
  LongRows& long_rows_;
  const LongRows::Layout* layout_ = nullptr;
  bool states_to_merge_ = false;  // of the stripe of layout_
  std::shared_ptr<const StripeLists> lists_;
  StripeRows& rows_;
  const std::byte *q_now_ = nullptr, *next_q_ = nullptr;
  kernels::Results results_now_;  // for long stripes those of no rows
  size_t read_ = 0, written_ = 0, queries_read_ = 0, queries_started_ = 0, begun_ = 0, turn_ = 0;
  bool runs_already_ = false;  // the step that is next
  // The first fetches may start as own keys come, once the first stripe's long queries are on their way: a start may wait for other ranks,
  // which may wait for those.
  bool may_start_first_ = false;
  std::future<void> reading_, writes_[2];
  std::optional<IoThread> results_thread_;  // none: they are written by the one below
  KeyLoader key_loader_;
  IoThread io_;           // its tasks use everything above,
  ListMaker list_maker_;  // and so do this one's: they are joined first
  StepStarter starter_;   // the main thread's
};

std::unique_ptr<Engine::Kept> Engine::take_kept(kernels::Device& device, comm::Transport& transport, bool keep) {
  std::unique_ptr<Kept> kept = std::move(kept_);
  if (kept && keep && &kept->device == &device && &kept->transport == &transport) return kept;
  kept.reset();  // its memory first
  return std::make_unique<Kept>(*this, device, transport);
}

Record Engine::forward(Input& input, Output& output, kernels::Device& device, comm::Transport& transport, const RunOptions& options) {
  std::unique_ptr<Kept> kept = take_kept(device, transport, options.keep);
  Run run(*this, *kept, input, output, device, options);
  Record record;
  try {
    record = run.execute();
  } catch (...) {
    run.abandon();
    throw;
  }
  if (options.keep && shared_.keys_stay) kept_ = std::move(kept);
  return record;
}

ExchangeTimes Engine::exchange(Input& input, kernels::Device& device, comm::Transport& transport, const RunOptions& options, int times) {
  class NoOutput : public Output {
    void write(int64_t, int64_t, const std::byte*, const float*) override {}
  } none;
  const std::unique_ptr<Kept> kept = take_kept(device, transport, options.keep);
  Run run(*this, *kept, input, none, device, options);
  try {
    return run.exchange(times);
  } catch (...) {
    run.abandon();
    throw;
  }
}

}  // namespace longspan::engine
