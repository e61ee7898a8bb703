// RAII over the CUDA runtime: memory, streams, events. Every call's result is checked; a failure is Error(device) with CUDA's own text.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace longspan::kernels::cuda {

// Throws Error(device) unless `result` is cudaSuccess. Use: check(cudaStreamSynchronize(s), "cudaStreamSynchronize").
void check(cudaError_t result, const char* call);

// The calling thread's device for the time of a scope: the runtime keeps one per thread.
class CurrentDevice {
 public:
  explicit CurrentDevice(int ordinal);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
};

// `bytes` of the current device's memory, at least one; Error(device) that says what is free when there is too little.
std::byte* allocate_device(int64_t bytes);
// Pinned host memory: copies to and from it run beside everything else, at the link's speed.
std::byte* allocate_pinned(int64_t bytes);

// The piece of cudaMalloc's that holds this address; without bytes where it is none.
struct Allocation {
  std::byte* base = nullptr;
  int64_t bytes = 0;
};
Allocation allocation_of(const void* memory);

class Event;
class Stream;

// Memory that grows when asked to (what was in it is lost) and is given back at the end.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(int64_t bytes) { reserve(bytes); }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  std::byte* reserve(int64_t bytes);  // waits for the device when it grows
  // For memory that one stream uses at a time: in the order of its work, so that nobody waits. Error(device) as above.
  std::byte* reserve(int64_t bytes, const Stream& stream);
  std::byte* get() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(int64_t bytes) { reserve(bytes); }
  ~PinnedMemory() { cudaFreeHost(data_); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  std::byte* reserve(int64_t bytes);
  std::byte* get() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Pinned memory that grows in use: giving pinned memory back waits for all that the device does, so what became too small stays to the end.
class GrowingPinnedMemory {
 public:
  std::byte* reserve(int64_t bytes);  // what was in it is lost

 private:
  std::vector<std::unique_ptr<PinnedMemory>> pieces_;  // each at least twice as large as the one before
};

class Stream {
 public:
  enum class Priority { normal, high };
  explicit Stream(Priority priority = Priority::normal);  // of the current device; waits for no other stream
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void synchronize() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
  void wait_for(const Event& event) const;  // what is asked for later comes after what the event was recorded behind; returns at once

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  bool done() const;  // what was in the stream at record() has run; true when nothing was recorded yet
  void wait() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace longspan::kernels::cuda
