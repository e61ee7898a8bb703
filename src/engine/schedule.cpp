#include "engine/schedule.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "engine/host_routes.hpp"
#include "longspan/error.hpp"
#include "plan/halves.hpp"

namespace longspan::engine {

namespace {

using ByClass = std::vector<Intervals>;

struct Request {
  int32_t stripe, step;
  UnitRun run;
};

int heads_of(const plan::KeyClass& key_class) { return static_cast<int>(key_class.kv_heads.size()); }

UnitRun run_of(const plan::KeyClass& key_class, Interval halves) { return {key_class.kv_heads.front(), heads_of(key_class), halves}; }

int64_t run_bytes(const UnitRun& run, const plan::RankPlan& plan) { return run.kv_heads * run.halves.length() * plan.unit_bytes / 2; }

// Calls inside(fetch, part) for the parts of `fetches` (ascending, disjoint) that lie in `set`, outside(fetch, part) for the rest.
template <typename Inside, typename Outside>
void for_each_part(const std::vector<Fetch>& fetches, const Intervals& set, Inside inside, Outside outside) {
  size_t first = 0;
  for (const Fetch& fetch : fetches) {
    while (first < set.size() && set[first].end <= fetch.blocks.begin) ++first;
    int64_t at = fetch.blocks.begin;
    for (size_t i = first; i < set.size() && set[i].begin < fetch.blocks.end; ++i) {
      const Interval part = overlap(set[i], fetch.blocks);
      if (at < part.begin) outside(fetch, Interval{at, part.begin});
      inside(fetch, part);
      at = part.end;
    }
    if (at < fetch.blocks.end) outside(fetch, Interval{at, fetch.blocks.end});
  }
}

// The fetches of a plan, with the steps through which their blocks stay. As Engine releases them: at the end of their step, or, when kept,
// at the end of the first later stripe that does not keep them any more.
std::vector<Fetch> fetches_of(const plan::RankPlan& plan, const std::vector<int>& steps, int32_t rank) {
  std::vector<Fetch> fetches;
  const size_t classes = plan.stripes.empty() ? 0 : plan.stripes.front().keep.size();
  std::vector<std::vector<Fetch>> kept(classes);
  int32_t first_step = 0;
  for (size_t s = 0; s < plan.stripes.size(); ++s) {
    const plan::Stripe& stripe = plan.stripes[s];
    const int32_t last_step = first_step + steps[s] - 1;
    for (size_t c = 0; c < classes; ++c) {
      std::vector<Fetch> still;
      const auto stays = [&](const Fetch& fetch, Interval part) {
        still.push_back(fetch);
        still.back().blocks = part;
      };
      for_each_part(kept[c], stripe.keep[c], stays, [&](Fetch fetch, Interval part) {
        fetch.blocks = part, fetch.until = last_step;
        fetches.push_back(fetch);
      });
      for (size_t step = 0; step < stripe.fetch.size(); ++step) {
        const int32_t now = first_step + static_cast<int32_t>(step);
        std::vector<Fetch> fetched;
        for (const Interval& run : stripe.fetch[step][c]) fetched.push_back({rank, static_cast<int32_t>(c), run, now, now});
        for_each_part(fetched, stripe.keep[c], stays, [&](Fetch fetch, Interval part) {
          fetch.blocks = part;
          fetches.push_back(fetch);
        });
      }
      std::sort(still.begin(), still.end(), [](const Fetch& a, const Fetch& b) { return a.blocks.begin < b.blocks.begin; });
      kept[c] = std::move(still);
    }
    first_step = last_step + 1;
  }
  for (std::vector<Fetch>& of_class : kept) {
    for (Fetch& fetch : of_class) fetch.until = std::max(0, first_step - 1);
    fetches.insert(fetches.end(), of_class.begin(), of_class.end());
  }
  return fetches;
}

template <typename T>
std::vector<std::byte> packed(const std::vector<T>& list) {
  std::vector<std::byte> bytes(list.size() * sizeof(T));
  if (!list.empty()) std::memcpy(bytes.data(), list.data(), bytes.size());
  return bytes;
}
template <typename T>
std::vector<T> list_of(const std::vector<std::byte>& bytes) {
  std::vector<T> list(bytes.size() / sizeof(T));
  if (!list.empty()) std::memcpy(list.data(), bytes.data(), list.size() * sizeof(T));
  return list;
}

void add(std::vector<PeerUnits>& peers, int peer, const UnitRun& run) {
  const auto place = std::lower_bound(peers.begin(), peers.end(), peer, [](const PeerUnits& p, int value) { return p.peer < value; });
  const auto found = place != peers.end() && place->peer == peer ? place : peers.insert(place, {peer, {}});
  found->runs.push_back(run);
}

// Which step of which stripe a step of the job is.
struct StepName {
  int32_t stripe, step;
};

// Agrees within the host on who brings what from other hosts. Takes what other ranks of the host bring out of `direct` [step of the job]
// [class] and enters it in the schedule.
class HostAgreement {
 public:
  HostAgreement(const comm::Communicator& ranks, const plan::Shared& shared, plan::RankPlan& plan, const std::vector<int>& host_of_rank)
      : ranks_(ranks), shared_(shared), plan_(plan), host_of_rank_(host_of_rank) {
    for (int rank = 0; rank < ranks.size(); ++rank)
      if (is_here(rank)) members_.push_back(rank);
  }

