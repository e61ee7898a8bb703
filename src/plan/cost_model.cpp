#include "plan/cost_model.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <optional>
#include <utility>

#include "plan/halves.hpp"
#include "plan/memory.hpp"

namespace longspan::plan {

namespace {

// A home that this many of the looked-at ranks ask is taken to be asked by as large a part of all ranks (sinks, global columns); fewer are
// neighbours, and others have neighbours of their own.
constexpr int kAskedByMany = 4;

int heads_of(const KeyClass& key_class) { return static_cast<int>(key_class.kv_heads.size()); }

// Places at which a run of key blocks may pass from one step to another: own chunks' ends and the bounds of fetched groups.
std::vector<int64_t> step_changes(const RankPlan& plan, const Stripe& stripe) {
  std::vector<int64_t> changes = stripe.bounds;
  for (const Interval& run : plan.own) changes.insert(changes.end(), {run.begin, run.end});
  std::sort(changes.begin(), changes.end());
  return changes;
}

// Spreads the stripe's quarters over its steps as those of sampled rows are. Whether one of these has a tile with a mask.
bool spread_quarters(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, TileLists& lists,
                     const RankPlan& plan, const Stripe& stripe, int sampled_rows, StripeWork& work) {
  if (stripe.weighted_quarters == 0) return false;
  bool masked = false;
  const std::vector<StripeRow> rows = rows_of(shared, pattern, stripe, plan.rank);
  const std::vector<int64_t> changes = step_changes(plan, stripe);
  const auto wanted = std::max<int64_t>(1, std::min<int64_t>(sampled_rows, static_cast<int64_t>(200'000 / (shared.mean_entries + 1))));
  const auto count = std::min<int64_t>(wanted, static_cast<int64_t>(rows.size()));
  std::vector<kernels::Tile> tiles;
  std::vector<const StripeRow*> latest(work.steps.size());  // that has tiles in a step
  double seen = 0;
  const auto look_at = [&](const StripeRow& row) {
    tiles.clear();
    lists.append(row.group, row.block, row.key_blocks, tiles);
    const auto heads = static_cast<double>(pattern.groups()[static_cast<size_t>(row.group)].heads.size());
    const auto put = [&](int64_t block) -> StepWork& {
      const auto step = std::min(static_cast<size_t>(step_of(shared, plan, stripe, block)), work.steps.size() - 1);
      if (latest[step] != &row) latest[step] = &row, work.steps[step].tile_rows += heads;
      return work.steps[step];
    };
    for (const kernels::Tile& tile : tiles) {
      if (tile.form != kernels::Tile::Form::full) {
        masked = masked || kernels::has_mask(tile, blocks.rows(tile.key));
        const double quarters = __builtin_popcount(tile.quarters) * heads;
        put(tile.key).partial_quarters += quarters;
        put(tile.key).partial_tiles += heads;
        seen += quarters;
        continue;
      }
      const int64_t end = tile.key + tile.count;
      for (int64_t block = tile.key; block < end;) {
        const auto change = std::upper_bound(changes.begin(), changes.end(), block);
        const int64_t next = change == changes.end() ? end : std::min(end, *change);
        const double quarters = 4 * static_cast<double>(next - block) * heads;
        put(block).full_quarters += quarters;
        seen += quarters;
        block = next;
      }
    }
  };
  for (int64_t k = 0; k < count; ++k) look_at(rows[static_cast<size_t>((2 * k + 1) * static_cast<int64_t>(rows.size()) / (2 * count))]);
  if (seen == 0)
    for (size_t r = 0; r < rows.size() && seen == 0; ++r) look_at(rows[r]);
  lists.clear();
  const double scale = seen > 0 ? static_cast<double>(stripe.weighted_quarters) / seen : 0;
  for (StepWork& step : work.steps)
    step.full_quarters *= scale, step.partial_quarters *= scale, step.partial_tiles *= scale, step.tile_rows *= scale;
  return masked;
}

}  // namespace

RankWork work_of(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, const RankPlan& plan, int ranks_per_host,
                 int sampled_rows) {
  const Shape& shape = shared.shape;
  // As the engine: where hosts have several ranks each, keys may be passed on, one step ahead.
  const bool two_levels = ranks_per_host > 1 && shared.partition.ranks() > ranks_per_host;
  RankWork rank{
      .rank = plan.rank, .ahead = two_levels ? 1 : steps_ahead(shared, plan), .early = !two_levels, .memory = plan.memory.total()};
  rank.most_list_bytes = static_cast<double>(shared.memory.lists);
  rank.key_bytes = shared.keys_stay ? size_of(plan.own) * shape.kv_heads * plan.unit_bytes : 0;
  const auto element = static_cast<int64_t>(size_of(shape.type));
  const int64_t result = int64_t{shape.head_dim} * static_cast<int64_t>(size_of(shared.options.output_type)) + 4;
  TileLists lists(pattern, blocks);
  std::map<int, int64_t> bytes_from;
  int64_t fetched = 0;  // units
  for (const Stripe& stripe : plan.stripes) {
    StripeWork work;
    work.steps.resize(std::max<size_t>(1, stripe.fetch.size()));
    work.list_rows = static_cast<double>(stripe.list_rows);
    work.entries = static_cast<double>(stripe.list_entries);
    work.list_bytes = static_cast<double>(stripe.list_bytes);
    for (const Interval& run : stripe.query_blocks)
      work.states += static_cast<double>((blocks.tokens(run.end - 1).end - blocks.tokens(run.begin).begin) * shape.heads);
    work.bytes_in = static_cast<int64_t>(work.states) * shape.head_dim * element;
    work.bytes_out = static_cast<int64_t>(work.states) * result;
    for (size_t step = 0; step < stripe.fetch.size(); ++step) {
      StepWork& of_step = work.steps[step];
      std::map<int, int64_t> from;
      for (size_t c = 0; c < shared.classes.size(); ++c) {
        fetched += size_of(stripe.fetch[step][c]) * heads_of(shared.classes[c]);
        if (!shared.keys_stay) {
          of_step.bytes_read += size_of(stripe.fetch[step][c]) * heads_of(shared.classes[c]) * plan.unit_bytes;
          continue;
        }
        shared.partition.for_each_home(stripe.fetch[step][c],
                                       [&](int home, Interval part) { from[home] += travelling_bytes(shared, plan, c, {part}); });
      }
      for (const auto& [home, bytes] : from) {
        const bool near = home / ranks_per_host == plan.rank / ranks_per_host;
        (near ? of_step.bytes_within : of_step.bytes_across) += bytes;
        ++(near ? of_step.messages_within : of_step.messages_across);
        bytes_from[home] += bytes;
      }
    }
    if (spread_quarters(shared, pattern, blocks, lists, plan, stripe, sampled_rows, work)) rank.masked_bytes = rank.key_bytes;
    rank.stripes.push_back(std::move(work));
  }
  for (size_t batch = 0; batch < shared.batches.size(); ++batch)
    rank.stripes[batch].row_bytes = plan.row_bytes_moved / static_cast<int64_t>(shared.batches.size());
  rank.bytes_from.assign(bytes_from.begin(), bytes_from.end());
  const int64_t own = rank.key_bytes / plan.unit_bytes, sent = shared.options.share_keys ? 0 : std::min(own, fetched);
  rank.sent_bytes = sent * plan.unit_bytes;
  rank.keys_in_rows = !shared.options.rows_are_copied && keys_stay_in_rows(plan.weighted_tiles(), own, sent);
  return rank;
}

void share_within_hosts(const Shared& shared, const std::vector<RankPlan>& plans, int ranks_per_host, std::vector<RankWork>& works) {
  if (!shared.keys_stay || shared.options.exchange == ExchangeKind::flat || ranks_per_host < 2) return;
  for (size_t first = 0; first < plans.size();) {
    const int host = plans[first].rank / ranks_per_host;
    size_t end = first;
    while (end < plans.size() && plans[end].rank / ranks_per_host == host) ++end;
    const int there = std::min(ranks_per_host, shared.partition.ranks() - host * ranks_per_host);
    const size_t begin = std::exchange(first, end);
    if (static_cast<int>(end - begin) != there) continue;

    Intervals own;  // of the host
    for (size_t r = begin; r < end; ++r) own = unite(own, plans[r].own);
    struct {
      int64_t all = 0, distinct = 0;
    } units, halves;
    for (size_t c = 0; c < shared.classes.size(); ++c) {
      const int64_t heads = heads_of(shared.classes[c]);
      Intervals blocks, needed;
      for (size_t r = begin; r < end; ++r) {
        Intervals far;
        for (const Stripe& stripe : plans[r].stripes)
          for (const auto& fetch : stripe.fetch) far = unite(far, subtract(fetch[c], own));
        units.all += size_of(far) * heads;
        blocks = unite(blocks, far);
        const Intervals of_rank = plans[r].halves.empty() ? halves_of(far) : intersect(halves_of(far), plans[r].halves[c]);
        halves.all += size_of(of_rank) * heads;
        needed = unite(needed, of_rank);
      }
      units.distinct += size_of(blocks) * heads;
      halves.distinct += size_of(needed) * heads;
    }
    // As the engine decides: two levels where that saves a fifth.
    if (units.all == 0 || units.distinct == units.all) continue;
    if (shared.options.exchange == ExchangeKind::automatic && 5 * halves.distinct > 4 * halves.all) continue;
    // A block comes with the halves that any rank here needs, and is passed on with those that its receiver does.
    const double passed_on = 1 - static_cast<double>(units.distinct) / static_cast<double>(units.all);
    const double crossing = static_cast<double>(halves.distinct) / static_cast<double>(halves.all);
    for (size_t r = begin; r < end; ++r) {
      for (StripeWork& stripe : works[r].stripes) {
        for (StepWork& step : stripe.steps) {
          const auto inside = std::llround(passed_on * static_cast<double>(step.bytes_across));
          if (inside == 0) continue;
          step.bytes_across = std::llround(crossing * static_cast<double>(step.bytes_across));
          step.bytes_within += inside;
          step.messages_within += there - 1;
        }
      }
    }
  }
}

double compute_seconds(const StepWork& step, const Rates& rates) {
  return step.full_quarters * rates.full_quarter + step.partial_quarters * rates.partial_quarter + step.partial_tiles * rates.partial_tile +
         step.tile_rows * rates.tile_row;
}

namespace {

// What the I/O thread does, in the order asked for, and beside it the results' thread, if there is one. Example with Rates::both_ways of
// 1.5: 10 s to bring and 5 s to take, asked for at 0. Taken at 7.5, when 5 of the 10 are done; brought at 12.5.
class RowTraffic {
 public:
  explicit RowTraffic(double both_ways) : both_ways_(both_ways) {}

  // `now` never goes back. Returns a number for end().
  size_t bring(double now, double seconds) { return ask(now, seconds, queues_.in); }
  size_t take(double now, double seconds) { return ask(now, seconds, both_ways_ > 0 ? queues_.out : queues_.in); }
  // When it is over if nothing more is asked for until then.
  double end(size_t task) const {
    if (ended_[task] < kUnlimited) return ended_[task];
    Queues rest = queues_;
    double end = kUnlimited;
    advance(rest, kUnlimited, [&](size_t ended) {
      if (ended == task) end = rest.at;
    });
    return end;
  }

 private:
  struct Task {
    size_t number;
    double seconds;  // that are left of it, by itself
  };
  struct Queues {
    std::deque<Task> in, out;
    double at = 0;
  };

  size_t ask(double now, double seconds, std::deque<Task>& of) {
    advance(queues_, now, [this](size_t ended) { ended_[ended] = queues_.at; });
    queues_.at = std::max(queues_.at, now);
    of.push_back({ended_.size(), seconds});
    ended_.push_back(kUnlimited);
    return ended_.size() - 1;
  }
  template <typename Ended>
  void advance(Queues& queues, double until, Ended ended) const {
    while (queues.at < until && !(queues.in.empty() && queues.out.empty())) {
      const double slowdown = queues.in.empty() || queues.out.empty() ? 1 : both_ways_;
      double least = kUnlimited;
      for (const std::deque<Task>* queue : {&queues.in, &queues.out})
        if (!queue->empty()) least = std::min(least, queue->front().seconds);
      const double worked = std::min((until - queues.at) / slowdown, least);
      queues.at += worked * slowdown;
      for (std::deque<Task>* queue : {&queues.in, &queues.out}) {
        if (queue->empty() || (queue->front().seconds -= worked) > 0) continue;
        ended(queue->front().number);
        queue->pop_front();
      }
    }
  }

  double both_ways_;
  Queues queues_;
  std::vector<double> ended_;  // by task
};

}  // namespace

RankTime play(const RankWork& work, const Rates& rates) {
  RankTime time;
  double now = 0, link_free = 0;
  const auto wait_for = [&](double event, double& section) {
    section += std::max(0.0, event - now);
    now = std::max(now, event);
  };
  const auto spend = [&](double seconds, double& section) {
    section += seconds;
    now += seconds;
  };
  // Those of files are not taken both ways at a time.
  RowTraffic traffic(rates.write_bytes_per_second < kUnlimited ? 0 : rates.both_ways);
  const auto seconds_of = [](int64_t bytes, double rate, double beside) {  // what goes to or from the device meanwhile
    return std::max(static_cast<double>(bytes) / rate, beside);
  };
  double& queries = rates.read_bytes_per_second < kUnlimited ? time.io : time.rows;  // what a wait for them waits for
  double& results = rates.write_bytes_per_second < kUnlimited ? time.io : time.rows;

  const auto list_seconds = [&](const StripeWork& stripe) { return stripe.list_rows * rates.list_row + stripe.entries * rates.list_entry; };
  const auto bring_long_rows = [&](const StripeWork& stripe) {
    const LinkRates& far = rates.across_hosts.bytes_per_second < kUnlimited ? rates.across_hosts : rates.within_host;
    if (stripe.row_bytes > 0) spend(2 * far.latency + static_cast<double>(stripe.row_bytes) / far.bytes_per_second, time.exchange);
  };

  std::vector<const StepWork*> order;
  for (const StripeWork& stripe : work.stripes)
    for (const StepWork& step : stripe.steps) order.push_back(&step);
  std::vector<double> arrival(order.size(), 0);
  const auto start_fetch = [&](size_t t, double earliest) {
    const StepWork& step = *order[t];
    if (step.bytes_read > 0) {
      arrival[t] = traffic.end(traffic.bring(now, seconds_of(step.bytes_read, rates.read_bytes_per_second, 0)));
      return;
    }
    if (step.messages_within + step.messages_across == 0) return;
    const double begin = std::max(earliest, link_free);
    link_free = begin + step.messages_within * rates.within_host.latency + step.messages_across * rates.across_hosts.latency +
                rates.link_slowdown * (static_cast<double>(step.bytes_within) / rates.within_host.bytes_per_second +
                                       static_cast<double>(step.bytes_across) / rates.across_hosts.bytes_per_second);
    arrival[t] = link_free;
    time.in_flight += link_free - begin;
  };
  size_t started = 0;
  const auto start_fetches = [&](size_t last) {
    for (; started <= last && started < order.size(); ++started) start_fetch(started, now);
  };

  std::vector<std::optional<size_t>> brought_queries(work.stripes.size());
  std::vector<size_t> taken_results;
  const auto read_queries = [&](size_t s) {
    while (s < work.stripes.size() && work.stripes[s].bytes_in == 0) ++s;
    if (s < work.stripes.size() && !brought_queries[s])
      brought_queries[s] =
          traffic.bring(now, seconds_of(work.stripes[s].bytes_in, rates.read_bytes_per_second, work.stripes[s].states * rates.state_in));
  };
  // As the engine: the I/O thread loads the keys, then reads queries; meanwhile the first lists are made.
  const bool in_rows = work.keys_in_rows && rates.row_bytes_per_second > 0;
  const double load_seconds = static_cast<double>(in_rows ? work.sent_bytes : work.key_bytes) / rates.key_bytes_per_second +
                              (in_rows ? static_cast<double>(work.masked_bytes) / rates.row_bytes_per_second : 0);
  const double keys_there = traffic.end(traffic.bring(now, load_seconds + seconds_of(work.key_bytes, rates.read_bytes_per_second, 0)));
  read_queries(0);
  size_t listed = 0, brought = 0;
  double may_start = 0, lister_free = 0;
  std::vector<double> lists_there(work.stripes.size(), 0);
  // Whether the next lists are made ahead, beside those in use, of stripe `taken` - 1.
  const auto may_list = [&](size_t taken) {
    if (listed == work.stripes.size() || listed >= taken + kListsAhead) return false;
    double bytes = 0;
    for (size_t s = taken > 0 ? taken - 1 : 0; s <= listed; ++s) bytes += work.stripes[s].list_bytes;
    return listed == taken || bytes <= work.most_list_bytes;
  };
  const auto ask_lists = [&](size_t taken) {  // of the thread that makes them
    for (; may_list(taken); ++listed) lists_there[listed] = lister_free = std::max(lister_free, now) + list_seconds(work.stripes[listed]);
  };
  if (rates.lists_beside) ask_lists(0);
  if (work.key_bytes > 0 && !work.stripes.empty()) {
    const bool is_long = work.stripes[0].row_bytes > 0;
    if (!rates.lists_beside) spend(list_seconds(work.stripes[listed++]), time.plan);
    if (is_long && rates.lists_beside) {
      wait_for(lists_there[0], time.plan);
      ask_lists(1);
    }
    if (is_long) bring_long_rows(work.stripes[brought++]), may_start = now;
    while (!rates.lists_beside && now < keys_there && may_list(is_long ? 1 : 0)) spend(list_seconds(work.stripes[listed++]), time.plan);
  }
  wait_for(keys_there, time.load);
  // As the engine: what travels first starts at once, whatever its step, and each as soon as those who send it have loaded it, which they
  // do in that order. They are taken to have as many keys as this rank: a step that brings half of those of its homes starts at half time.
  const auto messages = [&](size_t t) { return order[t]->messages_within + order[t]->messages_across; };
  size_t first = 0;
  while (first < order.size() && messages(first) == 0) ++first;
  double loaded = 0;  // share of the homes' keys
  for (const size_t last = std::max(work.early && first < order.size() ? first : 0, static_cast<size_t>(work.ahead - 1));
       started <= last && started < order.size(); ++started) {
    if (work.key_bytes > 0 && messages(started) > 0)
      loaded += static_cast<double>(order[started]->bytes_within + order[started]->bytes_across) /
                (static_cast<double>(work.key_bytes) * messages(started));
    start_fetch(started, work.key_bytes > 0 ? std::max(may_start, keys_there * std::min(1.0, loaded)) : now);
  }
  size_t t = 0;
  for (size_t s = 0; s < work.stripes.size(); ++s) {
    const StripeWork& stripe = work.stripes[s];
    if (rates.lists_beside) {
      wait_for(lists_there[s], time.plan);
      ask_lists(s + 1);
    }
    if (s >= listed) spend(list_seconds(stripe), time.plan), ++listed;
    if (s >= brought) bring_long_rows(stripe);
    if (stripe.bytes_in > 0) {
      wait_for(traffic.end(*brought_queries[s]), queries);
      read_queries(s + 1);
    }
    if (stripe.bytes_out > 0 && taken_results.size() >= 2)  // two buffers
      wait_for(traffic.end(taken_results[taken_results.size() - 2]), results);
    spend(stripe.states * rates.state, time.rows);
    const auto has_work = [](const StepWork& step) { return step.full_quarters + step.partial_quarters > 0; };
    const auto last = std::find_if(stripe.steps.rbegin(), stripe.steps.rend(), has_work).base() - stripe.steps.begin();  // one past it
    for (size_t step = 0; step < stripe.steps.size(); ++step, ++t) {
      start_fetches(t + static_cast<size_t>(work.ahead));
      wait_for(arrival[t], time.exchange);
      spend(static_cast<double>(order[t]->bytes_within + order[t]->bytes_across) * rates.exposed_byte, time.exchange);
      double compute = compute_seconds(stripe.steps[step], rates);
      if (t + 1 < order.size() && compute > 0)
        compute += static_cast<double>(order[t + 1]->bytes_within + order[t + 1]->bytes_across) * rates.hidden_byte;
      if (!rates.lists_beside && static_cast<int64_t>(step) + 1 == last && s + 1 < work.stripes.size() && s + 1 >= listed)
        compute = std::max(compute, list_seconds(work.stripes[listed++]));  // the next lists, beside this step
      spend(compute, time.attend);
    }
    if (stripe.bytes_out > 0) {
      taken_results.push_back(
          traffic.take(now, seconds_of(stripe.bytes_out, rates.write_bytes_per_second, stripe.states * rates.state_out)));
    }
  }
  if (!taken_results.empty()) wait_for(traffic.end(taken_results.back()), results);
  return time;
}

JobTime play(const std::vector<RankWork>& works, int ranks, const Rates& rates) {
  JobTime job;
  double most_attend = 0, exposed = 0, total = 0;
  std::map<int, std::pair<int, int64_t>> sent;  // by home: how many of these ranks ask it, for how much
  const auto share = 1 / static_cast<double>(std::max<size_t>(1, works.size()));
  for (const RankWork& work : works) {
    const RankTime time = play(work, rates);
    if (time.total() > job.seconds) {
      job.seconds = time.total();
      job.slowest_rank = work.rank;
      job.slowest = time;
      double steps = 0;
      for (const StripeWork& stripe : work.stripes) steps += static_cast<double>(stripe.steps.size());
      job.step_seconds = steps > 0 ? (time.attend + time.exchange) / steps : 0;
    }
    most_attend = std::max(most_attend, time.attend);
    exposed += time.exchange;
    total += time.total();
    job.memory = std::max(job.memory, work.memory);
    for (auto [section, of_rank] :
         {std::pair(&job.mean.load, time.load), std::pair(&job.mean.plan, time.plan), std::pair(&job.mean.exchange, time.exchange),
          std::pair(&job.mean.attend, time.attend), std::pair(&job.mean.rows, time.rows), std::pair(&job.mean.io, time.io),
          std::pair(&job.mean.in_flight, time.in_flight)})
      *section += of_rank * share;
    for (const auto& [home, bytes] : work.bytes_from) {
      ++sent[home].first;
      sent[home].second += bytes;
    }
  }
  job.exposed = total > 0 ? exposed / total : 0;
  job.imbalance = job.mean.attend > 0 ? std::max(1.0, most_attend / job.mean.attend) : 1;
  const LinkRates& far = rates.across_hosts.bytes_per_second < kUnlimited ? rates.across_hosts : rates.within_host;
  for (const auto& [home, asked] : sent) {
    const double all = asked.first >= kAskedByMany ? ranks * share : 1;
    const double seconds = static_cast<double>(asked.second) * all / far.bytes_per_second;
    if (seconds > job.busiest_sender) job.busiest_sender = seconds, job.busiest_sender_rank = home;
  }
  // The slowest rank waits for the one that sends to so many.
  if (job.busiest_sender > job.seconds) {
    const double more = job.busiest_sender - job.seconds;
    job.seconds = job.busiest_sender;
    job.slowest.exchange += more;
    job.exposed = (exposed + more * static_cast<double>(works.size())) / (total + more * static_cast<double>(works.size()));
  }
  return job;
}

std::vector<int> sampled_ranks(int64_t ranks, int ranks_per_host, int64_t most) {
  std::vector<int> sampled;
  const int64_t per_host = std::min<int64_t>(ranks, ranks_per_host), hosts = (ranks + per_host - 1) / per_host;
  const int64_t count = ranks <= most ? hosts : std::min(hosts, std::max<int64_t>(2, most / per_host));
  for (int64_t k = 0; k < count; ++k) {
    const int64_t host = count == 1 ? 0 : (hosts - 1) * k / (count - 1);
    for (int64_t rank = host * per_host; rank < std::min(ranks, (host + 1) * per_host); ++rank) sampled.push_back(static_cast<int>(rank));
  }
  return sampled;
}

JobTime predict(const Shared& shared, const pattern::BoundPattern& pattern, const Blocks& blocks, const Rates& rates) {
  std::vector<RankPlan> plans;
  std::vector<RankWork> works;
  for (int rank : sampled_ranks(shared.partition.ranks(), rates.ranks_per_host)) {
    plans.push_back(make_rank_plan(shared, pattern, blocks, rank));
    works.push_back(work_of(shared, pattern, blocks, plans.back(), rates.ranks_per_host));
  }
  share_within_hosts(shared, plans, rates.ranks_per_host, works);
  return play(works, shared.partition.ranks(), rates);
}

}  // namespace longspan::plan
