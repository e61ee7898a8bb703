// The bulk tensor copy unit (TMA) of sm_90: boxes of a tensor map to shared memory, completing on an mbarrier.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/hopper/barrier.cuh"

namespace longspan::kernels::cuda::hopper {

__device__ inline void prefetch(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// The box whose first element has these coordinates, fastest dimension first. What lies outside of the tensor arrives as zeros.
__device__ inline void load_box(void* to, const CUtensorMap* map, uint64_t* full, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(shared_address(full)), "r"(c0), "r"(c1)
               : "memory");
}
__device__ inline void load_box(void* to, const CUtensorMap* map, uint64_t* full, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(shared_address(full)), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}

}  // namespace longspan::kernels::cuda::hopper
