// A GPU as a device. Steps run in a stream of their own, or two in turns, their lists come in another, rows in and out in two more, each
// through two pinned buffers: while one is filled from a file (or written to one), the other is on the link. Rows in pinned memory need no
// buffers.
#pragma once

#include <array>
#include <chrono>
#include <list>
#include <map>
#include <vector>

#include "kernels/cuda/kept_memory.hpp"
#include "kernels/cuda/runtime.hpp"
#include "kernels/cuda/step.hpp"
#include "kernels/device.hpp"
#include "kernels/gpus.hpp"

namespace longspan::kernels::cuda {

class GpuDevice : public Device {
 public:
  GpuDevice(Gpu gpu, const GpuOptions& options);

  std::string name() const override { return gpu_.name; }
  int ordinal() const { return gpu_.ordinal; }
  bool finishes_in_steps() const override { return true; }
  int spare_threads() const override;
  Buffer allocate(int64_t bytes) override;
  Buffer allocate_host(int64_t bytes) override;
  Reach reach(const void* memory) const override;
  void clear(void* memory, int64_t bytes) override;
  void upload(const void* from, int64_t bytes, void* to) override;
  void download(const void* from, int64_t bytes, void* to) override;
  void start_upload(const void* from, int64_t bytes, void* to) override;
  void start_download(const void* from, int64_t bytes, void* to) override;
  bool is_downloaded() override;
  void load_rows(int64_t rows, int64_t row_bytes, const ReadRows& read, std::byte* to) override;
  void load_units(const KeyBlocks& blocks, const ReadKeys& read, const Pool& pool) override;
  bool starts_loads() const override { return true; }
  int64_t start_loading(const KeyBlocks& blocks, const Pool& pool) override;
  bool is_loaded(int64_t load) override;
  bool attends_rows(ElementType type, int head_dim, float scale) const override;
  int64_t start_checking(const KeysInRows& keys, ElementType type, int kv_heads, int head_dim, std::span<const int32_t> parts) override;
  void store_rows(const Results& results, int64_t rows, int heads, int head_dim, const PlaceRows& place, const WriteRows& write) override;
  void units_arrived(const Pool& pool, std::span<const int32_t> slots, ElementType type, int head_dim) override;
  void prepare(const Step& next) override;
  void forget_lists(const Work* work) override { kept_lists_.erase(work); }
  void start(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) override;
  void start_beside(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) override;
  void start_behind(const Step& step, int64_t q_rows, const Pool& pool, const Results& results) override;
  bool wait_for(double seconds) override;
  bool can_start_beside() const override { return true; }
  bool work_waits_for_step() const override { return true; }
  void clear_states(int64_t count, int head_dim, float* m, float* l, float* o) override;
  using Device::finish;
  void finish(std::span<const Finish> all) override;
  void merge(const Merge& merge) override;
  void merge_blocks(std::span<const MergeBlocks> all) override;

 private:
  using Clock = std::chrono::steady_clock;

  // A pinned buffer, its twin on the device for what cannot be copied straight to its place, and when its last use is over.
  struct Staging {
    PinnedMemory host;
    DeviceMemory twin;
    Event copied, free;
  };

  // A load that was started: where its rows lie and where they go. Or a check, which has neither.
  struct Load {
    GrowingPinnedMemory host;
    DeviceMemory twin;
    Event done;
  };

  // What of a step can be made and sent before it is started. Two in turns, of the step that runs and of the next one; and one of each step
  // whose lists stay.
  struct Lists {
    Step of;          // in host memory; no work: none
    DeviceStep step;  // with pointers to `memory`
    DeviceMemory memory;
    Event sent;
  };

  // A step that was started. Two in turns.
  struct Started {
    GrowingPinnedMemory places_host;  // slots and rows of its keys
    DeviceMemory places;
    const Stream* stream = nullptr;
    Clock::time_point began;
    Event done;
  };

  Lists& lists_of(const Step& step) { return step.lists_stay ? kept_lists_[step.work.data()] : lists_[next_lists_]; }
  std::span<const int32_t> on_device(std::span<const int32_t> heads);
  Load& idle_load();
  int64_t load_started(Load& load);
  void start_copy(void* to, const void* from, int64_t bytes, const void* host, const Stream& stream);

  const Stream& after_steps();
  void launch(const Step& step, int64_t q_rows, const Pool& pool, const Results& results, const Stream& stream);

  Gpu gpu_;
  int64_t staging_bytes_;
  KeptMemory kept_;
  CurrentDevice current_;                                 // for the constructor: the streams below belong to it
  Stream compute_, beside_, lists_in_, in_, pack_, out_;  // `beside_`: steps by start_beside(), in turns with the first
  Stream arrive_{Stream::Priority::high};                 // what comes with units that arrive, while steps run
  Stream down_{Stream::Priority::high};                   // what other ranks wait for
  std::array<Staging, 2> loads_, stores_;
  std::list<Load> loading_, idle_loads_;
  int64_t loads_started_ = 0;
  Event to_download_, downloaded_;
  std::array<Lists, 2> lists_;
  size_t next_lists_ = 0;
  std::map<const Work*, Lists> kept_lists_;
  struct {
    GrowingPinnedMemory host;
    Event sent;
  } parcels_[2];  // of lists, in turns
  size_t next_parcel_ = 0;
  GrowingPinnedMemory arrived_host_, merges_host_;
  DeviceMemory arrived_list_, merges_;
  std::map<std::vector<int32_t>, DeviceMemory> head_lists_;  // as they were asked for: a job has few
  Event arrived_sent_, arrived_, merges_sent_;
  std::array<Started, 2> steps_;
  size_t started_ = 0, ended_ = 0;  // steps
};

}  // namespace longspan::kernels::cuda
