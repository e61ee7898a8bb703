#include "engine/fetches.hpp"

#include <algorithm>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <utility>

namespace longspan::engine {

namespace {

constexpr int kTags = 1 << 20;
int tag_of(size_t t) { return static_cast<int>(t % kTags); }

// Calls f(KV head, block) in the order in which both sides of a message count.
template <typename F>
void for_each_unit(const UnitRun& run, F f) {
  const Interval blocks = run.blocks();
  for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head)
    for (int64_t block = blocks.begin; block < blocks.end; ++block) f(kv_head, block);
}

// Runs between which few blocks lie as one.
Intervals joined(const Intervals& runs) {
  constexpr int64_t kFew = 32;  // 4,096 rows: a chunk of a file, or some
  Intervals all;
  for (const Interval& run : runs) {
    if (!all.empty() && run.begin - all.back().end <= kFew)
      all.back().end = run.end;
    else
      all.push_back(run);
  }
  return all;
}

Intervals held_blocks(const std::map<int64_t, std::vector<HeldBlocks>>& by_step, size_t t, size_t key_class) {
  Intervals blocks;
  const auto found = by_step.find(static_cast<int64_t>(t));
  if (found == by_step.end()) return blocks;
  for (const HeldBlocks& held : found->second)
    if (static_cast<size_t>(held.key_class) == key_class) blocks.push_back(held.blocks);
  return normalised(std::move(blocks));
}

}  // namespace

void Fetches::Pieces::append(const UnitRun& run, std::span<const int32_t> slots, std::vector<int32_t>& pieces) const {
  if (of_unit == 1) {
    pieces.insert(pieces.end(), slots.begin(), slots.end());
    return;
  }
  auto slot = slots.begin();
  for_each_unit(run, [&](int, int64_t block) {
    const int32_t first = 4 * *slot++;
    const Interval halves = overlap(run.halves, {2 * block, 2 * block + 2});
    for (const int32_t values : {0, 2})
      for (int64_t half = halves.begin; half < halves.end; ++half) pieces.push_back(first + values + static_cast<int32_t>(half % 2));
  });
}

int64_t Fetches::Receives::bytes() const {
  size_t bytes = units.size() * sizeof(int64_t) + 2 * slots.size() * sizeof(int32_t);  // with masked_slots
  for (const comm::PoolExchange::Message& message : messages)
    bytes += (message.slots.size() + message.slots_there.size()) * sizeof(int32_t) + message.runs.size() * sizeof(int64_t);
  return static_cast<int64_t>(bytes);
}

Fetches::Messages Fetches::outlines(const std::vector<PeerUnits>& peers) const {
  Messages messages;
  for (const PeerUnits& peer : peers) {
    messages.push_back({peer.peer, {}});
    for (const UnitRun& run : peer.runs)
      messages.back().runs.insert(messages.back().runs.end(), static_cast<size_t>(run.kv_heads), pieces_.of_head(run));
  }
  return messages;
}

int64_t Fetches::pieces_of(const PeerUnits& peer) const {
  return std::accumulate(peer.runs.begin(), peer.runs.end(), int64_t{0},
                         [this](int64_t sum, const UnitRun& run) { return sum + pieces_.count(run); });
}

template <typename Append>
Fetches::Messages Fetches::messages(const std::vector<PeerUnits>& peers, Append append) const {
  Messages messages = outlines(peers);
  std::vector<int32_t> slots;
  for (size_t p = 0; p < peers.size(); ++p) {
    messages[p].slots.reserve(static_cast<size_t>(pieces_of(peers[p])));
    for (const UnitRun& run : peers[p].runs) {
      slots.clear();
      append(run, slots);
      pieces_.append(run, slots, messages[p].slots);
    }
  }
  return messages;
}

