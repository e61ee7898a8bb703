// Which forward kernel runs.
#include "kernels/cuda/attention.hpp"

#include <atomic>

#include "kernels/cuda/hopper_forward.hpp"
#include "kernels/cuda/runtime.hpp"

namespace longspan::kernels::cuda {

namespace {

std::atomic<bool> portable_only = false;

bool takes_hopper(ElementType type, int head_dim, float scale, int device_major) {
  return !portable_only && hopper_supports(type, head_dim, scale, device_major);
}

int current_major() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  return major;
}

}  // namespace

void force_portable(bool portable) { portable_only = portable; }

const char* forward_kernel(ElementType type, int head_dim, float scale, int device_major) {
  if (takes_hopper(type, head_dim, scale, device_major)) return "Hopper (WGMMA)";
  return type == ElementType::float32 ? "portable (FMA)" : "portable (mma.sync)";
}

bool takes_hopper(const Step& step) { return takes_hopper(step.type, step.head_dim, step.scale, current_major()); }

void forward(const DeviceStep& step, cudaStream_t stream) {
  if (takes_hopper(step.step)) return forward_hopper(step, stream);
  forward_portable(step, stream);
}

}  // namespace longspan::kernels::cuda
