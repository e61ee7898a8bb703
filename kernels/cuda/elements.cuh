// Element types on the device: loads, stores and rounding as longspan/element_type.hpp says.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "longspan/element_type.hpp"

namespace longspan::kernels::cuda {

// Two neighbours at an even index of an array of `type`.
__device__ inline void store_pair(std::byte* array, ElementType type, int64_t index, float a, float b) {
  switch (type) {
    case ElementType::float32:
      reinterpret_cast<float2*>(array)[index / 2] = make_float2(a, b);
      break;
    case ElementType::float16:
      reinterpret_cast<__half2*>(array)[index / 2] = __floats2half2_rn(a, b);
      break;
    case ElementType::bfloat16:
      reinterpret_cast<__nv_bfloat162*>(array)[index / 2] = __floats2bfloat162_rn(a, b);
      break;
  }
}

// Bits of a 16-bit element that are all ones in NaN and ∞, and only there.
template <typename T>
constexpr uint32_t kExponent = 0x7c00;
template <>
constexpr uint32_t kExponent<__nv_bfloat16> = 0x7f80;

constexpr float kMinusInfinity = -__builtin_inff();

// The maximum to subtract: a row that has seen only −∞ (or nothing) must not make −∞ − −∞.
__device__ inline float finite_shift(float maximum) { return maximum == kMinusInfinity ? 0.0f : maximum; }

// LSE of a state, natural: (m + log2 l)·ln 2.
__device__ inline float natural_lse(float m, float l) { return l == 0 ? kMinusInfinity : (m + log2f(l)) * 0.693147180559945f; }

}  // namespace longspan::kernels::cuda