Fetches::Fetches(const FetchPlan& what, kernels::Device& device, comm::Transport& transport)
    : shared_(what.shared),
      plan_(what.plan),
      blocks_(what.blocks),
      schedule_(what.schedule),
      host_of_rank_(what.host_of_rank),
      device_(device),
      pieces_{shared_.in_halves ? 4 : 1},
      pool_(shared_.keys_stay ? plan_.own : Intervals{}, what.blocks.count(), shared_.shape.kv_heads, schedule_.most_fetched_units,
            plan_.unit_bytes, shared_.in_halves, device),
      exchange_(transport.between_pools(what.ranks, pool_.memory().units, plan_.unit_bytes / pieces_.of_unit)) {
  reads_rows_ = exchange_->reads_rows({.columns = shared_.shape.kv_heads,
                                       .column_bytes = shared_.shape.head_dim * static_cast<int>(size_of(shared_.shape.type)),
                                       .place = [this](int home_rank, int32_t piece) { return row_place(home_rank, piece); }});
  if (schedule_.passes_on) inside_host_ = transport.between_pools(what.ranks, pool_.memory().units, plan_.unit_bytes / pieces_.of_unit);
  for (size_t s = 0; s < plan_.stripes.size(); ++s)
    for (int step = 0; step < schedule_.steps[s]; ++step) order_.emplace_back(s, step);
}

const StepExchange& Fetches::exchange_of(size_t t) const {
  const auto [s, step] = order_[t];
  return schedule_.exchanges[s][static_cast<size_t>(step)];
}

size_t Fetches::last_of_first() const { return std::max(schedule_.first_fetch, static_cast<size_t>(schedule_.ahead - 1)); }

bool Fetches::prepare_one_of_first() {
  if (!shared_.keys_stay) return false;
  if (!std::exchange(expects_, true)) {
    std::vector<comm::PoolExchange::Step> all;
    for (size_t t = 0; t < order_.size(); ++t) all.push_back({outlines(exchange_of(t).receive), outlines(exchange_of(t).send)});
    exchange_->expect(all, std::min(order_.size(), last_of_first() + 2), keeps_);
  }
  if (prepared_ > last_of_first() || prepared_ == order_.size()) return false;
  prepare(prepared_);
  return true;
}

Intervals Fetches::sent_with(size_t t) const {
  Intervals sent;
  for (const PeerUnits& peer : exchange_of(t).send)
    for (const UnitRun& run : peer.runs) sent.push_back(run.blocks());
  return normalised(std::move(sent));
}

const Fetches::Sent& Fetches::sent() {
  if (all_sent_) return *all_sent_;
  Sent& all = all_sent_.emplace();
  Intervals before, later;
  for (size_t t = 0; t < order_.size(); ++t) {
    const Intervals sent = sent_with(t);
    if (t > last_of_first()) {
      later.insert(later.end(), sent.begin(), sent.end());
      continue;
    }
    all.first.push_back(subtract(sent, before));
    before = unite(before, sent);
  }
  all.later = subtract(normalised(std::move(later)), before);
  all.blocks = size_of(before) + size_of(all.later);
  return all;
}

const std::vector<Intervals>& Fetches::first_sent() {
  std::vector<Intervals>& parts = first_sent_;
  if (!parts.empty()) return parts;
  Intervals before;
  for (size_t t = 0; t <= last_of_first() && t < order_.size(); ++t) {
    const Intervals sent = intersect(joined(sent_with(t)), plan_.own);
    parts.push_back(subtract(sent, before));
    before = unite(before, sent);
  }
  return parts;
}

void Fetches::start_first(size_t parts) {
  if (parts == 0 || started_ > std::min(parts - 1, last_of_first())) return;
  exchange_->set_timeout(0);
  start(std::min(parts - 1, last_of_first()));
  exchange_->set_timeout(timeout_);
}

void Fetches::start_first() {
  own_are_here_ = true;
  start(last_of_first());
}

void Fetches::start(size_t last) {
  for (; started_ <= last && started_ < order_.size(); ++started_) {
    if (!shared_.keys_stay) {
      read_again(started_);
      continue;
    }
    if (prepared_ == started_) prepare(started_);
    start_prepared(started_);
  }
}

