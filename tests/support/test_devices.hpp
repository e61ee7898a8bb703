// The devices that a test of the engine runs on: CPUs, and a GPU where there is one, with keys moved by each transport it has. All ranks of
// the test share the host's GPUs.
#pragma once

#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "kernels/cpu/device.hpp"
#include "kernels/gpus.hpp"
#include "tests/support/host_cuda/shared_memory.hpp"

namespace longspan::comm {
// comm::peer_transport and what goes with it, for pools that testing::allocate_shared gave.
std::unique_ptr<Transport> host_peer_transport(int);
std::string why_no_host_peer_access(const Communicator& ranks, int);
}  // namespace longspan::comm

namespace longspan::testing {

// What another exchange does: for those that do something more or later.
class SameExchange : public comm::PoolExchange {
 public:
  explicit SameExchange(std::unique_ptr<comm::PoolExchange> inner) : inner_(std::move(inner)) {}
  void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
    inner_->start(tag, receives, sends);
  }
  bool takes_sends_ahead() const override { return inner_->takes_sends_ahead(); }
  void progress() override { inner_->progress(); }
  bool received(int tag) override { return inner_->received(tag); }
  void finish_receives(int tag) override { inner_->finish_receives(tag); }
  void finish_sends(int tag) override { inner_->finish_sends(tag); }
  void set_timeout(double seconds) override { inner_->set_timeout(seconds); }
  int64_t bytes_received() const override { return inner_->bytes_received(); }
  int64_t bytes_sent() const override { return inner_->bytes_sent(); }

 protected:
  std::unique_ptr<comm::PoolExchange> inner_;
};

// Between host pools, but a send is handed to MPI only when progress() has been called some times after it: as with GPUs, whose copies take
// their time. Who waits for anything must make progress here too.
class LateTransport : public comm::Transport {
 public:
  std::string name() const override { return "MPI, late"; }
  std::unique_ptr<comm::PoolExchange> between_pools(const comm::Communicator& ranks, std::byte* pool, int64_t block_bytes) override {
    return std::make_unique<Exchange>(comm::MpiTransport().between_pools(ranks, pool, block_bytes));
  }

 private:
  class Exchange : public SameExchange {
   public:
    using SameExchange::SameExchange;
    void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
      inner_->start(tag, receives, {});
      if (!sends.empty()) waiting_.push_back({tag, sends, 300});
    }
    bool takes_sends_ahead() const override { return false; }
    void progress() override {
      for (Send& send : waiting_) --send.calls;
      while (!waiting_.empty() && waiting_.front().calls <= 0) post();
      inner_->progress();
    }
    void hand_over() override {
      while (!waiting_.empty()) post();
    }
    bool received(int tag) override {
      progress();
      return inner_->received(tag);
    }
    void finish_receives(int tag) override {
      if (inner_->received(tag)) return;
      hand_over();
      inner_->finish_receives(tag);
    }
    void finish_sends(int tag) override {
      hand_over();
      inner_->finish_sends(tag);
    }

   private:
    struct Send {
      int tag;
      std::vector<Message> messages;
      int calls;
    };
    void post() {
      inner_->start(waiting_.front().tag, {}, waiting_.front().messages);
      waiting_.pop_front();
    }
    std::deque<Send> waiting_;
  };
};

enum class TestDevice { cpu, cpu_late, cpu_peer, gpu, gpu_nccl, gpu_peer };  // gpu: keys by MPI through pinned memory
constexpr TestDevice kTestDevices[] = {TestDevice::cpu, TestDevice::cpu_late, TestDevice::cpu_peer,
                                       TestDevice::gpu, TestDevice::gpu_nccl, TestDevice::gpu_peer};
inline bool is_gpu(TestDevice device) { return device >= TestDevice::gpu; }
inline std::string name_of(TestDevice device) {
  switch (device) {
    case TestDevice::cpu:
      return "cpu";
    case TestDevice::cpu_late:
      return "cpu_late";
    case TestDevice::cpu_peer:
      return "cpu_peer";
    case TestDevice::gpu:
      return "gpu";
    case TestDevice::gpu_nccl:
      return "gpu_nccl";
    case TestDevice::gpu_peer:
      return "gpu_peer";
  }
  return "?";
}

