// One persistent CTA per multiprocessor takes items off a queue. Three warp groups:
//   producer     warp 0 walks the items' tile lists and has K copied into a ring in shared memory, warp 3 V; warps 1 and 2 load the Q rows;
//   consumers    two warp groups (head_dim 64: three) of 64 rows each: S = Q·Kᵀ, online softmax, O += P·V.
//
// Bits: an entry maps the state (m, l, O) of a row to the next one, and nothing but the state passes from one entry to the next. So a
// list cut into steps gives the same bits. In particular l is summed over the four threads of a row in every entry, not at the end.
#include "kernels/cuda/hopper_forward.hpp"

#include <cuda.h>

#include <algorithm>
#include <array>
#include <string>
#include <type_traits>

#include "kernels/cuda/hopper/consumer.cuh"
#include "kernels/cuda/hopper/producer.cuh"
#include "kernels/cuda/hopper/tensor_map.hpp"
#include "longspan/error.hpp"

namespace longspan::kernels::cuda {
namespace {

using namespace hopper;

template <typename Element, class S>
__global__ void __launch_bounds__(S::kThreads, 1) forward_kernel(const __grid_constant__ Arguments a, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<S>*>(memory);
  const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0);  // known to be the same in all lanes
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Shared<S>::kSlots; ++slot) {
      barrier_init(&shared.announced[slot], 1), barrier_init(&shared.k_full[slot], 1), barrier_init(&shared.v_full[slot], 1);
      barrier_init(&shared.k_empty[slot], S::kConsumerThreads + 1), barrier_init(&shared.v_empty[slot], S::kConsumerThreads);
    }
    for (int group = 0; group < S::kConsumers; ++group)
      barrier_init(&shared.q_full[group], 1), barrier_init(&shared.q_empty[group], kGroup);
    for (int item = 0; item < kItems; ++item)
      barrier_init(&shared.item_full[item], S::kConsumers), barrier_init(&shared.item_empty[item], S::kConsumerThreads + kQueryWarps);
    barrier_init_done();
    prefetch(&maps.q), prefetch(&maps.tile), prefetch(&maps.half);
    if (S::kInRows) prefetch(&maps.k_tile), prefetch(&maps.k_half), prefetch(&maps.v_tile), prefetch(&maps.v_half);
    if (S::kContinues && S::kLists == 1) prefetch(&maps.states);
  }
  __syncthreads();

  if (warp < kGroup / 32) {
    registers_decrease<S::kProducerRegisters>();
    const bool one = threadIdx.x % 32 == 0;
    if (warp == 0) produce<S>(a, shared, maps);
    if ((warp == 1 || warp == 2) && one) load_queries<S>(shared, maps.q, warp - 1);
    if (warp == 3 && one) copy_values<S>(shared, maps);
  } else {
    registers_increase<S::kConsumerRegisters>();
    const int group = warp / 4 - 1, lane = threadIdx.x % 32;
    const int own_row = warp % 4 * 16 + lane / 4;
    Consumer<Element, S> consumer{a, shared, group, lane, own_row, group * kRows + own_row};
    consumer.run();
  }
}

// ---- Host ------------------------------------------------------------------------------------------------------------------------

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw Error({.code = ExitCode::device, .what = std::string(call) + " failed", .seen = cudaGetErrorString(status)});
}

