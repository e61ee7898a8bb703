#include "engine/step_starter.hpp"

#include <utility>

namespace longspan::engine {

void StepStarter::prepare(const StripeLists& stripe, const StepLists& step, size_t t) {
  device_.prepare(listed(stripe, step)), prepared_ = step.work.data();
  if (fetches_.has_places(t)) fetches_.slots_of(step.resident, slots_[turn_]), next_slots_of_ = &step;
}

// A step's lists and what they are for.
kernels::Step StepStarter::listed(const StripeLists& stripe, const StepLists& step) const {
  kernels::Step of;
  of.type = shape_.type, of.heads = shape_.heads, of.kv_heads = shape_.kv_heads, of.head_dim = shape_.head_dim;
  of.scale = scale_, of.resident = size_of(step.resident);
  of.work = step.work, of.tiles = step.tiles, of.head_lists = heads_.heads, of.masks = stripe.masks;
  of.lists_stay = lists_stay_;
  return of;
}

kernels::Step StepStarter::complete(const StripeLists& stripe, const StepLists& step, const Rows& rows) {
  std::vector<int32_t>& slots = slots_[turn_];
  turn_ = 1 - turn_;
  if (std::exchange(next_slots_of_, nullptr) != &step) fetches_.slots_of(step.resident, slots);
  kernels::Step of = listed(stripe, step);
  of.q = rows.q;
  of.pool = fetches_.pool().memory().units;
  of.slots = slots.data();
  of.key_rows = step.key_rows.data();
  of.in_rows = fetches_.pool().in_rows();
  of.m = rows.m, of.l = rows.l, of.o = rows.o;
  return of;
}

void StepStarter::start(const StripeLists& stripe, const StepLists& step, const Rows& rows) {
  device_.start(complete(stripe, step, rows), rows.count, fetches_.pool().memory(), rows.results);
}

void StepStarter::start_behind(const StripeLists& stripe, const StepLists& step, const Rows& rows) {
  device_.start_behind(complete(stripe, step, rows), rows.count, fetches_.pool().memory(), rows.results);
}

void StepStarter::start_beside(const StripeLists& stripe, const StepLists& step, const Rows& rows) {
  device_.start_beside(complete(stripe, step, rows), rows.count, fetches_.pool().memory(), rows.results);
}

}  // namespace longspan::engine
