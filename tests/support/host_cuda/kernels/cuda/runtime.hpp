// What comm/cuda/peer_exchange.cpp needs of CUDA, done by the host: device memory that other processes can open, and streams whose work is
// done late, a piece now and then when somebody asks whether it is over, so that what only seems to be in order is found out. Stands in for
// kernels/cuda/runtime.hpp where the tests' include directory comes first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "longspan/error.hpp"
#include "tests/support/host_cuda/shared_memory.hpp"

namespace longspan::testing {

class StreamWork {
 public:
  void ask(std::function<void()> piece) { pieces_.push_back(std::move(piece)), ++asked_; }
  int64_t asked() const { return asked_; }
  int64_t done() const { return done_; }
  void do_one() {
    if (pieces_.empty()) return;
    const std::function<void()> piece = std::move(pieces_.front());
    pieces_.pop_front();
    piece();
    ++done_;
  }
  void do_until(int64_t count) {
    while (done_ < count) do_one();
  }

 private:
  std::deque<std::function<void()>> pieces_;
  int64_t asked_ = 0, done_ = 0;
};

}  // namespace longspan::testing

using cudaStream_t = longspan::testing::StreamWork*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDefault };
struct cudaIpcMemHandle_t {
  longspan::testing::SharedMemoryName name;
};
constexpr unsigned cudaIpcMemLazyEnablePeerAccess = 1;

inline std::map<const void*, int64_t>& opened() {
  static std::map<const void*, int64_t> bytes;
  return bytes;
}
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "it is not there"; }
inline cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, const void* memory) {
  handle->name = longspan::testing::name_of_shared(memory);
  return handle->name.bytes > 0 ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaIpcOpenMemHandle(void** memory, const cudaIpcMemHandle_t& handle, unsigned) {
  *memory = longspan::testing::open_shared(handle.name);
  if (*memory == nullptr) return cudaErrorInvalidValue;
  opened()[*memory] = handle.name.bytes;
  return cudaSuccess;
}
inline cudaError_t cudaIpcCloseMemHandle(void* memory) {
  longspan::testing::close_shared(static_cast<std::byte*>(memory), opened().extract(memory).mapped());
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  stream->ask([to, from, bytes] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  stream->do_until(stream->asked());
  return cudaSuccess;
}

namespace longspan::kernels::cuda {

inline void check(cudaError_t result, const char* call) {
  if (result != cudaSuccess) throw Error({.code = ExitCode::device, .what = std::string(call) + " failed"});
}

struct Allocation {
  const std::byte* base = nullptr;
  int64_t bytes = 0;
};
inline Allocation allocation_of(const void* memory) {
  const std::byte* const begin = testing::begin_of_shared(memory);
  return begin == nullptr ? Allocation{} : Allocation{begin, testing::name_of_shared(begin).bytes};
}

class CurrentDevice {
 public:
  explicit CurrentDevice(int) {}
};

class Event;

class Stream {
 public:
  enum class Priority { normal, high };
  explicit Stream(Priority) {}
  cudaStream_t get() const { return work_.get(); }
  void wait_for(const Event& event) const;

 private:
  std::shared_ptr<testing::StreamWork> work_ = std::make_shared<testing::StreamWork>();
};

class Event {
 public:
  void record(cudaStream_t stream) { stream_ = stream, at_ = stream->asked(); }
  bool done() const {
    static std::minstd_rand random(7);
    if (stream_ != nullptr && stream_->done() < at_ && random() % 3 == 0) stream_->do_one();
    return stream_ == nullptr || stream_->done() >= at_;
  }
  void wait() const {
    if (stream_ != nullptr) stream_->do_until(at_);
  }

 private:
  cudaStream_t stream_ = nullptr;
  int64_t at_ = 0;
};

inline void Stream::wait_for(const Event& event) const {
  work_->ask([event] { event.wait(); });
}

class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(int64_t bytes) { grow(bytes); }
  ~DeviceMemory() { testing::free_shared(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  std::byte* reserve(int64_t bytes, const Stream& stream) {
    cudaStreamSynchronize(stream.get());
    return grow(bytes);
  }
  std::byte* get() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* grow(int64_t bytes) {
    if (bytes <= bytes_) return data_;
    testing::free_shared(data_);
    data_ = testing::allocate_shared(bytes), bytes_ = bytes;
    return data_;
  }
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

class PinnedMemory {
 public:
  explicit PinnedMemory(int64_t bytes) : data_(static_cast<size_t>(bytes)) {}
  std::byte* get() { return data_.data(); }
  const std::byte* get() const { return data_.data(); }
  int64_t bytes() const { return static_cast<int64_t>(data_.size()); }

 private:
  std::vector<std::byte> data_;
};

}  // namespace longspan::kernels::cuda
