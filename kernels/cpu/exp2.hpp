// The kernel's own exponential on an array, for tests of its error.
#pragma once

#include <cstdint>

namespace longspan::kernels::cpu {

// out[i] = 2^in[i] as the softmax computes it (see exp2-inl.hpp), by the instruction set that dispatch has chosen.
void exp2_array(const float* in, float* out, int64_t count);

}  // namespace longspan::kernels::cpu