  // Whether there are two levels at all: the same on every rank.
  bool has_two_levels() const {
    const std::set<int> hosts(host_of_rank_.begin(), host_of_rank_.end());
    return hosts.size() > 1 && hosts.size() < host_of_rank_.size();
  }

  // Collective over all ranks.
  void agree(const std::vector<Fetch>& fetches, const std::vector<StepName>& names, std::vector<ByClass>& direct, Schedule& schedule) {
    std::vector<Fetch> mine;
    for (const Fetch& fetch : fetches) {
      shared_.partition.for_each_home({fetch.blocks}, [&](int home, Interval blocks) {
        if (is_here(home)) return;
        mine.push_back(fetch);
        mine.back().blocks = blocks;
      });
    }
    // Room for blocks held for others travels as a first entry without blocks.
    const int64_t my_room = shared_.memory.received / plan_.unit_bytes - schedule.most_fetched_units;
    for (const Fetch& fetch : mine) schedule.bytes_from_other_hosts_if_flat += bytes_of(fetch, plan_.halves);
    mine.insert(mine.begin(), Fetch{.rank = local_rank(), .blocks = {std::max<int64_t>(0, my_room), 0}});
    std::vector<comm::Communicator::Letter> letters;
    for (int rank : members_) letters.push_back({rank, packed(mine)});
    std::vector<Fetch> all;
    std::vector<int64_t> room;
    for (const comm::Communicator::Letter& letter : ranks_.sparse_all_to_all(letters)) {  // by ascending rank
      const std::vector<Fetch> theirs = list_of<Fetch>(letter.bytes);
      room.push_back(theirs.front().blocks.begin);
      all.insert(all.end(), theirs.begin() + 1, theirs.end());
    }
    std::vector<ByClass> halves = halves_of_members();
    int64_t if_flat = 0;  // of the host
    for (const Fetch& fetch : all) if_flat += bytes_of(fetch, halves[static_cast<size_t>(fetch.rank)]);
    ByClass of_host;
    for (const ByClass& of_rank : halves)
      for (size_t c = 0; c < of_rank.size(); ++c) of_host.resize(of_rank.size()), of_host[c] = unite(of_host[c], of_rank[c]);
    if (members_.front() == ranks_.rank()) schedule.least_bytes_to_host = distinct_bytes(all, of_host);

    std::vector<int> class_heads;
    for (const plan::KeyClass& key_class : shared_.classes) class_heads.push_back(heads_of(key_class));
    const HostRoutes found = routes_inside_host(all, room, class_heads);
    int64_t crossing = 0;
    for (const Route& route : found.routes)
      if (route.from == Route::kHome) crossing += bytes_of(route.key_class, route.blocks, of_host);
    const plan::ExchangeKind kind = shared_.options.exchange;
    const bool pays = kind == plan::ExchangeKind::node || (kind == plan::ExchangeKind::automatic && 5 * crossing <= 4 * if_flat);
    if (!pays) return;
    const int32_t me = local_rank();
    const std::vector<Intervals> passed_on = halves_passed_on(found.routes, halves, shared_.partition.blocks());
    plan_.halves = halves[static_cast<size_t>(me)];

    std::map<std::pair<int32_t, size_t>, Intervals> given;  // by step and class, ascending as the routes are
    for (size_t r = 0; r < found.routes.size(); ++r) {
      const Route& route = found.routes[r];
      if (route.from == Route::kHome || (route.to != me && route.from != me)) continue;
      if (route.to == route.from) internal_error("a rank passes key blocks on to itself");
      const auto [stripe, step] = names[static_cast<size_t>(route.step)];
      StepExchange& exchange = schedule.exchanges[static_cast<size_t>(stripe)][static_cast<size_t>(step)];
      const auto key_class = static_cast<size_t>(route.key_class);
      if (route.to == me) append(given[{route.step, key_class}], route.blocks);
      for (const Interval& halves_of_route : passed_on[r]) {
        const UnitRun run = run_of(shared_.classes[key_class], halves_of_route);
        if (route.to == me) {
          add(exchange.given_receive, members_[static_cast<size_t>(route.from)], run);
        } else {
          add(exchange.pass_on, members_[static_cast<size_t>(route.to)], run);
          schedule.bytes_to_send += run_bytes(run, plan_);
        }
      }
    }
    for (const Hold& hold : found.holds) {
      if (hold.rank != me) continue;
      schedule.hold_at[hold.step].push_back({hold.key_class, hold.blocks});
      schedule.let_go_at[hold.until].push_back({hold.key_class, hold.blocks});
      schedule.most_fetched_units += heads_of(shared_.classes[static_cast<size_t>(hold.key_class)]) * hold.blocks.length();
    }
    for (const auto& [place, blocks] : given) {
      Intervals& of_step = direct[static_cast<size_t>(place.first)][place.second];
      of_step = subtract(of_step, blocks);
    }
  }

