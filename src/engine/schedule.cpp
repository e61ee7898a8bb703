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

int64_t units_of(const plan::Shared& shared, const std::vector<Intervals>& blocks) {
  int64_t units = 0;
  for (size_t c = 0; c < blocks.size(); ++c) units += size_of(blocks[c]) * heads_of(shared.classes[c]);
  return units;
}

// Largest number of fetched units in the pool at one time, by playing the run through: a step's are there while the next step's arrive;
// after its step a unit leaves unless a later stripe needs it.
int64_t most_fetched(const plan::Shared& shared, const plan::RankPlan& plan, const std::vector<int>& steps) {
  std::vector<int64_t> arriving, leaving;
  std::vector<Intervals> kept(shared.classes.size());
  const auto without = [&](const std::vector<Intervals>& blocks, const std::vector<Intervals>& keep) {
    int64_t units = 0;
    for (size_t c = 0; c < blocks.size(); ++c) units += size_of(subtract(blocks[c], keep[c])) * heads_of(shared.classes[c]);
    return units;
  };
  for (size_t s = 0; s < plan.stripes.size(); ++s) {
    const plan::Stripe& stripe = plan.stripes[s];
    for (size_t step = 0; step < static_cast<size_t>(steps[s]); ++step) {
      const bool planned = step < stripe.fetch.size();
      arriving.push_back(planned ? units_of(shared, stripe.fetch[step]) : 0);
      leaving.push_back(planned ? without(stripe.fetch[step], stripe.keep) : 0);
    }
    leaving.back() += without(kept, stripe.keep);
    kept = stripe.keep;
  }
  int64_t here = arriving.empty() ? 0 : arriving.front(), most = here;
  for (size_t t = 0; t < arriving.size(); ++t) {
    if (t + 1 < arriving.size()) here += arriving[t + 1];
    most = std::max(most, here);
    here -= leaving[t];
  }
  return most;
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
  schedule.most_fetched_units = most_fetched(shared, plan, schedule.steps);
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
