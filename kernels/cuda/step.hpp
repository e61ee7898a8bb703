// A step as the CUDA kernels take it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel.hpp"

namespace longspan::kernels::cuda {

struct WorkHead {
  int32_t work = 0, head = 0;  // head: the query head itself
};

// A Step whose every pointer and span lies in device memory.
struct DeviceStep {
  Step step;
  ElementType output_type = ElementType::bfloat16;
  std::byte* out = nullptr;              // [rows][heads][head_dim] of output_type, row = Work::q_row + r; for Work::ends
  float* lse = nullptr;                  // [rows][heads]
  int64_t q_rows = 0;                    // rows of step.q (bound of the tensor map)
  int64_t pool_slots = 0;                // units of the pool
  const uint8_t* nonfinite_v = nullptr;  // [pool_slots] or null: unit's V holds NaN or ∞; a partial tile with one takes the slower path
  const WorkHead* items = nullptr;       // (work, head) pairs as they are taken
  int64_t item_count = 0;
  int32_t* counter = nullptr;  // one int, zeroed by the launch (persistent kernel's queue)
};

}  // namespace longspan::kernels::cuda
