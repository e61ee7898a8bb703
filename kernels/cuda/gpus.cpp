#include "kernels/gpus.hpp"

#include <fmt/format.h>

#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/device.hpp"
#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels {

namespace {

constexpr int kLeastMajor = 8;  // what the kernels are compiled for

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

}  // namespace

Gpus find_gpus() {
  Gpus gpus;
  int count = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&count); result != cudaSuccess) {
    cudaGetLastError();
    gpus.why_none = result == cudaErrorInsufficientDriver ? "no CUDA driver, or one that is older than this program's toolkit"
                                                          : cudaGetErrorString(result);
    return gpus;
  }
  gpus.why_none = "CUDA finds no GPU";
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) continue;
    if (properties.major < kLeastMajor) {
      gpus.why_none =
          fmt::format("{} has compute capability {}.{}, too little for these kernels", properties.name, properties.major, properties.minor);
      continue;
    }
    gpus.usable.push_back({.ordinal = ordinal,
                           .name = properties.name,
                           .id = fmt::format("{:04x}:{:02x}:{:02x}", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID),
                           .major = properties.major,
                           .minor = properties.minor,
                           .memory = static_cast<int64_t>(properties.totalGlobalMem)});
  }
  if (!gpus.usable.empty()) gpus.why_none.clear();
  return gpus;
}

int64_t free_memory(const Gpu& gpu) {
  const cuda::CurrentDevice current(gpu.ordinal);
  size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(free);
}

std::unique_ptr<Device> open_gpu(const Gpu& gpu, const GpuOptions& options) { return std::make_unique<cuda::GpuDevice>(gpu, options); }

void use_portable_kernel(bool portable) { cuda::force_portable(portable); }
std::string gpu_kernel(const Gpu& gpu, ElementType type, int head_dim, float scale) {
  return cuda::forward_kernel(type, head_dim, scale, gpu.major);
}

std::string cuda_toolkit_version() { return version_text(CUDART_VERSION); }

std::string cuda_driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return {};
  return version_text(version);
}

}  // namespace longspan::kernels