void Fetches::read_again(size_t t) {
  release_now();
  const auto [s, step] = order_[t];
  const plan::Stripe& stripe = plan_.stripes[s];
  if (static_cast<size_t>(step) >= stripe.fetch.size()) return;
  std::vector<UnitRun> runs;
  for (size_t c = 0; c < shared_.classes.size(); ++c) {
    const plan::KeyClass& key_class = shared_.classes[c];
    for (const Interval& run : stripe.fetch[static_cast<size_t>(step)][c])
      runs.push_back({key_class.kv_heads.front(), static_cast<int32_t>(key_class.kv_heads.size()), {2 * run.begin, 2 * run.end}});
  }
  // By block, then KV head, as the input's rows have them.
  std::vector<std::vector<int32_t>> slots;
  for (const UnitRun& run : runs) {
    slots.emplace_back();
    const Interval blocks = run.blocks();
    for (int64_t block = blocks.begin; block < blocks.end; ++block)
      for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head)
        pool_.take(kv_head, {block, block + 1}, slots.back());
    bytes_read_again_ += run.kv_heads * blocks.length() * plan_.unit_bytes;
  }
  key_reads_[t] = read_again_(std::move(runs), std::move(slots));
}

// What a step receives from homes, with slots for it: those of the run before, if there was one. `made`: a place for others.
const Fetches::Messages& Fetches::receives_of(size_t t, Messages& made) {
  constexpr int64_t kMostBefore = int64_t{64} << 20;
  const std::vector<PeerUnits>& peers = exchange_of(t).receive;
  std::vector<int32_t>& arriving = arriving_[t];
  if (all_stay_) {
    Receives& before = receives_before_.at(t);
    arriving = slots_to_look_through(before);
    return before.messages;
  }
  if (const auto before = receives_before_.find(t); before != receives_before_.end()) {
    if (pool_.take_again(before->second.units, before->second.slots)) {
      arriving = slots_to_look_through(before->second);
      return before->second.messages;
    }
    bytes_before_ -= before->second.bytes();
    receives_before_.erase(before);
  }
  made = messages(peers, [&](const UnitRun& run, std::vector<int32_t>& slots) {
    for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head) pool_.take(kv_head, run.blocks(), slots);
    arriving.insert(arriving.end(), slots.begin(), slots.end());
  });
  if (exchange_->reads_from_peers()) name_slots_at_home(peers, made);
  if (!keeps_) return made;
  Receives again;
  again.messages = made;
  again.slots = arriving;
  again.units.reserve(arriving.size());
  for (const PeerUnits& peer : peers)
    for (const UnitRun& run : peer.runs)
      for_each_unit(run, [&](int kv_head, int64_t block) { again.units.push_back(pool_.unit(kv_head, block)); });
  if (bytes_before_ + again.bytes() > kMostBefore) return made;
  bytes_before_ += again.bytes();
  return receives_before_.emplace(t, std::move(again)).first->second.messages;
}

const std::vector<int32_t>& Fetches::slots_to_look_through(Receives& receives) const {
  if (masked_ == nullptr || inside_host_) return receives.slots;  // what is passed on is looked up among them
  if (!receives.masked_slots) {
    std::vector<int32_t>& slots = receives.masked_slots.emplace();
    for (size_t i = 0; i < receives.units.size(); ++i)
      if (contains(*masked_, receives.units[i] % blocks_.count())) slots.push_back(receives.slots[i]);
  }
  return *receives.masked_slots;
}

// Slots for what comes, and the step's messages; receives that wait for nothing here are started.
void Fetches::prepare(size_t t) {
  release_now();
  const StepExchange& exchange = exchange_of(t);
  Ready& ready = ready_.emplace_back();
  comm::PoolExchange::Step& step = ready.messages;
  Messages made;
  const Messages& receives = receives_of(t, made);
  ready.receives = !receives.empty();
  for (const comm::PoolExchange::Message& message : receives)
    if (host_of_rank_[static_cast<size_t>(message.peer)] != host_of_rank_[static_cast<size_t>(plan_.rank)])
      bytes_from_other_hosts_ += static_cast<int64_t>(message.slots.size()) * plan_.unit_bytes / pieces_.of_unit;
  if (!exchange.given_receive.empty() || !exchange.pass_on.empty()) inside_waiting_.push_back(inside_host(t));
  if (!exchange_->reads_from_peers())
    step.receives = receives;
  else if (!all_stay_ || !exchange_->receive_again(tag_of(t)))
    exchange_->start(tag_of(t), receives, {});
  if (sent_ <= t) step.sends = sends_of(sent_++);
  prepared_ = t + 1;
  if (prepared_ == order_.size()) all_stay_ = all_can_stay();
}

