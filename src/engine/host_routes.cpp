#include "engine/host_routes.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "plan/halves.hpp"

namespace longspan::engine {

namespace {

// Parts of this many blocks (or more) that several ranks want at once are brought by turns, so that all of the host's links work.
constexpr int64_t kLeastTurn = 8;

// The places where the set of fetches changes, ascending.
std::vector<int64_t> cuts_of(const std::vector<Fetch>& fetches) {
  std::vector<int64_t> cuts;
  for (const Fetch& fetch : fetches) cuts.insert(cuts.end(), {fetch.blocks.begin, fetch.blocks.end});
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

struct Holder {
  int32_t rank, until;
};

// Among ranks that had the blocks and want them no more, the one that had them last and has the room to hold them to `step`: it is taken
// out of `past` and its hold entered.
std::optional<Holder> hold_to(int32_t step, std::vector<Holder>& past, const std::vector<const Fetch*>& fetches, Interval blocks,
                              int64_t units, std::vector<int64_t>& room, std::vector<Hold>& holds) {
  auto best = past.end();
  for (auto it = past.begin(); it != past.end(); ++it) {
    const Holder& holder = *it;
    const bool wants_again = std::any_of(fetches.begin(), fetches.end(), [&](const Fetch* fetch) {
      return fetch->rank == holder.rank && fetch->step > holder.until && fetch->step <= step;
    });
    if (wants_again || room[static_cast<size_t>(holder.rank)] < units) continue;
    if (best == past.end() || holder.until > best->until) best = it;
  }
  if (best == past.end()) return std::nullopt;
  room[static_cast<size_t>(best->rank)] -= units;
  holds.push_back({best->rank, fetches.front()->key_class, blocks, best->until, step});
  const Holder holder{best->rank, step};
  past.erase(best);
  return holder;
}

// Blocks that the same fetches want: `fetches` by ascending step, then rank. `units` of all these blocks.
void route(const std::vector<const Fetch*>& fetches, Interval blocks, int64_t units, std::vector<int64_t>& room, HostRoutes& found) {
  std::vector<Route>& routes = found.routes;
  std::vector<Holder> holders, past;
  for (size_t first = 0, end = 0; first < fetches.size(); first = end) {
    const int32_t step = fetches[first]->step;
    for (end = first; end < fetches.size() && fetches[end]->step == step;) ++end;
    const auto wanting = static_cast<int64_t>(end - first);
    std::erase_if(holders, [&](const Holder& holder) {
      if (holder.until < step) past.push_back(holder);
      return holder.until < step;
    });
    if (holders.empty())
      if (const auto holder = hold_to(step, past, fetches, blocks, units, room, found.holds)) holders.push_back(*holder);

    std::vector<Holder> sources = holders;
    const int64_t turn = std::max(kLeastTurn, (blocks.length() + wanting - 1) / wanting);
    for (Interval part{blocks.begin, 0}; part.begin < blocks.end; part.begin = part.end) {
      part.end = std::min(blocks.end, part.begin + (holders.empty() && wanting > 1 ? turn - part.begin % turn : blocks.length()));
      size_t bringing = end;  // fetches[bringing] goes home
      if (holders.empty()) {
        bringing = first + static_cast<size_t>(part.begin / turn % wanting);
        sources = {{fetches[bringing]->rank, fetches[bringing]->until}};
        routes.push_back({fetches[bringing]->rank, Route::kHome, fetches[bringing]->key_class, step, part});
      }
      for (size_t f = first; f < end; ++f) {
        if (f == bringing) continue;
        const Holder& source = sources[(static_cast<size_t>(part.begin) + f) % sources.size()];
        routes.push_back({fetches[f]->rank, source.rank, fetches[f]->key_class, step, part});
      }
    }
    for (size_t f = first; f < end; ++f) holders.push_back({fetches[f]->rank, fetches[f]->until});
  }
}

}  // namespace

HostRoutes routes_inside_host(std::vector<Fetch> fetches, std::vector<int64_t> room, const std::vector<int>& class_heads) {
  std::erase_if(fetches, [](const Fetch& fetch) { return fetch.blocks.empty(); });
  std::map<int32_t, std::vector<Fetch>> by_class;
  for (const Fetch& fetch : fetches) by_class[fetch.key_class].push_back(fetch);

  HostRoutes found;
  for (auto& [key_class, wanted] : by_class) {
    const std::vector<int64_t> cuts = cuts_of(wanted);
    const int64_t heads = class_heads[static_cast<size_t>(key_class)];
    std::sort(wanted.begin(), wanted.end(), [](const Fetch& a, const Fetch& b) { return a.blocks.begin < b.blocks.begin; });
    std::vector<const Fetch*> here;  // those that want the blocks from cuts[i] on
    size_t next = 0;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      std::erase_if(here, [&](const Fetch* fetch) { return fetch->blocks.end <= cuts[i]; });
      for (; next < wanted.size() && wanted[next].blocks.begin == cuts[i]; ++next) here.push_back(&wanted[next]);
      std::sort(here.begin(), here.end(),
                [](const Fetch* a, const Fetch* b) { return std::tie(a->step, a->rank) < std::tie(b->step, b->rank); });
      if (!here.empty()) route(here, {cuts[i], cuts[i + 1]}, heads * (cuts[i + 1] - cuts[i]), room, found);
    }
  }