template <typename Element, class S>
void launch(const DeviceStep& in, cudaStream_t stream) {
  constexpr int D = S::kHeadDim;
  constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  const Step& step = in.step;
  const auto kernel = forward_kernel<Element, S>;
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<S>)), "cudaFuncSetAttribute");

  const cuuint64_t row_bytes = D * 2, rows = static_cast<cuuint64_t>(in.pool_slots) * 2 * kTile;
  const CUtensorMapDataType type = step.type == ElementType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto of_rows = [&](const void* base, int64_t count, int heads, cuuint32_t box_rows) {
    return tensor_map<3>(type, kSwizzle, base, {D, static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(count)},
                         {row_bytes, row_bytes * static_cast<cuuint64_t>(heads)}, {kPanel, 1, box_rows});
  };
  Maps maps{};
  maps.q = of_rows(step.q, in.q_rows, step.heads, kRows);
  if constexpr (!S::kInRows) {
    maps.tile = tensor_map<2>(type, kSwizzle, step.pool, {D, rows}, {row_bytes}, {kPanel, kTile});
    maps.half = tensor_map<2>(type, kSwizzle, step.pool, {D, rows}, {row_bytes}, {kPanel, kSlotKeys});
  } else {
    const KeysInRows& keys = step.in_rows;
    maps.tile = of_rows(step.pool, static_cast<int64_t>(rows), 1, kTile);
    maps.half = of_rows(step.pool, static_cast<int64_t>(rows), 1, kSlotKeys);
    maps.k_tile = of_rows(keys.k, keys.rows, step.kv_heads, kTile), maps.k_half = of_rows(keys.k, keys.rows, step.kv_heads, kSlotKeys);
    maps.v_tile = of_rows(keys.v, keys.rows, step.kv_heads, kTile), maps.v_half = of_rows(keys.v, keys.rows, step.kv_heads, kSlotKeys);
  }
  if (S::kContinues && S::kLists == 1)
    maps.states = tensor_map<3>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, kSwizzle, step.o,
                                {D, static_cast<cuuint64_t>(step.heads), static_cast<cuuint64_t>(in.state_rows)},
                                {D * 4, D * 4 * static_cast<cuuint64_t>(step.heads)}, {kStateColumns, 1, kRows});
  const Arguments arguments{.work = step.work.data(),
                            .tiles = step.tiles.data(),
                            .masks = step.masks.data(),
                            .slots = step.slots,
                            .key_rows = step.key_rows,
                            .nonfinite_v = in.nonfinite_v,
                            .items = in.items,
                            .resident = step.resident,
                            .item_count = in.item_count,
                            .heads = step.heads,
                            .scale = step.scale * 1.4426950408889634f,
                            .output_type = in.output_type,
                            .m = step.m,
                            .l = step.l,
                            .o = step.o,
                            .out = in.out,
                            .lse = in.lse,
                            .counter = in.counter,
                            .nonfinite_rows = step.in_rows.nonfinite,
                            .rows_of_keys = static_cast<int>(step.in_rows.rows),
                            .kv_heads = step.kv_heads};
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(multiprocessors, in.item_count));
  kernel<<<blocks, S::kThreads, sizeof(Shared<S>), stream>>>(arguments, maps);
  check(cudaGetLastError(), "forward_hopper");
}

}  // namespace

bool hopper_supports(ElementType type, int head_dim, float scale, int device_major) {
  return type != ElementType::float32 && (head_dim == 64 || head_dim == 128) && scale > 0 && device_major == 9;
}

void forward_hopper(const DeviceStep& step, cudaStream_t stream) {
  if (step.item_count == 0) return;
  const auto of_type = [&]<class S>(S) {
    step.step.type == ElementType::bfloat16 ? launch<__nv_bfloat16, S>(step, stream) : launch<__half, S>(step, stream);
  };
  const auto of_keys = [&]<bool kInRows>(std::bool_constant<kInRows>) {
    const bool continues = step.state_rows > 0;
    if (step.step.head_dim == 128) {
      continues ? of_type(Shape<128, 2, true, kInRows>{}) : of_type(Shape<128, 2, false, kInRows>{});
    } else if (step.halves_at_a_time == 2) {
      continues ? of_type(Shape<64, 2, true, kInRows>{}) : of_type(Shape<64, 2, false, kInRows>{});
    } else {
      of_type(Shape<64, 3, true, kInRows>{});
    }
  };
  step.step.in_rows.rows > 0 ? of_keys(std::true_type{}) : of_keys(std::false_type{});
}

}  // namespace longspan::kernels::cuda
