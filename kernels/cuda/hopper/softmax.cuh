// Masks and the online softmax on the registers of a warp-group product (see wgmma.cuh): a thread holds two rows, and of every 8 keys
// the two from 2·(lane%4) on.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda::hopper {

// Bits [begin, end) of a word; bounds may lie outside.
__device__ inline uint32_t bits_between(int begin, int end) {
  begin = max(begin, 0);
  uint32_t bits;
  asm("bmsk.clamp.b32 %0, %1, %2;" : "=r"(bits) : "r"(begin), "r"(max(end - begin, 0)));
  return bits;
}

// Which keys of a tile a row looks at.
struct Mask {
  int form;  // Tile::Form
  int keys;
  uint32_t payload[2];

  // For the 128 keys from first_key (0 or 64) on, 32 a word, shifted so that the thread's keys of every 8 are bits 0 and 1; of rows `row`
  // and row + 8. Words past the tile are not used. All threads of a warp take the same way.
  __device__ void words(const MaskBits* masks, int row, int first_key, int lane, uint32_t (&allowed)[2][4]) const {
    const int first = first_key + 2 * (lane % 4);
    if (form == static_cast<int>(Tile::Form::band)) {  // lo <= row − key <= hi; sides without a bound may be the extreme int32
      const int lo = max(static_cast<int>(payload[0]), -kTile), hi = min(static_cast<int>(payload[1]), kTile);
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int row_here = row + 8 * r - first - 32 * w;
          allowed[r][w] = bits_between(row_here - hi, row_here - lo + 1);
        }
    } else if (form == static_cast<int>(Tile::Form::subtiles)) {  // bit 8·(row/16) + key/16; both rows are of one 16
      const uint32_t line = (row < 64 ? payload[0] : payload[1]) >> 8 * (row / 16 % 4) >> first_key / 16;
#pragma unroll
      for (int w = 0; w < 4; ++w)
        allowed[0][w] = allowed[1][w] = ((line >> 2 * w & 1 ? 0xffff : 0) | (line >> 2 * w & 2 ? 0xffff0000 : 0)) >> 2 * (lane % 4);
    } else if (form == static_cast<int>(Tile::Form::bits)) {
      const int64_t index = static_cast<int64_t>(uint64_t{payload[1]} << 32 | payload[0]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint4 stored = __ldg(reinterpret_cast<const uint4*>(&masks[index].words[2 * (row + 8 * r)]));
        allowed[r][0] = (first_key ? stored.z : stored.x) >> 2 * (lane % 4);
        allowed[r][1] = (first_key ? stored.w : stored.y) >> 2 * (lane % 4);
        allowed[r][2] = stored.z >> 2 * (lane % 4), allowed[r][3] = stored.w >> 2 * (lane % 4);
      }
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w) allowed[0][w] = allowed[1][w] = 0xffffffff;
    }
    if (keys < kTile) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t there = bits_between(0, keys - first - 32 * w);
        allowed[0][w] &= there, allowed[1][w] &= there;
      }
    }
  }
};

template <int Count>
__device__ inline void forbid(float (&s)[Count], const uint32_t (&allowed)[2][4]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const int r = i / 2 % 2, octet = i / 4;
    if (!(allowed[r][octet / 4] >> (octet % 4 * 8 + i % 2) & 1)) s[i] = -std::numeric_limits<float>::infinity();
  }
}

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Over a row's four threads. Each thread gets the same bits: x + y = y + x.
__device__ inline float row_maximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// A row's probabilities are 2^(s·scale − m), `scale` positive, and l is their sum so far. m must move on only where a score lies over this:
// where its probability would be over 1 and over l/8, and over 256 in any case, for float16's sake. A score under it may get a probability
// over 1, which is rounded where that of the maximum, 1, is not; but it is a small part of the row then. So most entries need no new m, and
// multiply nothing older by anything (the lazy rescaling of FlashAttention-4, which has another limit).
__device__ inline float highest_without_new_maximum(float m, float l) {
  float log;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log) : "f"(l));
  return m + fminf(fmaxf(log - 3, 0), 8);
}

// The largest of this thread's scores of each row.
template <int Count>
__device__ inline void largest(const float (&s)[Count], float (&high)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float chain[4] = {s[2 * r], s[2 * r + 1], s[2 * r + 4], s[2 * r + 5]};  // a maximum takes several cycles
#pragma unroll
    for (int i = 8 + 2 * r; i < Count; i += 8)
      chain[0] = fmaxf(chain[0], s[i]), chain[1] = fmaxf(chain[1], s[i + 1]), chain[2] = fmaxf(chain[2], s[i + 4]),
      chain[3] = fmaxf(chain[3], s[i + 5]);
    high[r] = fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3]));
  }
}

// Two values rounded to 16 bits, the first in the low half.
template <typename Element>
__device__ inline uint32_t pack(float first, float second) {
  uint32_t pair;
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  }
  return pair;
}

template <typename Element>
__device__ inline float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
}

// In every four registers: register i of a row's thread t becomes register t of its thread i (a 4 × 4 transposition).
template <int Count>
__device__ inline void exchange(uint32_t (&x)[Count], int lane) {
#pragma unroll
  for (int base = 0; base < Count; base += 4)
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
      for (int i = base; i < base + 4; ++i) {
        if (i & bit) continue;
        const bool upper = lane & bit;
        const uint32_t got = __shfl_xor_sync(0xffffffff, upper ? x[i] : x[i + bit], bit);
        (upper ? x[i] : x[i + bit]) = got;
      }
}

}  // namespace longspan::kernels::cuda::hopper
