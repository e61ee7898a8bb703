// What a GPU gives at best: cuBLAS' matrix product and a copy inside its memory. cuBLAS is looked for when the program runs, and its few
// functions are declared here, so that neither build nor program depends on it.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <map>
#include <random>
#include <vector>

#include "kernels/cuda/runtime.hpp"
#include "kernels/gpus.hpp"

namespace longspan::kernels {

namespace {

constexpr int kSize = 8192;            // of the matrices: large enough for the product to fill any GPU, 1.4 ms on a fast one
constexpr int kCompute32F = 68;        // CUBLAS_COMPUTE_32F
constexpr int kDefaultAlgorithm = -1;  // CUBLAS_GEMM_DEFAULT
constexpr int kPlain = 0, kTransposed = 1;
constexpr int64_t kCopyBytes = int64_t{1} << 30;

struct Cublas {
  int (*create)(void** handle) = nullptr;
  int (*set_stream)(void* handle, cudaStream_t stream) = nullptr;
  int (*gemm)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, cudaDataType a_type,
              int a_stride, const void* b, cudaDataType b_type, int b_stride, const void* beta, void* c, cudaDataType c_type, int c_stride,
              int compute, int algorithm) = nullptr;

  Cublas() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11"}) {
      void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library == nullptr) continue;
      create = reinterpret_cast<decltype(create)>(dlsym(library, "cublasCreate_v2"));
      set_stream = reinterpret_cast<decltype(set_stream)>(dlsym(library, "cublasSetStream_v2"));
      gemm = reinterpret_cast<decltype(gemm)>(dlsym(library, "cublasGemmEx"));
      return;
    }
  }
  bool is_there() const { return create != nullptr && set_stream != nullptr && gemm != nullptr; }
};

cudaDataType cuda_type(ElementType type) {
  return type == ElementType::float32 ? CUDA_R_32F : type == ElementType::float16 ? CUDA_R_16F : CUDA_R_16BF;
}

// Random numbers: power, and so the clock, depends on what is multiplied.
void fill(const cuda::DeviceMemory& memory, int64_t bytes, ElementType type) {
  static std::map<ElementType, std::vector<std::byte>> pieces;
  constexpr int64_t kElements = 1 << 20;
  std::vector<std::byte>& piece = pieces[type];
  if (piece.empty()) {
    piece.resize(kElements * size_of(type));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kElements; ++i) store_element(piece.data(), type, i, normal(random));
  }
  for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(piece.size()))
    cuda::check(cudaMemcpy(memory.get() + at, piece.data(), piece.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
}

// Seconds that `work`, which puts something into the stream, takes there.
template <typename Work>
double seconds_of(const cuda::Stream& stream, Work work) {
  const auto timed = [&] {
    cudaEvent_t begin = nullptr, end = nullptr;
    cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
    cuda::check(cudaEventCreate(&end), "cudaEventCreate");
    cuda::check(cudaEventRecord(begin, stream.get()), "cudaEventRecord");
    work();
    cuda::check(cudaEventRecord(end, stream.get()), "cudaEventRecord");
    cuda::check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    cuda::check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    cudaEventDestroy(begin), cudaEventDestroy(end);
    return milliseconds * 1e-3;
  };
  timed();  // clocks, caches, cuBLAS' choice
  return timed();
}

}  // namespace

double product_rate(const Gpu& gpu, ElementType type) {
  static const Cublas cublas;
  if (!cublas.is_there()) return 0;
  const cuda::CurrentDevice current(gpu.ordinal);
  const cuda::Stream stream;
  static void* handle = nullptr;  // one for the process, on its GPU: making one takes long
  if (handle == nullptr && cublas.create(&handle) != 0) return 0;
  const int64_t elements = int64_t{kSize} * kSize, bytes = elements * static_cast<int64_t>(size_of(type));
  const cuda::DeviceMemory a(bytes), b(bytes), c(bytes);
  fill(a, bytes, type), fill(b, bytes, type);
  const float one = 1, zero = 0;
  bool right = cublas.set_stream(handle, stream.get()) == 0;
  constexpr int kTimes = 3;
  const double seconds = seconds_of(stream, [&] {
    for (int time = 0; time < kTimes; ++time)
      right = right && cublas.gemm(handle, kTransposed, kPlain, kSize, kSize, kSize, &one, a.get(), cuda_type(type), kSize, b.get(),
                                   cuda_type(type), kSize, &zero, c.get(), cuda_type(type), kSize, kCompute32F, kDefaultAlgorithm) == 0;
  });
  return right ? kTimes * 2.0 * kSize * kSize * kSize / seconds : 0;
}

double copy_rate(const Gpu& gpu) {
  const cuda::CurrentDevice current(gpu.ordinal);
  const cuda::Stream stream;
  const cuda::DeviceMemory from(kCopyBytes), to(kCopyBytes);
  const double seconds = seconds_of(stream, [&] {
    cuda::check(cudaMemcpyAsync(to.get(), from.get(), kCopyBytes, cudaMemcpyDeviceToDevice, stream.get()), "cudaMemcpyAsync");
  });
  return 2.0 * static_cast<double>(kCopyBytes) / seconds;
}

}  // namespace longspan::kernels
