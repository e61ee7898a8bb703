// C entry points to the Hopper kernel for programs that load it at run time: hopper_bench (variants side by side) and
// tests/bench/gpu_peers.py. Build, from the top folder, with
//   nvcc -std=c++20 -O3 --expt-relaxed-constexpr --split-compile=2 -gencode=arch=compute_90a,code=sm_90a -I. -Isrc -shared
//     -Xcompiler -fPIC -o hopper.so kernels/cuda/hopper_forward.cu kernels/cuda/queue.cpp
//     tests/kernels/cuda/hopper_entry.cu
#include <algorithm>
#include <cstdio>
#include <numeric>

#include "kernels/cuda/hopper_forward.hpp"
#include "kernels/cuda/queue.hpp"
#include "longspan/error.hpp"

using namespace longspan;
using namespace longspan::kernels;

// All that the kernel needs of the library.
Error::Error(std::vector<Problem> problems)
    : std::runtime_error(problems.front().what + ": " + problems.front().seen), problems_(std::move(problems)) {}

extern "C" void longspan_forward_hopper(const cuda::DeviceStep* step, cudaStream_t stream) { cuda::forward_hopper(*step, stream); }

// The queue of a step of `count` Work, dearest first, each for all query heads of its KV head; arrays in host memory. `items` has room for
// count·heads/kv_heads; `halves` becomes DeviceStep::halves_at_a_time, given (2 or 3) or, if it is 0, chosen. Returns how many items there
// are.
extern "C" int64_t longspan_queue(const Work* work, int64_t count, const Tile* tiles, int64_t tile_count, int32_t heads, int32_t kv_heads,
                                  int32_t head_dim, int64_t resident, cuda::Item* items, int32_t* halves) {
  const int32_t group = heads / kv_heads;
  std::vector<Work> all(work, work + count);
  for (Work& w : all) w.first_head = w.kv_head * group, w.head_count = group;
  std::vector<int32_t> head_lists(static_cast<size_t>(heads));
  std::iota(head_lists.begin(), head_lists.end(), 0);
  Step step;
  step.kv_heads = kv_heads, step.head_dim = head_dim, step.resident = resident, step.work = all, step.head_lists = head_lists;
  step.tiles = {tiles, static_cast<size_t>(tile_count)};
  if (*halves == 0) *halves = cuda::halves_at_a_time(step);
  const std::vector<cuda::Item> queue = cuda::queue(step, *halves);
  std::copy(queue.begin(), queue.end(), items);
  return static_cast<int64_t>(queue.size());
}

// One bfloat16 step, scale 1/√head_dim; device pointers, shapes as in kernels/kernel.hpp and kernels/cuda/step.hpp.
struct LongspanCall {
  const std::byte *q, *pool;
  const int32_t *slots, *key_rows;
  const Tile* tiles;
  const MaskBits* masks;  // or null if no tile is of that form
  const Work* work;
  const cuda::Item* items;
  float *m, *l, *o;
  std::byte* out;
  float* lse;
  uint32_t* counter;
  int64_t rows, resident, pool_slots, tile_count, work_count, item_count;
  int32_t heads, kv_heads, head_dim, halves_at_a_time;
  int64_t state_rows;
};

extern "C" int longspan_forward(const LongspanCall* call, cudaStream_t stream) try {
  cuda::DeviceStep step;
  step.step.heads = call->heads, step.step.kv_heads = call->kv_heads, step.step.head_dim = call->head_dim;
  step.step.scale = call->head_dim == 64 ? 0.125f : 0.08838834764831845f;
  step.step.q = call->q, step.step.pool = call->pool, step.step.slots = call->slots, step.step.key_rows = call->key_rows;
  step.step.resident = call->resident;
  step.step.work = {call->work, static_cast<size_t>(call->work_count)},
  step.step.tiles = {call->tiles, static_cast<size_t>(call->tile_count)};
  step.step.masks = {call->masks, 0};  // the kernel does not look at how many
  step.step.m = call->m, step.step.l = call->l, step.step.o = call->o;
  step.out = call->out, step.lse = call->lse, step.q_rows = call->rows, step.pool_slots = call->pool_slots;
  step.state_rows = call->state_rows;
  step.items = call->items, step.item_count = call->item_count, step.counter = call->counter;
  step.halves_at_a_time = call->halves_at_a_time;
  cuda::forward_hopper(step, stream);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