bool Fetches::all_can_stay() const {
  return keeps_ && !inside_host_ && !some_were_released_ && !pool_.some_are_twice() && receives_before_.size() == order_.size();
}

// And its messages inside the host.
Fetches::Inside Fetches::inside_host(size_t t) {
  const StepExchange& exchange = exchange_of(t);
  // A unit that is here and fetched anew has two slots until the older one is released: those taken for this step are what is passed on.
  std::unordered_map<int64_t, int32_t> taken;
  if (!exchange.pass_on.empty()) {
    auto slot = arriving_[t].begin();  // in the order of their messages
    for (const PeerUnits& peer : exchange.receive)
      for (const UnitRun& run : peer.runs)
        for_each_unit(run, [&](int kv_head, int64_t block) { taken[pool_.unit(kv_head, block)] = *slot++; });
  }
  Inside inside{t, {}, {}};
  inside.receives = messages(exchange.given_receive, [&](const UnitRun& run, std::vector<int32_t>& slots) {
    for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head) pool_.take(kv_head, run.blocks(), slots);
    arriving_[t].insert(arriving_[t].end(), slots.begin(), slots.end());
    auto slot = slots.begin();
    for_each_unit(run, [&](int kv_head, int64_t block) { taken[pool_.unit(kv_head, block)] = *slot++; });
  });
  inside.sends = messages(exchange.pass_on, [&](const UnitRun& run, std::vector<int32_t>& slots) {
    for_each_unit(run, [&](int kv_head, int64_t block) {
      const auto now = taken.find(pool_.unit(kv_head, block));
      slots.push_back(now != taken.end() ? now->second : static_cast<int32_t>(pool_.slot(kv_head, block)));
    });
  });
  return inside;
}

void Fetches::start_prepared(size_t t) {
  const auto [messages, receives] = std::move(ready_.front());
  ready_.pop_front();
  exchange_->start(tag_of(t), messages.receives, messages.sends);
  if (receives) {
    if (awaited_.empty()) awaited_since_ = Clock::now();
    awaited_.push_back(t);
  }
}

bool Fetches::send_ahead() {
  const bool may = shared_.keys_stay && own_are_here_ && ready_.empty() && exchange_->takes_sends_ahead();
  if (!may || sent_ == order_.size()) return false;
  exchange_->start(tag_of(sent_), {}, sends_of(sent_));
  ++sent_;
  return true;
}

const Fetches::Home& Fetches::home(int rank) {
  const auto [found, is_new] = homes_.try_emplace(rank);
  Home& home = found->second;
  if (!is_new) return home;
  const Intervals blocks = shared_.partition.blocks_of(rank);
  home.blocks = Numbering(blocks);
  int32_t row = 0;
  for (const Interval& run : blocks)
    for (int64_t block = run.begin; block < run.end; ++block) home.first_rows.push_back(row), row += blocks_.rows(block);
  home.first_rows.push_back(row);
  return home;
}

// A home's own units have their slots for good, in the order in which KeyPool numbers them.
void Fetches::name_slots_at_home(const std::vector<PeerUnits>& peers, Messages& receives) {
  std::vector<int32_t> units;
  for (size_t p = 0; p < peers.size(); ++p) {
    const Numbering& own = home(peers[p].peer).blocks;
    std::vector<int32_t>& slots = receives[p].slots_there;
    slots.reserve(receives[p].slots.size());
    for (const UnitRun& run : peers[p].runs) {
      const Interval blocks = run.blocks();
      const int64_t first = own.of(blocks.begin);  // of a run all blocks have one home, where they follow each other
      units.clear();
      for (int kv_head = run.kv_head; kv_head < run.kv_head + run.kv_heads; ++kv_head)
        for (int64_t block = 0; block < blocks.length(); ++block)
          units.push_back(static_cast<int32_t>(kv_head * own.count() + first + block));
      pieces_.append(run, units, slots);
    }
  }
}

