// What happens to the rows' states between steps and after them. A warp takes one state at a time; head_dim is a multiple of 8.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kMostBlocks = 1 << 16;

// Calls f(state, lane) for every state, each by a whole warp.
template <typename F>
__device__ void for_each_state(int64_t states, F f) {
  const int64_t stride = int64_t{gridDim.x} * kWarps;
  for (int64_t state = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; state < states; state += stride)
    f(state, static_cast<int>(threadIdx.x % 32));
}

unsigned blocks_for(int64_t states) { return static_cast<unsigned>(std::min(kMostBlocks, (states + kWarps - 1) / kWarps)); }

__global__ void finish_states(Finish finish, int64_t states) {
  for_each_state(states, [&](int64_t state, int lane) {
    const float l = finish.l[state];
    const Normalise normalise(l);
    const float* o = finish.o + state * finish.head_dim;
    const int64_t place = finish.place_of(state);
    for (int d = 2 * lane; d < finish.head_dim; d += 64)
      store_pair(finish.out, finish.output_type, place * finish.head_dim + d, normalise(o[d]), normalise(o[d + 1]));
    if (lane == 0) finish.lse[place] = natural_lse(finish.m[state], l);
  });
}

// Two states m, l and their O into one: take() for l, o() for the elements of O.
struct Merging {
  // l = 0 says "has seen nothing" better than m = −∞ does: a row of NaN scores has l = NaN, and must stay NaN.
  __device__ Merging(float m, float l, float from_m, float from_l) : nothing(from_l == 0), takes_over(l == 0) {
    const float maximum = fmaxf(m, from_m), shift = finite_shift(maximum);
    ours = exp2f(m - shift), theirs = exp2f(from_m - shift);
    new_m = takes_over ? from_m : maximum;
    new_l = takes_over ? from_l : fmaf(l, ours, from_l * theirs);
  }
  __device__ float o(float o, float from_o) const { return takes_over ? from_o : fmaf(o, ours, from_o * theirs); }
  bool nothing, takes_over;  // where there is nothing, all stays as it is
  float ours, theirs, new_m, new_l;
};

__global__ void merge_states(Merge merge) {
  for_each_state(merge.count, [&](int64_t state, int lane) {
    const Merging merging(merge.m[state], merge.l[state], merge.from_m[state], merge.from_l[state]);
    if (merging.nothing) return;
    for (int d = lane; d < merge.head_dim; d += 32) {
      const int64_t at = state * merge.head_dim + d;
      merge.o[at] = merging.o(merge.o[at], merge.from_o[at]);
    }
    __syncwarp();  // every lane has read m and l
    if (lane == 0) merge.m[state] = merging.new_m, merge.l[state] = merging.new_l;
  });
}

// blockIdx.y: which of the merges.
__global__ void merge_all(const StateBlock* blocks, const BlocksToMerge* merges) {
  constexpr int kMostParts = 8;  // of 32 elements: head_dim is at most 256
  const BlocksToMerge merge = merges[blockIdx.y];
  const StateBlock& front = blocks[merge.first];
  const int64_t states = front.rows * static_cast<int64_t>(front.head_list.size());
  const int head_dim = front.head_dim;
  for_each_state(states, [&](int64_t state, int lane) {
    float m = 0, l = 0, o[kMostParts];
    for (int64_t i = 0; i < merge.count; ++i) {
      const StateBlock& block = blocks[merge.first + i];
      const auto listed = static_cast<int64_t>(block.head_list.size());
      const int64_t there = (block.first_row + state / listed) * block.heads + block.head_list.data()[state % listed];
      const float from_m = block.m[there], from_l = block.l[there];
      const float* from_o = block.o + there * head_dim;
      const Merging merging(m, l, from_m, from_l);
      if (i > 0 && merging.nothing) continue;
#pragma unroll
      for (int part = 0; part < kMostParts; ++part) {
        const int d = 32 * part + lane;
        if (d < head_dim) o[part] = i == 0 ? from_o[d] : merging.o(o[part], from_o[d]);
      }
      m = i == 0 ? from_m : merging.new_m, l = i == 0 ? from_l : merging.new_l;
    }
#pragma unroll
    for (int part = 0; part < kMostParts; ++part) {
      const int d = 32 * part + lane;
      if (d < head_dim) merge.packed[2 * states + state * head_dim + d] = o[part];
    }
    if (lane == 0) merge.packed[state] = m, merge.packed[states + state] = l;
  });
}

__global__ void clear(int64_t count, int head_dim, float* m, float* l, float* o) {
  for_each_state(count, [&](int64_t state, int lane) {
    for (int d = lane; d < head_dim; d += 32) o[state * head_dim + d] = 0;
    if (lane == 0) m[state] = kMinusInfinity, l[state] = 0;
  });
}

}  // namespace

void finish(const Finish& finish, cudaStream_t stream) {
  const int64_t states = finish.states();
  if (states == 0) return;
  finish_states<<<blocks_for(states), kThreads, 0, stream>>>(finish, states);
  check(cudaGetLastError(), "launch of finish_states");
}

void merge(const Merge& merge, cudaStream_t stream) {
  if (merge.count == 0) return;
  merge_states<<<blocks_for(merge.count), kThreads, 0, stream>>>(merge);
  check(cudaGetLastError(), "launch of merge_states");
}

void clear_states(int64_t count, int head_dim, float* m, float* l, float* o, cudaStream_t stream) {
  if (count == 0) return;
  clear<<<blocks_for(count), kThreads, 0, stream>>>(count, head_dim, m, l, o);
  check(cudaGetLastError(), "launch of clear");
}

void merge_blocks(const StateBlock* blocks, std::span<const BlocksToMerge> merges, int64_t most_states, cudaStream_t stream) {
  constexpr size_t kMostAtOnce = 65535;  // of a grid's second dimension
  for (size_t first = 0; first < merges.size(); first += kMostAtOnce) {
    const dim3 grid(blocks_for(most_states), static_cast<unsigned>(std::min(kMostAtOnce, merges.size() - first)));
    merge_all<<<grid, kThreads, 0, stream>>>(blocks, merges.data() + first);
    check(cudaGetLastError(), "launch of merge_all");
  }
}

}  // namespace longspan::kernels::cuda
