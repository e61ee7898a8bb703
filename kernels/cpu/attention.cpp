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
#include <chrono>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/cpu/exp2.hpp"
#include "kernels/cpu/forward.hpp"
#include "kernels/cpu/panel-inl.hpp"
#include "kernels/cpu/states-inl.hpp"

#if HWY_ONCE
namespace longspan::kernels::cpu {

HWY_EXPORT(panel_kernel);
HWY_EXPORT(finish_states);
HWY_EXPORT(merge_states);

namespace {

// States a thread takes at a time: enough to pay for the hand-out (128 Ki floats at head_dim 128), few enough to share out.
constexpr int64_t kStatesPerItem = 1024;

int64_t items_of(int64_t states) { return (states + kStatesPerItem - 1) / kStatesPerItem; }
int64_t item_end(int64_t item, int64_t states) { return std::min((item + 1) * kStatesPerItem, states); }

// Kept from item to item and from step to step, on the memory of its own thread.
thread_local ScratchMemory scratch_memory;

bool bf16_allowed = true;

const PanelKernel& kernel_for(ElementType type) {
  const PanelKernel* kernel = HWY_DYNAMIC_DISPATCH(panel_kernel)(type);
  const PanelKernel* dot = type == ElementType::bfloat16 && bf16_allowed ? avx512_bf16_kernel(*kernel) : nullptr;
  return dot != nullptr ? *dot : *kernel;
}

}  // namespace

void start_forward(const Step& step, ThreadPool& threads) {
  std::vector<Piece> pieces = cut_into_pieces(step, threads.threads());
  const auto count = static_cast<int64_t>(pieces.size());
  threads.start(count, [step, pieces = std::move(pieces), kernel = &kernel_for(step.type)](int64_t item, int) {
    const Piece& piece = pieces[static_cast<size_t>(item)];
    attend_piece(step, piece, *kernel, scratch_memory.of(step.head_dim, piece.heads));
  });
}

void forward(const Step& step, ThreadPool& threads) {
  start_forward(step, threads);
  threads.wait();
}

void finish(const Finish& finish, ThreadPool& threads) {
  const int64_t states = finish.states();
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

double peak_rate(ElementType type, double seconds, ThreadPool& threads) {
  using Clock = std::chrono::steady_clock;
  const PanelKernel& kernel = kernel_for(type);
  std::vector<double> rates(static_cast<size_t>(threads.threads()));
  threads.for_each(threads.threads(), [&](int64_t item, int) {
    constexpr int64_t kRounds = 20000;  // about 0.1 ms
    double flop = 0, passed = 0;
    for (const auto start = Clock::now(); passed < seconds; passed = std::chrono::duration<double>(Clock::now() - start).count())
      flop += kernel.multiply(kRounds);
    rates[static_cast<size_t>(item)] = passed > 0 ? flop / passed : 0;
  });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

const char* target_name(ElementType type) { return kernel_for(type).name; }

std::string target_names() {
  const std::string all = target_name(ElementType::float32), bfloat16 = target_name(ElementType::bfloat16);
  return bfloat16 == all ? all : all + ", bfloat16 " + bfloat16;
}

void allow_avx512_bf16(bool allowed) { bf16_allowed = allowed; }

void exp2_array(ElementType type, const float* in, float* out, int64_t count) { kernel_for(type).exp2(in, out, count); }

}  // namespace longspan::kernels::cpu
#endif  // HWY_ONCE