// Where a home's rows lie that the pool would have in this piece. Example: of 10 blocks of 128 rows at home, each a unit of two KV heads,
// piece 4·13 + 2 is the first half of V of unit 13, which is block 3 of KV head 1: row 384.
comm::PoolExchange::RowPlace Fetches::row_place(int home_rank, int32_t piece) {
  const Home& at = home(home_rank);
  const int64_t unit = piece / pieces_.of_unit;
  const auto block = static_cast<size_t>(unit % at.blocks.count());
  return {.first_row = at.first_rows[block],
          .rows = at.first_rows[block + 1] - at.first_rows[block],
          .column = static_cast<int>(unit / at.blocks.count()),
          .quarter = piece % pieces_.of_unit};
}

Fetches::Messages Fetches::sends_of(size_t t) const {
  if (exchange_->reads_from_peers()) {
    Messages sends;
    for (const PeerUnits& peer : exchange_of(t).send) sends.push_back({.peer = peer.peer, .blocks = pieces_of(peer)});
    return sends;
  }
  return messages(exchange_of(t).send, [&](const UnitRun& run, std::vector<int32_t>& slots) {
    for_each_unit(run, [&](int kv_head, int64_t block) { slots.push_back(static_cast<int32_t>(pool_.slot(kv_head, block))); });
  });
}

// Inside the host, a step's units go on as soon as they are here; step by step. Some may have come with the step before, from elsewhere
// or from inside, and nobody has waited for that one yet when this one comes early; all steps before it have been waited for.
bool Fetches::may_pass_on(size_t t) {
  const auto here = [&](size_t step) { return exchange_->received(tag_of(step)) && (step == t || inside_host_->received(tag_of(step))); };
  return here(t) && (t == 0 || here(t - 1));
}

void Fetches::pass_on(size_t last) {
  // A step that is prepared but not started has nothing under way, and nothing here.
  const auto is_due = [&](size_t t) { return t <= last && t < started_ && may_pass_on(t); };
  while (!inside_waiting_.empty() && is_due(inside_waiting_.front().t)) {
    const Inside& next = inside_waiting_.front();
    inside_host_->start(tag_of(next.t), next.receives, next.sends);
    inside_waiting_.pop_front();
  }
}

void Fetches::hand_over() {
  exchange_->hand_over();
  if (inside_host_) inside_host_->hand_over();
}

void Fetches::let_it_begin() {
  exchange_->let_it_begin();
  if (inside_host_) inside_host_->let_it_begin();
}

void Fetches::abandon() {
  exchange_->abandon();
  if (inside_host_) inside_host_->abandon();
}

void Fetches::progress() {
  release_now();
  send_ahead();  // one step at a time: it takes tens of microseconds for thousands of units, which this thread has now
  exchange_->progress();
  if (inside_host_) {
    // Where all ranks must start all in one order, step t is passed on once step t + 1 has been started, and not before.
    if (!exchange_->starts_in_one_order()) pass_on(order_.size());
    inside_host_->progress();
  }
}

void Fetches::note_arrivals() {
  if (awaited_.empty()) return;
  std::erase_if(awaited_, [&](size_t t) { return exchange_->received(tag_of(t)); });
  if (awaited_.empty()) in_flight_ += std::chrono::duration<double>(Clock::now() - awaited_since_).count();
}

void Fetches::finish(size_t t) {
  if (const auto read = key_reads_.find(t); read != key_reads_.end()) {
    constexpr auto kPoll = std::chrono::microseconds(500);
    while (read->second.wait_for(kPoll) != std::future_status::ready) progress();
    read->second.get();
    key_reads_.erase(read);
  }
  if (!shared_.keys_stay) return;
  if (inside_host_) inside_host_->hand_over();
  while (!exchange_->received(tag_of(t)) && send_ahead()) continue;
  exchange_->finish_receives(tag_of(t));
  if (inside_host_) {
    pass_on(t);
    exchange_->hand_over();
    inside_host_->finish_receives(tag_of(t));
  }
  note_arrivals();
  tell_device(t);
}

