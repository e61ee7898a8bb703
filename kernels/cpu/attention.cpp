#include "kernels/cpu/attention.hpp"

// This file is compiled once per instruction set by the include of foreach_target.h; HWY_ONCE marks what belongs to none of them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
// A register block is an array of vectors, which vectors of unknown length (SVE, RISC-V) cannot form; Arm machines take NEON.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/exp2-inl.hpp"
#include "kernels/cpu/exp2.hpp"
#include "kernels/cpu/forward-inl.hpp"
#include "kernels/cpu/scratch.hpp"
#include "kernels/cpu/states-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace longspan::kernels::cpu {
namespace HWY_NAMESPACE {

void exp2_floats(const float* in, float* out, int64_t count) {
  const Lane lane;
  HWY_ALIGN_MAX float lanes[kLanes];
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = std::min<int64_t>(kLanes, count - i);
    std::copy_n(in + i, n, lanes);
    std::fill(lanes + n, lanes + kLanes, 0.0f);
    hn::Store(exp2_vector(lane, hn::Load(lane, lanes)), lane, lanes);
    std::copy_n(lanes, n, out + i);
  }
}

const char* name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace longspan::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspan::kernels::cpu {

HWY_EXPORT(attend_item);
HWY_EXPORT(finish_states);
HWY_EXPORT(merge_states);
HWY_EXPORT(exp2_floats);
HWY_EXPORT(name);

namespace {

// States a thread takes at a time: enough to pay for the hand-out (128 Ki floats at head_dim 128), few enough to share out.
constexpr int64_t kStatesPerItem = 1024;

int64_t items_of(int64_t states) { return (states + kStatesPerItem - 1) / kStatesPerItem; }
int64_t item_end(int64_t item, int64_t states) { return std::min((item + 1) * kStatesPerItem, states); }

// Kept from item to item and from step to step, on the memory of its own thread.
thread_local ScratchMemory scratch_memory;

}  // namespace

void start_forward(const Step& step, ThreadPool& threads) {
  threads.start(static_cast<int64_t>(step.work.size()), [step](int64_t item, int) {
    const Work& work = step.work[static_cast<size_t>(item)];
    if (work.head_count <= 0 || work.tile_count <= 0 || work.rows <= 0) return;
    HWY_DYNAMIC_DISPATCH(attend_item)(step, work, scratch_memory.of(step.head_dim, work.head_count));
  });
}

void forward(const Step& step, ThreadPool& threads) {
  start_forward(step, threads);
  threads.wait();
}

void finish(const Finish& finish, ThreadPool& threads) {
  const int64_t states = finish.rows * finish.heads;
  threads.for_each(items_of(states), [&](int64_t item, int) {
    HWY_DYNAMIC_DISPATCH(finish_states)(finish, item * kStatesPerItem, item_end(item, states));
  });
}

void merge(const Merge& merge, ThreadPool& threads) {
  threads.for_each(items_of(merge.count), [&](int64_t item, int) {
    HWY_DYNAMIC_DISPATCH(merge_states)(merge, item * kStatesPerItem, item_end(item, merge.count));
  });
}

void clear_states(int64_t count, int head_dim, float* m, float* l, float* o, ThreadPool& threads) {
  threads.for_each(items_of(count), [&](int64_t item, int) {
    const int64_t begin = item * kStatesPerItem, end = item_end(item, count);
    std::fill(m + begin, m + end, -std::numeric_limits<float>::infinity());
    std::fill(l + begin, l + end, 0.0f);
    std::fill(o + begin * head_dim, o + end * head_dim, 0.0f);
  });
}

const char* target_name() { return HWY_DYNAMIC_DISPATCH(name)(); }

void exp2_array(const float* in, float* out, int64_t count) { HWY_DYNAMIC_DISPATCH(exp2_floats)(in, out, count); }

}  // namespace longspan::kernels::cpu
#endif  // HWY_ONCE
