// Units in device memory: made of rows as files and callers have them, checked, and gathered for messages. Everything goes into a stream.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda {

struct UnitRows {
  const std::byte *k = nullptr, *v = nullptr;  // [rows][kv_heads][head_dim], aligned to 16 bytes
  int32_t rows = 0;                            // 1…128
};

// Block b's rows of KV head h (of `kv_heads`) go to the unit pool + slots[b·kv_heads + h]·unit_bytes, K then V, and what is left of 128
// rows becomes zero. nonfinite[slot] says whether the unit's V holds NaN or ∞.
struct PackUnits {
  ElementType type = ElementType::bfloat16;
  int head_dim = 0, kv_heads = 0;
  int64_t blocks = 0;
  const UnitRows* rows = nullptr;  // [blocks]
  const int32_t* slots = nullptr;  // [blocks][kv_heads]
  std::byte* pool = nullptr;
  uint8_t* nonfinite = nullptr;
};
void pack_units(const PackUnits& pack, cudaStream_t stream);

// nonfinite[slot] for units that came in whole.
void flag_nonfinite(const std::byte* pool, const int32_t* slots, int64_t count, ElementType type, int head_dim, uint8_t* nonfinite,
                    cudaStream_t stream);

// KeysInRows::nonfinite of `parts`, numbers of 128 rows each; a list in device memory.
void flag_nonfinite(const KeysInRows& keys, ElementType type, int kv_heads, int head_dim, std::span<const int32_t> parts,
                    cudaStream_t stream);

// Blocks of `block_bytes` (a multiple of 16) at base + slots[i]·block_bytes, one after another to `packed`, and back.
void gather_blocks(const std::byte* base, const int32_t* slots, int64_t count, int64_t block_bytes, std::byte* packed, cudaStream_t stream);
void scatter_blocks(const std::byte* packed, const int32_t* slots, int64_t count, int64_t block_bytes, std::byte* base,
                    cudaStream_t stream);

}  // namespace longspan::kernels::cuda
