// How fast rows come to this rank's GPU and leave it, and are copied inside.
#pragma once

#include <cstdint>

#include "kernels/device.hpp"
#include "kernels/gpus.hpp"

namespace longspan::doctor {

struct GpuRate {
  double copy = 0;                  // bytes/s inside its memory, read and written ones together
  double to_gpu = 0, from_gpu = 0;  // bytes/s out of pinned host memory and back
};
// `device` is on `gpu`. Takes `bytes` of pinned host memory and of the GPU's, and for the copies inside what kernels::copy_rate() takes.
GpuRate gpu_rate(const kernels::Gpu& gpu, kernels::Device& device, int64_t bytes);

}  // namespace longspan::doctor
