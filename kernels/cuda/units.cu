// Units: 16 bytes per thread and access, a block of threads per unit (or a part of a block of bytes).
#include "kernels/cuda/units.hpp"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/runtime.hpp"
#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPartBytes = 64 << 10;  // of a block that is copied by one block of threads

__device__ bool has_nonfinite(uint32_t word, ElementType type) {
  switch (type) {
    case ElementType::float32:
      return (word & 0x7f800000) == 0x7f800000;
    case ElementType::float16:
      return (word & 0x7c00) == 0x7c00 || (word >> 16 & 0x7c00) == 0x7c00;
    case ElementType::bfloat16:
      return (word & 0x7f80) == 0x7f80 || (word >> 16 & 0x7f80) == 0x7f80;
  }
  return true;
}
__device__ bool has_nonfinite(const uint4& words, ElementType type) {
  return has_nonfinite(words.x, type) || has_nonfinite(words.y, type) || has_nonfinite(words.z, type) || has_nonfinite(words.w, type);
}

__global__ void __launch_bounds__(kThreads) pack(PackUnits arguments) {
  const int64_t block = blockIdx.x / arguments.kv_heads, head = blockIdx.x % arguments.kv_heads;
  const int row16 = arguments.head_dim * (arguments.type == ElementType::float32 ? 4 : 2) / 16;  // 16-byte words of a row
  const int slot = arguments.slots[blockIdx.x];
  const UnitRows rows = arguments.rows[block];
  auto* to = reinterpret_cast<uint4*>(arguments.pool) + slot * int64_t{2} * kTile * row16;
  bool odd = false;
  for (int tensor = 0; tensor < 2; ++tensor, to += kTile * row16) {
    const auto* from = reinterpret_cast<const uint4*>(tensor == 0 ? rows.k : rows.v);
    for (int i = threadIdx.x; i < kTile * row16; i += kThreads) {
      const int row = i / row16;
      uint4 words{0, 0, 0, 0};
      if (row < rows.rows) words = from[(int64_t{row} * arguments.kv_heads + head) * row16 + i % row16];
      odd = odd || (tensor == 1 && has_nonfinite(words, arguments.type));
      to[i] = words;
    }
  }
  odd = __syncthreads_or(odd);
  if (threadIdx.x == 0) arguments.nonfinite[slot] = odd ? 1 : 0;
}

__global__ void __launch_bounds__(kThreads)
    flag(const std::byte* pool, const int32_t* slots, ElementType type, int64_t values16, uint8_t* nonfinite) {
  const int slot = slots[blockIdx.x];
  const auto* v = reinterpret_cast<const uint4*>(pool) + (2 * int64_t{slot} + 1) * values16;
  bool odd = false;
  for (int64_t i = threadIdx.x; i < values16; i += kThreads) odd = odd || has_nonfinite(v[i], type);
  odd = __syncthreads_or(odd);
  if (threadIdx.x == 0) nonfinite[slot] = odd ? 1 : 0;
}

__global__ void __launch_bounds__(kThreads) flag_rows(KeysInRows keys, ElementType type, int kv_heads, int row16, const int32_t* parts) {
  const int64_t part = parts[blockIdx.x], first = part * kTile;
  uint8_t* flags = keys.nonfinite + part * kv_heads;
  for (int head = threadIdx.x; head < kv_heads; head += kThreads) flags[head] = 0;
  __syncthreads();
  const int words = static_cast<int>(min(int64_t{kTile}, keys.rows - first)) * kv_heads * row16;
  const uint4* v = reinterpret_cast<const uint4*>(keys.v) + first * kv_heads * row16;
#pragma unroll 8
  for (int i = threadIdx.x; i < words; i += kThreads)
    if (has_nonfinite(__ldcs(v + i), type)) flags[i / row16 % kv_heads] = 1;
}

template <bool kGather>
__global__ void __launch_bounds__(kThreads)
    move_blocks(std::byte* base, const int32_t* slots, int64_t block16, int parts, std::byte* packed) {
  const int64_t number = blockIdx.x / parts, part = blockIdx.x % parts;
  auto* scattered = reinterpret_cast<uint4*>(base) + slots[number] * block16;
  auto* dense = reinterpret_cast<uint4*>(packed) + number * block16;
  const int64_t end = min(block16, (part + 1) * kPartBytes / 16);
  for (int64_t i = part * kPartBytes / 16 + threadIdx.x; i < end; i += kThreads) {
    if (kGather)
      dense[i] = scattered[i];
    else
      scattered[i] = dense[i];
  }
}

template <bool kGather>
void move(std::byte* base, const int32_t* slots, int64_t count, int64_t block_bytes, std::byte* packed, cudaStream_t stream) {
  if (count == 0) return;
  const auto parts = static_cast<int>((block_bytes + kPartBytes - 1) / kPartBytes);
  move_blocks<kGather><<<static_cast<unsigned>(count * parts), kThreads, 0, stream>>>(base, slots, block_bytes / 16, parts, packed);
  check(cudaGetLastError(), "launch of move_blocks");
}

}  // namespace

void pack_units(const PackUnits& arguments, cudaStream_t stream) {
  if (arguments.blocks == 0) return;
  pack<<<static_cast<unsigned>(arguments.blocks * arguments.kv_heads), kThreads, 0, stream>>>(arguments);
  check(cudaGetLastError(), "launch of pack");
}

void flag_nonfinite(const std::byte* pool, const int32_t* slots, int64_t count, ElementType type, int head_dim, uint8_t* nonfinite,
                    cudaStream_t stream) {
  if (count == 0) return;
  flag<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(pool, slots, type, unit_bytes(type, head_dim) / 32, nonfinite);
  check(cudaGetLastError(), "launch of flag");
}

void flag_nonfinite(const KeysInRows& keys, ElementType type, int kv_heads, int head_dim, std::span<const int32_t> parts,
                    cudaStream_t stream) {
  if (parts.empty()) return;
  const int row16 = head_dim * static_cast<int>(size_of(type)) / 16;
  flag_rows<<<static_cast<unsigned>(parts.size()), kThreads, 0, stream>>>(keys, type, kv_heads, row16, parts.data());
  check(cudaGetLastError(), "launch of flag_rows");
}

void gather_blocks(const std::byte* base, const int32_t* slots, int64_t count, int64_t block_bytes, std::byte* packed,
                   cudaStream_t stream) {
  move<true>(const_cast<std::byte*>(base), slots, count, block_bytes, packed, stream);
}

void scatter_blocks(const std::byte* packed, const int32_t* slots, int64_t count, int64_t block_bytes, std::byte* base,
                    cudaStream_t stream) {
  move<false>(base, slots, count, block_bytes, const_cast<std::byte*>(packed), stream);
}

}  // namespace longspan::kernels::cuda