  bool is_here(int rank) const { return host_of_rank_[static_cast<size_t>(rank)] == host_of_rank_[static_cast<size_t>(ranks_.rank())]; }
  int32_t local_rank() const {
    return static_cast<int32_t>(std::lower_bound(members_.begin(), members_.end(), ranks_.rank()) - members_.begin());
  }

 private:
  // `halves`: by class, those that travel; none: all.
  int64_t bytes_of(int32_t key_class, Interval blocks, const ByClass& halves) const {
    const auto c = static_cast<size_t>(key_class);
    const Interval whole = plan::halves_of(blocks);
    const int64_t travelling = halves.empty() ? whole.length() : size_of(clipped(halves[c], whole));
    return heads_of(shared_.classes[c]) * travelling * plan_.unit_bytes / 2;
  }
  int64_t bytes_of(const Fetch& fetch, const ByClass& halves) const { return bytes_of(fetch.key_class, fetch.blocks, halves); }
  int64_t distinct_bytes(const std::vector<Fetch>& fetches, const ByClass& halves) const {
    ByClass by_class(shared_.classes.size());
    for (const Fetch& fetch : fetches) by_class[static_cast<size_t>(fetch.key_class)].push_back(fetch.blocks);
    int64_t sum = 0;
    for (size_t c = 0; c < by_class.size(); ++c)
      for (const Interval& blocks : normalised(std::move(by_class[c]))) sum += bytes_of(static_cast<int32_t>(c), blocks, halves);
    return sum;
  }

