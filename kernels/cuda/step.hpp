// A step as the CUDA kernels take it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda {

// What a block of threads takes off the queue: rows of one Work, or of two of the same KV head, for one query head.
struct Item {
  int32_t head = 0;       // the query head itself
  int32_t work = 0;       // the first Work,
  int32_t second = -1;    // the other or -1
  int32_t from_half = 0;  // and which 64-row half of the first one the rows begin with: as many as the kernel takes at a time (queue.hpp)
  bool operator==(const Item&) const = default;
};

// A Step whose every pointer and span lies in device memory.
struct DeviceStep {
  Step step;
  ElementType output_type = ElementType::bfloat16;
  std::byte* out = nullptr;              // [rows][heads][head_dim] of output_type, row = Work::q_row + r; for Work::ends
  float* lse = nullptr;                  // [rows][heads]
  int64_t q_rows = 0;                    // rows of step.q (bound of the tensor map)
  int64_t state_rows = 0;                // rows of step.o, aligned to 16 bytes, with all that Work continues; 0: all Work begins
  int64_t pool_slots = 0;                // units of the pool
  const uint8_t* nonfinite_v = nullptr;  // [pool_slots] or null: unit's V holds NaN or ∞; a partial tile with one takes the slower path
  const Item* items = nullptr;           // as they are taken
  int64_t item_count = 0;
  int halves_at_a_time = 2;     // of query blocks, that an item takes at most; 3 for Hopper's kernel of head_dim 64 only
  uint32_t* counter = nullptr;  // the persistent kernel's place in `items`: 0 before, and 0 again after
};

}  // namespace longspan::kernels::cuda
