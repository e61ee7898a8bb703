// The CPUs of this process as a device: its memory is plain memory, its compute a pool of threads.
#pragma once

#include "kernels/cpu/thread_pool.hpp"
#include "kernels/device.hpp"

namespace longspan::kernels::cpu {

class CpuDevice : public Device {
 public:
  explicit CpuDevice(int threads) : threads_(threads) {}

  std::string name() const override;
  bool finishes_in_steps() const override { return false; }
  Buffer allocate(int64_t bytes) override;
  bool memory_is_host() const override { return true; }
  Reach reach(const void*) const override { return {.by_host = true, .straight = true, .in_kernels = true}; }
  Buffer allocate_host(int64_t bytes) override { return allocate(bytes); }
  void clear(void* memory, int64_t bytes) override;
  void upload(const void* from, int64_t bytes, void* to) override;
  void download(const void* from, int64_t bytes, void* to) override;
  void start_upload(const void* from, int64_t bytes, void* to) override { upload(from, bytes, to); }
  void start_download(const void* from, int64_t bytes, void* to) override { download(from, bytes, to); }
  void load_rows(int64_t rows, int64_t row_bytes, const ReadRows& read, std::byte* to) override;
  void load_units(const KeyBlocks& blocks, const ReadKeys& read, const Pool& pool) override;
  void store_rows(const Results& results, int64_t rows, int heads, int head_dim, const PlaceRows& place, const WriteRows& write) override;
  void units_arrived(const Pool&, std::span<const int32_t>, ElementType, int) override {}
  void start(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) override;
  bool wait_for(double seconds) override { return threads_.wait_for(seconds); }
  void clear_states(int64_t count, int head_dim, float* m, float* l, float* o) override;
  using Device::finish;
  void finish(std::span<const Finish> all) override;
  void merge(const Merge& merge) override;
  void merge_blocks(std::span<const MergeBlocks> all) override;

 private:
  ThreadPool threads_;
};

}  // namespace longspan::kernels::cpu
