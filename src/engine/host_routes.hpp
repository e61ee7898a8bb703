// Exchange in two levels: what several ranks of a host fetch from other hosts comes there once and is passed on inside, where links are
// faster. Pure functions of what the host's ranks are going to fetch, so that each of them finds the same routes alone.
//
//   step   0      1      2          ranks 0 and 1 of a host; block 7 lies on another host, block 8 too
//   rank 0 7      .      8          0 fetches 7 in step 0 and keeps it through step 1, 8 in step 2
//   rank 1 .      7      8          1 wants 7 in step 1: rank 0 still has it and passes it on
//                                   both want 8 in step 2: one brings it (which one depends on the block), the other gets it from there
// Two blocks cross between the hosts; a flat exchange brings four.
#pragma once

#include <cstdint>
#include <vector>

#include "pattern/intervals.hpp"

namespace longspan::engine {

// Key blocks of one class that a rank fetches in one step. Steps count through all stripes.
struct Fetch {
  int32_t rank = 0;  // of the host: 0, 1, …
  int32_t key_class = 0;
  Interval blocks;
  int32_t step = 0, until = 0;  // there from `step` to the end of `until`
  bool operator==(const Fetch&) const = default;
};

// A part of a Fetch, and who brings it.
struct Route {
  static constexpr int32_t kHome = -1;
  int32_t to = 0, from = kHome;  // ranks of the host; kHome: the blocks' home, on another host
  int32_t key_class = 0, step = 0;
  Interval blocks;
  bool operator==(const Route&) const = default;
};

// Blocks that a rank still has at the end of `step`, when it needs them no more itself, and keeps to the end of `until` to pass them on.
struct Hold {
  int32_t rank = 0, key_class = 0;
  Interval blocks;
  int32_t step = 0, until = 0;
};

struct HostRoutes {
  std::vector<Route> routes;  // each block of each fetch once; by step, class, block and `to`
  std::vector<Hold> holds;
};

// For the fetches of all ranks of one host, in any order; a rank fetches blocks again only when it has them no more. A rank passes on in a
// step what it has from an earlier step, or what comes from home in this one: never what it is given in this one. `room[rank]`: units that
// a rank can hold for others, `class_heads[key_class]`: units of a block. While there is room, a block crosses between hosts once.
HostRoutes routes_inside_host(std::vector<Fetch> fetches, std::vector<int64_t> room, const std::vector<int>& class_heads);

// Halves of key blocks (plan/halves.hpp) that each route inside the host brings: those that its receiver needs, and those that it passes
// on. `halves`: [rank][class] what each rank needs, of `blocks` in all; on return with what it passes on, which is what it fetches from
// home, or is given. Empty for each rank: blocks travel whole. Example: ranks 0, 1 and 2 need the first, the second and the second half of
// a block; 0 brings it and passes it on to 1 and 2. It brings both halves, and they get the second.
std::vector<Intervals> halves_passed_on(const std::vector<Route>& routes, std::vector<std::vector<Intervals>>& halves, int64_t blocks);

}  // namespace longspan::engine