void Fetches::accept(size_t t) {
  if (!inside_host_ && t < started_ && arriving_.count(t) != 0 && exchange_->received(tag_of(t))) tell_device(t);
}

// What is asked for next is late if it waits for multiprocessors until the end of step t, and other ranks' with it where all start in one
// order.
bool Fetches::can_be_computed_early(size_t t) const {
  const bool next_can_wait = started_ == order_.size() || (schedule_.ahead > 1 && !exchange_->starts_in_one_order());
  return shared_.keys_stay && !inside_host_ && t < started_ && arriving_.count(t) == 0 && next_can_wait;
}

void Fetches::tell_device(size_t t) {
  const auto arrived = arriving_.find(t);
  if (arrived == arriving_.end()) return;
  device_.units_arrived(pool_.memory(), arrived->second, shared_.shape.type, shared_.shape.head_dim);
  arriving_.erase(arrived);
}

void Fetches::finish_passing_on(size_t t) {
  if (!inside_host_) return;
  hand_over();
  inside_host_->finish_sends(tag_of(t));  // what is passed on may be released now
}

void Fetches::finish_sends() {
  if (keeps_) release_now();  // else they go with the pool, unless there is another run after all
  if (!shared_.keys_stay) return;
  for (size_t t = 0; t < order_.size(); ++t) exchange_->finish_sends(tag_of(t));
}

void Fetches::begin(double timeout, bool keep, ReadAgain read_again) {
  release_now();
  some_were_released_ = false;
  stayed_ = all_stay_;
  timeout_ = timeout;
  keeps_ = keep;
  exchange_->set_timeout(timeout);
  if (inside_host_) inside_host_->set_timeout(timeout);
  read_again_ = std::move(read_again);
  prepared_ = started_ = sent_ = 0;
  own_are_here_ = false;
  in_flight_ = 0;
  bytes_from_other_hosts_ = bytes_read_again_ = 0;
  received_before_ = received_ever();
  sent_before_ = sent_ever();
}

const Fetches::Released& Fetches::released_after(size_t t) {
  const auto [known, is_new] = released_after_.try_emplace(t, shared_.classes.size());
  if (!is_new) return known->second;
  const auto [s, number] = order_[t];
  const auto step = static_cast<size_t>(number);
  const plan::Stripe* before = t > step ? &plan_.stripes[order_[t - step - 1].first] : nullptr;
  const plan::Stripe& stripe = plan_.stripes[s];
  for (size_t c = 0; c < shared_.classes.size(); ++c) {
    const Intervals held = held_blocks(schedule_.hold_at, t, c);
    std::vector<Intervals>& released = known->second[c];
    released.push_back(subtract(held_blocks(schedule_.let_go_at, t, c), held));
    if (step < stripe.fetch.size()) released.push_back(subtract(subtract(stripe.fetch[step][c], stripe.keep[c]), held));
    if (number + 1 == schedule_.steps[s] && before) released.push_back(subtract(subtract(before->keep[c], stripe.keep[c]), held));
  }
  return known->second;
}

void Fetches::prepare_release(size_t t) {
  if (!all_stay_) released_after(t);
}

void Fetches::release(size_t t) {
  if (!all_stay_) to_release_.push_back(t);
}

void Fetches::release_now() {
  some_were_released_ = some_were_released_ || !to_release_.empty();
  for (const size_t t : to_release_) {
    const Released& released = released_after(t);
    for (size_t c = 0; c < released.size(); ++c)
      for (const Intervals& blocks : released[c])
        for (const Interval& run : blocks)
          for (int64_t block = run.begin; block < run.end; ++block)
            for (int kv_head : shared_.classes[c].kv_heads) pool_.release(kv_head, block);
    if (!keeps_) released_after_.erase(t);
  }
  to_release_.clear();
}

void Fetches::slots_of(const Intervals& blocks, std::vector<int32_t>& slots) {
  release_now();
  pool_.slots_of(blocks, slots);
}

bool Fetches::has_places(size_t t) {
  release_now();
  return t < (shared_.keys_stay ? prepared_ : started_) && !pool_.some_are_twice();
}

}  // namespace longspan::engine
