// find_gpus() and its companions in a build without CUDA.
#include "kernels/gpus.hpp"
#include "longspan/error.hpp"

namespace longspan::kernels {

Gpus find_gpus() { return {{}, "this program was built without CUDA"}; }
int64_t free_memory(const Gpu&) { internal_error("a GPU is asked for its memory in a build without CUDA"); }
std::unique_ptr<Device> open_gpu(const Gpu&, const GpuOptions&) { internal_error("a GPU is opened in a build without CUDA"); }
void use_portable_kernel(bool) {}
std::string gpu_kernel(const Gpu&, ElementType, int, float) { return {}; }
std::string cuda_toolkit_version() { return {}; }
std::string cuda_driver_version() { return {}; }

}  // namespace longspan::kernels
