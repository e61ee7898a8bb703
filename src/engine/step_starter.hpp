// Starts steps on the device. What of the next step can be made ready is made ready while one runs; and where neither bears on the other
// the next one is started before the end of the one that runs, which leaves more and more of a GPU idle when it comes to its last items.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/fetches.hpp"
#include "engine/stripe_lists.hpp"
#include "kernels/device.hpp"
#include "longspan/shape.hpp"

namespace longspan::engine {

class StepStarter {
 public:
  // The references outlive this. `lists_stay`: kernels::Step::lists_stay.
  StepStarter(const Shape& shape, const HeadSets& heads, float scale, bool lists_stay, kernels::Device& device, Fetches& fetches)
      : shape_(shape), heads_(heads), scale_(scale), lists_stay_(lists_stay), device_(device), fetches_(fetches) {}

  // Queries [rows][heads][head_dim], states and results, all the device's memory.
  struct Rows {
    const std::byte* q;
    int64_t count;  // of q
    float *m, *l, *o;
    kernels::Results results;
  };

  // The next step that will be started: step `t` of the job, which has work. May come while another one runs.
  void prepare(const StripeLists& stripe, const StepLists& step, size_t t);
  bool is_prepared(const StepLists& step) const { return prepared_ == step.work.data(); }
  void start(const StripeLists& stripe, const StepLists& step, const Rows& rows);

  // Whether the step's lists, and where its keys lie, are ready: prepare() has found all of it.
  bool can_start_beside(const StepLists& step) const { return is_prepared(step) && next_slots_of_ == &step; }
  // While another stripe's step runs: the only step of its stripe, all of whose rows see something (Device::start_beside, start_behind).
  void start_beside(const StripeLists& stripe, const StepLists& step, const Rows& rows);
  void start_behind(const StripeLists& stripe, const StepLists& step, const Rows& rows);

 private:
  kernels::Step listed(const StripeLists& stripe, const StepLists& step) const;
  kernels::Step complete(const StripeLists& stripe, const StepLists& step, const Rows& rows);

  const Shape& shape_;
  const HeadSets& heads_;
  float scale_;
  bool lists_stay_;
  kernels::Device& device_;
  Fetches& fetches_;
  const kernels::Work* prepared_ = nullptr;  // the work of the step that was prepared last
  std::vector<int32_t> slots_[2];            // of steps in turns: two may run
  size_t turn_ = 0;
  const StepLists* next_slots_of_ = nullptr;  // whose are in slots_[turn_]
};

}  // namespace longspan::engine
