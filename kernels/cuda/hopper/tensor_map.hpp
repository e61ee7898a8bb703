// Tensor maps, by which the copy unit of sm_90 (copy.cuh) finds boxes of a tensor. Host side.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <array>
#include <string>

#include "longspan/error.hpp"

namespace longspan::kernels::cuda::hopper {

// A tensor and its boxes. Dimensions fastest first; strides in bytes, from dimension 1 on. Boxes lie in shared memory row after row;
// swizzled, their rows have 128 bytes. Throws Error(device).
template <size_t Rank>
CUtensorMap tensor_map(CUtensorMapDataType type, CUtensorMapSwizzle swizzle, const void* base, std::array<cuuint64_t, Rank> size,
                       std::array<cuuint64_t, Rank - 1> stride, std::array<cuuint32_t, Rank> box) {
  static const auto encode = [] {  // through the runtime, so that no program links with the driver's library
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t asked = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (asked != cudaSuccess || entry == nullptr)
      throw Error({.code = ExitCode::device, .what = "the driver has no cuTensorMapEncodeTiled", .seen = cudaGetErrorString(asked)});
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  CUtensorMap map;
  std::array<cuuint32_t, Rank> step;
  step.fill(1);
  const CUresult result =
      encode(&map, type, Rank, const_cast<void*>(base), size.data(), stride.data(), box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Error({.code = ExitCode::device, .what = "cuTensorMapEncodeTiled failed", .seen = std::to_string(result)});
  return map;
}

}  // namespace longspan::kernels::cuda::hopper
