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

// Two 16-bit elements, zero where they are NaN or ∞.
template <typename T>
__device__ inline uint32_t finite_only(uint32_t pair) {
  if ((pair & kExponent<T>) == kExponent<T>) pair &= 0xffff0000;
  if ((pair >> 16 & kExponent<T>) == kExponent<T>) pair &= 0xffff;
  return pair;
}

constexpr float kMinusInfinity = -__builtin_inff();

// The maximum to subtract: a row that has seen only −∞ (or nothing) must not make −∞ − −∞.
__device__ inline float finite_shift(float maximum) { return maximum == kMinusInfinity ? 0.0f : maximum; }

// LSE of a state, natural: (m + log2 l)·ln 2.
__device__ inline float natural_lse(float m, float l) { return l == 0 ? kMinusInfinity : (m + log2f(l)) * 0.693147180559945f; }

// What sums over weighted values become in the end: divided by the sum of weights, 0 where nothing has been seen. One definition for all
// kernels, since a job's bits must not depend on whether a list ends in a step or is finished later.
struct Normalise {
  float inverse;
  bool empty;
  __device__ explicit Normalise(float l) : inverse(1 / l), empty(l == 0) {}
  __device__ float operator()(float o) const { return empty ? 0 : o * inverse; }
};

}  // namespace longspan::kernels::cuda
