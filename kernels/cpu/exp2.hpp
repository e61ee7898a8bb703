// For tests of the kernels' insides.
#pragma once

#include <cstdint>

#include "longspan/element_type.hpp"

namespace longspan::kernels::cpu {

// out[i] = 2^in[i] as the softmax of that input type computes it (see exp2-inl.hpp), by the instruction set that dispatch has chosen.
void exp2_array(ElementType type, const float* in, float* out, int64_t count);

// Whether bfloat16 may use AVX-512 BF16 where the CPU has it (yes, until this says no). Not while a step runs.
void allow_avx512_bf16(bool allowed);

}  // namespace longspan::kernels::cpu
