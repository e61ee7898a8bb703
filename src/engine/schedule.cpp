#include "engine/schedule.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "longspan/error.hpp"

namespace longspan::engine {

namespace {

struct Request {
  int32_t stripe, step;
  UnitRun run;
};

int heads_of(const plan::KeyClass& key_class) { return static_cast<int>(key_class.kv_heads.size()); }

// Calls f(home, run) for the parts of `blocks` with one home each, ascending.
template <typename F>
void for_each_home(const plan::Partition& partition, const Intervals& blocks, F f) {
  const auto& bounds = partition.bounds();
  for (const Interval& run : blocks) {
    auto chunk = static_cast<size_t>(std::upper_bound(bounds.begin(), bounds.end(), run.begin) - bounds.begin()) - 1;
    for (int64_t at = run.begin; at < run.end; ++chunk) {
      const Interval part{at, std::min(run.end, bounds[chunk + 1])};
      if (part.empty()) continue;
      f(partition.owners()[chunk], part);
      at = part.end;
    }
  }
}

}  // namespace

int64_t Schedule::total_steps() const { return std::accumulate(steps.begin(), steps.end(), int64_t{0}); }

Schedule agree_on_schedule(const comm::Communicator& ranks, const plan::Shared& shared, plan::RankPlan& plan) {
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
  schedule.most_fetched_units = plan::most_fetched_units(shared, plan, schedule.steps);
  if (!shared.keys_stay) return schedule;  // every rank reads what it needs from the file

  std::map<int, std::vector<Request>> requests;
  for (size_t s = 0; s < plan.stripes.size(); ++s) {
    for (size_t step = 0; step < plan.stripes[s].fetch.size(); ++step) {
      std::map<int, std::vector<UnitRun>> by_home;
      for (size_t c = 0; c < shared.classes.size(); ++c) {
        for_each_home(shared.partition, plan.stripes[s].fetch[step][c], [&](int home, Interval blocks) {
          const UnitRun run{shared.classes[c].kv_heads.front(), heads_of(shared.classes[c]), blocks.begin, blocks.length()};
          by_home[home].push_back(run);
          requests[home].push_back({static_cast<int32_t>(s), static_cast<int32_t>(step), run});
        });
      }
      for (auto& [home, runs] : by_home) schedule.exchanges[s][step].receive.push_back({home, std::move(runs)});
    }
  }
  std::vector<comm::Communicator::Letter> letters;
  for (const auto& [home, list] : requests) {
    comm::Communicator::Letter letter{home, std::vector<std::byte>(list.size() * sizeof(Request))};
    std::memcpy(letter.bytes.data(), list.data(), letter.bytes.size());
    letters.push_back(std::move(letter));
  }
  for (const comm::Communicator::Letter& letter : ranks.sparse_all_to_all(letters)) {
    for (size_t at = 0; at + sizeof(Request) <= letter.bytes.size(); at += sizeof(Request)) {
      Request request;
      std::memcpy(&request, letter.bytes.data() + at, sizeof request);
      auto& send = schedule.exchanges[static_cast<size_t>(request.stripe)][static_cast<size_t>(request.step)].send;
      if (send.empty() || send.back().peer != letter.rank) send.push_back({letter.rank, {}});
      send.back().runs.push_back(request.run);
      schedule.units_to_send += request.run.units();
    }
  }
  return schedule;
}

}  // namespace longspan::engine
