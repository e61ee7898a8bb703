#include "kernels/cuda/runtime.hpp"

#include <cuda.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "longspan/error.hpp"

namespace longspan::kernels::cuda {

void check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // else the next check of a launch would find it again
  throw Error({.code = ExitCode::device,
               .what = fmt::format("{} failed", call),
               .seen = fmt::format("{} ({})", cudaGetErrorString(result), cudaGetErrorName(result)),
               .from = "CUDA",
               .mend = "see whether nvidia-smi finds the device in order; an illegal address is a bug: please report it"});
}

CurrentDevice::CurrentDevice(int ordinal) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != ordinal) check(cudaSetDevice(ordinal), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() { cudaSetDevice(before_); }

namespace {

std::byte* allocated(void* data, cudaError_t result, int64_t bytes) {
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    throw Error({.code = ExitCode::device,
                 .what = "too little device memory",
                 .seen = fmt::format("{} of {} MiB free", free >> 20, total >> 20),
                 .expected = fmt::format("{} MiB in one piece", (bytes >> 20) + 1),
                 .from = "cudaMalloc",
                 .mend = "use a smaller --memory, more GPUs, or end what else runs on this one"});
  }
  check(result, "cudaMalloc");
  return static_cast<std::byte*>(data);
}

}  // namespace

std::byte* allocate_device(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t result = cudaMalloc(&data, static_cast<size_t>(std::max<int64_t>(1, bytes)));
  return allocated(data, result, bytes);
}

Allocation allocation_of(const void* memory) {
  // The driver's, through the runtime, so that no program links with its library.
  using AddressRange = CUresult (*)(CUdeviceptr * base, size_t * bytes, CUdeviceptr memory);
  static const auto address_range = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t asked = cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &entry, 3020, cudaEnableDefault, &found);
    return asked == cudaSuccess ? reinterpret_cast<AddressRange>(entry) : nullptr;
  }();
  CUdeviceptr base = 0;
  size_t bytes = 0;
  if (address_range == nullptr || address_range(&base, &bytes, reinterpret_cast<CUdeviceptr>(memory)) != CUDA_SUCCESS) return {};
  return {reinterpret_cast<std::byte*>(base), static_cast<int64_t>(bytes)};
}

std::byte* allocate_pinned(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t result = cudaMallocHost(&data, static_cast<size_t>(std::max<int64_t>(1, bytes)));
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error({.code = ExitCode::environment,
                 .what = "too little host memory that can be pinned",
                 .expected = fmt::format("{} MiB", (bytes >> 20) + 1),
                 .from = "cudaMallocHost",
                 .mend = "use a smaller --host-memory, or raise the limit on locked memory (ulimit -l)"});
  }
  check(result, "cudaMallocHost");
  return static_cast<std::byte*>(data);
}

std::byte* DeviceMemory::reserve(int64_t bytes) {
  if (data_ != nullptr && bytes <= bytes_) return data_;
  cudaFree(std::exchange(data_, nullptr));
  data_ = allocate_device(bytes);
  bytes_ = bytes;
  return data_;
}

namespace {

// Of the current device, for memory in the order of a stream. What one stream frees is never given to another as long as the first has yet
// to come there, as the runtime's own pool would: an exchange's stream waits for other ranks, and who came after it would wait with it.
cudaMemPool_t stream_ordered_pool() {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;  // by device, for good
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  if (pools.count(device) == 0) {
    cudaMemPool_t pool = nullptr;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {cudaMemLocationTypeDevice, device};
    check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
    int no = 0;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &no), "cudaMemPoolSetAttribute");
    pools.emplace(device, pool);
  }
  return pools.at(device);
}

}  // namespace

std::byte* DeviceMemory::reserve(int64_t bytes, const Stream& stream) {
  if (data_ != nullptr && bytes <= bytes_) return data_;
  if (data_ != nullptr) check(cudaFreeAsync(std::exchange(data_, nullptr), stream.get()), "cudaFreeAsync");
  void* data = nullptr;
  const cudaError_t result =
      cudaMallocFromPoolAsync(&data, static_cast<size_t>(std::max<int64_t>(1, bytes)), stream_ordered_pool(), stream.get());
  data_ = allocated(data, result, bytes);
  bytes_ = bytes;
  return data_;
}

std::byte* PinnedMemory::reserve(int64_t bytes) {
  if (data_ != nullptr && bytes <= bytes_) return data_;
  cudaFreeHost(std::exchange(data_, nullptr));
  data_ = allocate_pinned(bytes);
  bytes_ = bytes;
  return data_;
}

std::byte* GrowingPinnedMemory::reserve(int64_t bytes) {
  if (pieces_.empty() || pieces_.back()->bytes() < bytes)
    pieces_.push_back(std::make_unique<PinnedMemory>(std::max(bytes, pieces_.empty() ? 0 : 2 * pieces_.back()->bytes())));
  return pieces_.back()->get();
}

Stream::Stream(Priority priority) {
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority == Priority::high ? greatest : least),
        "cudaStreamCreateWithPriority");
}

Stream::~Stream() { cudaStreamDestroy(stream_); }

void Stream::wait_for(const Event& event) const { check(cudaStreamWaitEvent(stream_, event.get()), "cudaStreamWaitEvent"); }

Event::Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

bool Event::done() const {
  const cudaError_t result = cudaEventQuery(event_);
  if (result == cudaErrorNotReady) return false;
  check(result, "cudaEventQuery");
  return true;
}

}  // namespace longspan::kernels::cuda
