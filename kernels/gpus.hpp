// The GPUs that this process sees, and devices on them. Without CUDA in the build, or without a driver or a GPU at run time, there are
// none, and why is told.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.hpp"

namespace longspan::kernels {

struct Gpu {
  int ordinal = 0;           // CUDA's number, in this process
  std::string name;          // "NVIDIA H200"
  std::string id;            // PCI address: the same for all processes of a host
  int major = 0, minor = 0;  // compute capability
  int64_t memory = 0;        // bytes
};

struct Gpus {
  std::vector<Gpu> usable;
  std::string why_none;  // when there are none: "this program was built without CUDA", "no CUDA driver", …
};
Gpus find_gpus();

// Bytes of the GPU's memory that nobody uses. Makes the process' context there, which takes some.
int64_t free_memory(const Gpu& gpu);

struct GpuOptions {
  int64_t host_bytes = int64_t{128} << 20;  // of pinned host memory: two buffers on the way in, two on the way out
};
std::unique_ptr<Device> open_gpu(const Gpu& gpu, const GpuOptions& options = {});

// Takes the portable kernels even where the device has better ones (tests and comparisons).
void use_portable_kernel(bool portable);
// Which kernel a step takes on a GPU: "Hopper (WGMMA)", "portable (mma.sync)", "portable (FMA)".
std::string gpu_kernel(const Gpu& gpu, ElementType type, int head_dim, float scale);

// Versions for the user: "13.0", or empty when CUDA is not built in (the driver: not there).
std::string cuda_toolkit_version();
std::string cuda_driver_version();

}  // namespace longspan::kernels
