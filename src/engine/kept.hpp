// What a run of an engine makes ready, and the next one on the same device finds made: memory for keys and states, messages, tile lists.
#pragma once

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "engine/engine.hpp"
#include "engine/fetches.hpp"
#include "engine/list_maker.hpp"
#include "engine/long_rows.hpp"
#include "engine/stripe_lists.hpp"
#include "engine/stripe_rows.hpp"
#include "kernels/device.hpp"

namespace longspan::engine {

// Lists of which the device keeps what it has made ready.
struct KeptLists {
  kernels::Device& device;
  ListMaker::Kept of_stripes;
  // Key blocks that are in a tile with a mask, if the lists of all stripes are here.
  std::optional<Intervals> masked(size_t stripes) const {
    const auto is_here = [](const auto& of_stripe) { return of_stripe != nullptr; };
    if (of_stripes.size() != stripes || !std::all_of(of_stripes.begin(), of_stripes.end(), is_here)) return std::nullopt;
    Intervals blocks;
    for (const auto& of_stripe : of_stripes)
      for (const StepLists& step : of_stripe->steps) std::ranges::copy(step.masked(), std::back_inserter(blocks));
    return normalised(std::move(blocks));
  }
  ~KeptLists() {
    for (const auto& of_stripe : of_stripes) {
      if (!of_stripe) continue;
      for (const StepLists& step : of_stripe->steps) device.forget_lists(step.work.data());
    }
  }
};

struct Engine::Kept {
  Kept(Engine& engine, kernels::Device& device_, comm::Transport& transport_)
      : device(device_),
        transport(transport_),
        rows(device_, engine.shared_.shape, engine.shared_.options.output_type),
        long_rows(engine.row_ranks_, engine.shared_, engine.pattern_, engine.blocks_, engine.plan_.rank, device_),
        heads(engine.pattern_, engine.shared_.shape),
        fetches({engine.ranks_, engine.shared_, engine.plan_, engine.blocks_, engine.schedule_, engine.host_of_rank_}, device_,
                transport_) {}
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  kernels::Device& device;
  comm::Transport& transport;
  StripeRows rows;
  LongRows long_rows;  // goes before them: queries are on their way from and to there
  HeadSets heads;
  KeptLists lists{device, {}};
  std::optional<Intervals> masked;  // of the lists, once all have stayed for a run
  kernels::Buffer m, l, o;          // states of a stripe
  int64_t states = 0;
  Fetches fetches;  // last: it goes first, since giving memory back waits for all that the device does, and so for other ranks
};

}  // namespace longspan::engine