  // What each rank of the host needs, by local rank; nothing where blocks travel whole.
  std::vector<ByClass> halves_of_members() const {
    if (!shared_.in_halves) return std::vector<ByClass>(members_.size());
    struct HalvesOfClass {
      int64_t key_class;
      Interval halves;
    };
    std::vector<HalvesOfClass> mine;
    for (size_t c = 0; c < plan_.halves.size(); ++c)
      for (const Interval& run : plan_.halves[c]) mine.push_back({static_cast<int64_t>(c), run});
    std::vector<comm::Communicator::Letter> letters;
    for (int rank : members_) letters.push_back({rank, packed(mine)});
    std::vector<ByClass> all(members_.size(), ByClass(plan_.halves.size()));
    for (const comm::Communicator::Letter& letter : ranks_.sparse_all_to_all(letters)) {
      const auto member = static_cast<size_t>(std::lower_bound(members_.begin(), members_.end(), letter.rank) - members_.begin());
      for (const HalvesOfClass& one : list_of<HalvesOfClass>(letter.bytes))
        all[member][static_cast<size_t>(one.key_class)].push_back(one.halves);
    }
    return all;
  }

  const comm::Communicator& ranks_;
  const plan::Shared& shared_;
  plan::RankPlan& plan_;
  const std::vector<int>& host_of_rank_;
  std::vector<int> members_;  // of this rank's host, ascending
};

}  // namespace

int64_t Schedule::messages_received() const {
  int64_t messages = 0;
  for (const std::vector<StepExchange>& stripe : exchanges)
    for (const StepExchange& step : stripe) messages += static_cast<int64_t>(step.receive.size() + step.given_receive.size());
  return messages;
}

int64_t Schedule::total_steps() const { return std::accumulate(steps.begin(), steps.end(), int64_t{0}); }

void leave_out_done(const comm::Communicator& ranks, const plan::Shared& shared, const std::vector<bool>& done, plan::RankPlan& plan) {
  const size_t batches = shared.batches.size();
  // A long stripe is needed as long as one of its rows still waits for its home's stripe.
  std::vector<int64_t> batch_needed(batches, 0);
  const auto is_done = [&](size_t stripe) { return stripe - batches < done.size() && done[stripe - batches]; };
  for (size_t s = batches; s < plan.stripes.size(); ++s) {
    if (is_done(s)) continue;
    for (size_t b = 0; b < batches; ++b)
      for (int64_t p = shared.batches[b].begin; p < shared.batches[b].end; ++p)
        if (contains(plan.stripes[s].query_blocks, shared.long_rows[static_cast<size_t>(shared.pieces[static_cast<size_t>(p)].row)].block))
          batch_needed[b] = 1;
  }
  ranks.max(batch_needed);
  for (size_t s = 0; s < plan.stripes.size(); ++s) {
    plan::Stripe& stripe = plan.stripes[s];
    if (s < batches ? batch_needed[s] != 0 : !is_done(s)) continue;
    stripe.query_blocks.clear();
    stripe.pieces = {};
    stripe.list_rows = stripe.list_entries = stripe.list_bytes = 0;
    std::fill(stripe.need.begin(), stripe.need.end(), Intervals{});
  }
}

Schedule agree_on_schedule(const comm::Communicator& ranks, const plan::Shared& shared, plan::RankPlan& plan,
                           const std::vector<int>& host_of_rank) {
  Schedule schedule;
  plan.stripes.resize(static_cast<size_t>(ranks.max(static_cast<int64_t>(plan.stripes.size()))));
  for (plan::Stripe& stripe : plan.stripes) {
    if (!stripe.fetch.empty()) continue;
    stripe.need.resize(shared.classes.size());
    stripe.keep.resize(shared.classes.size());
    stripe.fetch.assign(1, std::vector<Intervals>(shared.classes.size()));
  }
  std::vector<int64_t> steps;
  for (const plan::Stripe& stripe : plan.stripes) steps.push_back(stripe.steps());
  ranks.max(steps);
  schedule.steps.assign(steps.begin(), steps.end());
  for (int64_t count : steps) schedule.exchanges.emplace_back(static_cast<size_t>(count));
  HostAgreement host(ranks, shared, plan, host_of_rank);
  // What is passed on inside a host is held for others, step by step.
  schedule.ahead = host.has_two_levels() ? 1 : static_cast<int>(ranks.min(plan::steps_ahead(shared, plan, schedule.steps)));
  schedule.most_fetched_units = plan::most_fetched_units(shared, plan, schedule.ahead, schedule.steps);
  if (!shared.keys_stay) return schedule;  // every rank reads what it needs from the file

  std::vector<StepName> names;  // [step of the job]
  std::vector<ByClass> direct;  // [step of the job][class] what comes from the homes
  for (size_t s = 0; s < plan.stripes.size(); ++s) {
    const auto& fetch = plan.stripes[s].fetch;
    for (size_t step = 0; step < static_cast<size_t>(schedule.steps[s]); ++step) {
      names.push_back({static_cast<int32_t>(s), static_cast<int32_t>(step)});
      direct.push_back(step < fetch.size() ? fetch[step] : ByClass(shared.classes.size()));
    }
  }
  if (host.has_two_levels()) host.agree(fetches_of(plan, schedule.steps, host.local_rank()), names, direct, schedule);

  std::map<int, std::vector<Request>> requests;
  for (size_t t = 0; t < names.size(); ++t) {
    const auto [s, step] = names[t];
    StepExchange& exchange = schedule.exchanges[static_cast<size_t>(s)][static_cast<size_t>(step)];
    for (size_t c = 0; c < shared.classes.size(); ++c) {
      shared.partition.for_each_home(direct[t][c], [&, stripe = s, step_of_stripe = step](int home, Interval blocks) {
        for (const Interval& halves : plan::travelling_halves(plan, c, blocks)) {
          const UnitRun run = run_of(shared.classes[c], halves);
          add(exchange.receive, home, run);
          requests[home].push_back({stripe, step_of_stripe, run});
          if (!host.is_here(home)) schedule.bytes_from_other_hosts += run_bytes(run, plan);
        }
      });
    }
  }
  std::vector<comm::Communicator::Letter> letters;
  for (const auto& [home, list] : requests) letters.push_back({home, packed(list)});
  for (const comm::Communicator::Letter& letter : ranks.sparse_all_to_all(letters)) {
    for (const Request& request : list_of<Request>(letter.bytes)) {
      add(schedule.exchanges[static_cast<size_t>(request.stripe)][static_cast<size_t>(request.step)].send, letter.rank, request.run);
      schedule.bytes_to_send += run_bytes(request.run, plan);
    }
  }
  bool passes_on = false;
  const int64_t planned = std::exchange(plan.bytes_moved, 0);
  for (const auto& stripe : schedule.exchanges) {
    for (const StepExchange& exchange : stripe) {
      passes_on = passes_on || !exchange.pass_on.empty();
      for (const auto* peers : {&exchange.receive, &exchange.given_receive})
        for (const PeerUnits& peer : *peers)
          for (const UnitRun& run : peer.runs) plan.bytes_moved += run_bytes(run, plan);
    }
  }
  // What comes to be passed on is in the plan's halves now, but a rank is given only what it needs or passes on later.
  if (plan.bytes_moved < planned || plan.bytes_moved > plan::bytes_of_fetches(shared, plan))
    internal_error("the ranks' messages bring more or less than the plan");
  schedule.passes_on = host.has_two_levels() && ranks.max(passes_on ? 1 : 0) > 0;
  size_t first = 0;
  const auto receives = [&](size_t t) {
    return !schedule.exchanges[static_cast<size_t>(names[t].stripe)][static_cast<size_t>(names[t].step)].receive.empty();
  };
  while (first < names.size() && !receives(first)) ++first;
  const auto first_of_all = static_cast<size_t>(ranks.min(static_cast<int64_t>(first)));
  if (!schedule.passes_on && first_of_all < names.size()) schedule.first_fetch = first_of_all;
  return schedule;
}

}  // namespace longspan::engine