// CPUs that the engine takes for a GPU: lists are made by a thread of their own then, own keys are loaded without one, and long rows are
// packed and merged beside a step. What was started is done when it has been asked for a few times. Memory that is cleared is not, but has
// NaN all over: results that depend on it show.
class CpuWithSpareThreads : public kernels::cpu::CpuDevice {
 public:
  using CpuDevice::CpuDevice;
  bool memory_is_host() const override { return false; }
  void clear(void* memory, int64_t bytes) override { std::memset(memory, 0xff, static_cast<size_t>(bytes)); }
  int spare_threads() const override { return 3; }
  bool work_waits_for_step() const override { return true; }
  bool starts_loads() const override { return true; }
  int64_t start_loading(const kernels::KeyBlocks& blocks, const kernels::Pool& pool) override {
    const auto copy = [](auto span) { return std::vector(span.begin(), span.end()); };
    return start_later([this, of = blocks, pool, rows = copy(blocks.rows), slots = copy(blocks.slots), there = copy(blocks.in_place)] {
      kernels::KeyBlocks kept = of;
      kept.rows = rows, kept.slots = slots, kept.in_place = there;
      if (!rows.empty()) load_units(kept, {}, pool);
    });
  }
  bool is_loaded(int64_t load) override {
    if (!loads_.empty() && is_done()) loads_.front()(), loads_.pop_front();
    return load <= loads_started_ - static_cast<int64_t>(loads_.size());
  }
  void start_download(const void* from, int64_t bytes, void* to) override {
    downloads_.push_back([this, from, bytes, to] { download(from, bytes, to); });
  }
  bool is_downloaded() override {
    if (!downloads_.empty() && is_done()) downloads_.front()(), downloads_.pop_front();
    return downloads_.empty();
  }
  void merge_blocks(std::span<const kernels::MergeBlocks> all) override {
    while (!wait_for(1)) continue;
    CpuDevice::merge_blocks(all);
  }

 protected:
  int64_t start_later(std::function<void()> load) {
    loads_.push_back(std::move(load));
    return ++loads_started_;
  }

 private:
  bool is_done() { return ++questions_ % 4 == 0; }
  int64_t loads_started_ = 0;
  std::deque<std::function<void()>> loads_, downloads_;
  int questions_ = 0;
};

// And whose memory other ranks read.
class CpuThatOthersRead : public CpuWithSpareThreads {
 public:
  using CpuWithSpareThreads::CpuWithSpareThreads;
  kernels::Buffer allocate(int64_t bytes) override {
    return kernels::Buffer(allocate_shared(bytes), {[](void* memory, void*) { free_shared(memory); }, nullptr});
  }
};

struct OpenDevice {
  kernels::Device* device = nullptr;
  comm::Transport* transport = nullptr;
  std::string why_not;

  // Collective. Opened once per process.
  static OpenDevice of(TestDevice kind, const comm::Communicator& ranks) {
    static kernels::cpu::CpuDevice cpu(2);
    static comm::MpiTransport mpi;
    static LateTransport late;
    static std::unique_ptr<kernels::Device> gpu;
    static std::unique_ptr<comm::Transport> staged;
    // Not destroyed: after the last test MPI is no longer there.
    static comm::Transport* nccl = nullptr;
    if (kind == TestDevice::cpu) return {&cpu, &mpi, {}};
    static CpuWithSpareThreads spare(2);
    if (kind == TestDevice::cpu_late) return {&spare, &late, {}};
    static CpuThatOthersRead read(2);
    static const std::unique_ptr<comm::Transport> host_peer = comm::host_peer_transport(0);
    if (kind == TestDevice::cpu_peer && ranks.size() == 1) return {nullptr, nullptr, "one rank has nobody to read from"};
    if (kind == TestDevice::cpu_peer) {
      static const std::string why_not = comm::why_no_host_peer_access(ranks, 0);
      const bool all_can = ranks.max(why_not.empty() ? 0 : 1) == 0;
      return all_can ? OpenDevice{&read, host_peer.get(), {}}
                     : OpenDevice{nullptr, nullptr, why_not.empty() ? "other ranks cannot" : why_not};
    }
    const kernels::Gpus gpus = kernels::find_gpus();
    std::string why_not = gpus.why_none;
    if (why_not.empty() && kind == TestDevice::gpu_nccl) why_not = comm::find_nccl().why_not;
    if (why_not.empty() && kind != TestDevice::gpu && ranks.size() == 1) why_not = "one rank has nobody to send to";
    if (ranks.max(why_not.empty() ? 0 : 1) > 0) return {nullptr, nullptr, why_not.empty() ? "other ranks cannot" : why_not};
    const kernels::Gpu& mine = gpus.usable[static_cast<size_t>(ranks.local_rank()) % gpus.usable.size()];
    if (!gpu) {
      gpu = kernels::open_gpu(mine, {.host_bytes = 1 << 20});
      staged = comm::staged_transport(mine.ordinal);
    }
    if (kind == TestDevice::gpu) return {gpu.get(), staged.get(), {}};
    if (kind == TestDevice::gpu_peer) {
      static const std::unique_ptr<comm::Transport> peer = comm::peer_transport(mine.ordinal);
      static const std::string why_no_peer = comm::why_no_peer_access(ranks, mine.ordinal);
      if (ranks.max(why_no_peer.empty() ? 0 : 1) > 0) return {nullptr, nullptr, why_no_peer.empty() ? "other ranks cannot" : why_no_peer};
      return {gpu.get(), peer.get(), {}};
    }
    if (nccl == nullptr) {
      // Several ranks on one GPU: NCCL takes each for a host of its own, and they talk over the loopback.
      setenv("NCCL_HOSTID", ("longspan-test-" + std::to_string(ranks.rank())).c_str(), 1);
      setenv("NCCL_SOCKET_IFNAME", "lo", 1);
      setenv("NCCL_IB_DISABLE", "1", 1);
      nccl = comm::nccl_transport(ranks, mine.ordinal, 60).release();
    }
    return {gpu.get(), nccl, {}};
  }
};

}  // namespace longspan::testing
