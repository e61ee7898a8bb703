// Attention on CPUs: Highway with run-time dispatch, one pool of threads. Same arguments and results as every other device.
#pragma once

#include <string>

#include "kernels/cpu/thread_pool.hpp"
#include "kernels/kernel.hpp"

namespace longspan::kernels::cpu {

// Takes every Work item of the step one tile after another, in list order, and leaves the rows' new states. Blocks until done.
// Items touch disjoint (state row, head) pairs. Bits depend neither on the number of threads nor on how a list is split over steps; they do
// depend on the instruction set. With AVX-512 BF16, weights of bfloat16 input are rounded to bfloat16 before P·V; m and l are not touched
// by that. A row whose scores are all −∞ (infinite keys) counts as one that has seen nothing. A tile's mask alone says what is allowed;
// `quarters` only tells what a tile costs. Per thread, scratch for one tile and up to 8 heads: 2.4 MB at head_dim 256.
void forward(const Step& step, ThreadPool& threads);
// The same, but returns at once: the caller moves messages and then calls threads.wait(). `step` and what it points to stay until then.
void start_forward(const Step& step, ThreadPool& threads);
void finish(const Finish& finish, ThreadPool& threads);
void merge(const Merge& merge, ThreadPool& threads);
// States of rows that have seen nothing: m = −∞, l = 0, o = 0.
void clear_states(int64_t count, int head_dim, float* m, float* l, float* o, ThreadPool& threads);

// FLOP/s that all threads together reach in a loop of multiply-adds out of registers (float32 FMAs, or the bfloat16 dot product where
// kernels for `type` use it), for `seconds`: what the kernels are measured by.
double peak_rate(ElementType type, double seconds, ThreadPool& threads);

// Name of the instruction set that dispatch has chosen for this type of input, e.g. "AVX3", "AVX512_BF16".
const char* target_name(ElementType type);
// All of it: "AVX3", or "AVX3, bfloat16 AVX512_BF16".
std::string target_names();

}  // namespace longspan::kernels::cpu
