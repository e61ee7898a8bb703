// Forward kernel for Hopper (sm_90a): TMA, WGMMA, warp-specialised, persistent.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/step.hpp"

namespace longspan::kernels::cuda {

// Whether forward_hopper takes this: 16-bit elements, head_dim 64 or 128, a positive scale, a device of compute capability 9.x.
bool hopper_supports(ElementType type, int head_dim, float scale, int device_major);

// Enqueues the step: Work that `begins` starts from the empty state, other Work continues from the state of its rows; Work that `ends`
// writes O and LSE (nothing else), other Work its rows' state. Uses step.items, step.counter; writes no row at or past Work::rows.
// The bits of a row depend on nothing but its state and its own tiles in the order given: not on how a list is cut into steps, on the
// other items, or on timing. Throws Error(device) when the launch fails.
void forward_hopper(const DeviceStep& step, cudaStream_t stream);

}  // namespace longspan::kernels::cuda