  // Neighbours with the same way become one.
  const auto way = [](const Route& r) { return std::tie(r.step, r.to, r.from, r.key_class); };
  std::sort(found.routes.begin(), found.routes.end(),
            [&](const Route& a, const Route& b) { return std::tuple(way(a), a.blocks.begin) < std::tuple(way(b), b.blocks.begin); });
  std::vector<Route> joined;
  for (const Route& next : found.routes) {
    if (!joined.empty() && way(joined.back()) == way(next) && joined.back().blocks.end == next.blocks.begin) {
      joined.back().blocks.end = next.blocks.end;
    } else {
      joined.push_back(next);
    }
  }
  std::sort(joined.begin(), joined.end(), [](const Route& a, const Route& b) {
    return std::tie(a.step, a.key_class, a.blocks.begin, a.to) < std::tie(b.step, b.key_class, b.blocks.begin, b.to);
  });
  found.routes = std::move(joined);
  return found;
}

std::vector<Intervals> halves_passed_on(const std::vector<Route>& routes, std::vector<std::vector<Intervals>>& halves, int64_t blocks) {
  std::vector<Intervals> brought(routes.size());
  // A bit for each half of each block.
  using Bits = std::vector<uint8_t>;
  const auto append_halves = [](Intervals& set, int64_t block, uint8_t bits) {
    for (int half = 0; half < 2; ++half)
      if ((bits >> half & 1) != 0) append(set, {2 * block + half, 2 * block + half + 1});
  };
  std::vector<std::vector<Bits>> there(halves.size());  // [rank][class]
  for (size_t rank = 0; rank < halves.size(); ++rank) {
    for (const Intervals& of_class : halves[rank]) {
      Bits& bits = there[rank].emplace_back(static_cast<size_t>(blocks));
      for (const Interval& run : of_class)
        for (int64_t half = run.begin; half < run.end; ++half) bits[static_cast<size_t>(half / 2)] |= static_cast<uint8_t>(1 << half % 2);
    }
  }
  // From the last to the first: what a rank passes on it has from an earlier step, or from home.
  for (size_t r = routes.size(); r-- > 0;) {
    const Route& route = routes[r];
    if (route.from == Route::kHome) continue;
    const auto to = static_cast<size_t>(route.to), from = static_cast<size_t>(route.from), c = static_cast<size_t>(route.key_class);
    if (there[to].empty()) {
      brought[r] = {plan::halves_of(route.blocks)};
      continue;
    }
    for (int64_t block = route.blocks.begin; block < route.blocks.end; ++block) {
      const uint8_t bits = there[to][c][static_cast<size_t>(block)];
      there[from][c][static_cast<size_t>(block)] |= bits;
      append_halves(brought[r], block, bits);
    }
  }
  for (size_t rank = 0; rank < halves.size(); ++rank) {
    for (size_t c = 0; c < halves[rank].size(); ++c) {
      halves[rank][c].clear();
      for (int64_t block = 0; block < blocks; ++block) append_halves(halves[rank][c], block, there[rank][c][static_cast<size_t>(block)]);
    }
  }
  return brought;
}

}  // namespace longspan::engine
