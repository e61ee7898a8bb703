// Blocks between GPU pools by MPI, through pinned host memory:
//
//   send:     gather into one piece on the device -> copy to the host -> MPI
//   receive:  MPI -> copy to the device -> scatter to the slots
//
// Each stage of a message starts when progress() finds the one before done; nothing blocks but finish_…().
#include <sched.h>

#include <algorithm>
#include <deque>
#include <map>

#include "comm/transport.hpp"
#include "kernels/cuda/runtime.hpp"
#include "kernels/cuda/units.hpp"

namespace longspan::comm {

namespace {

namespace cuda = kernels::cuda;

// Host and device memory of one message, and of the list of its slots.
struct Staging {
  cuda::PinnedMemory host;
  cuda::DeviceMemory packed, slots;
  cuda::Event copied;
};

class StagedExchange : public PoolExchange {
 public:
  StagedExchange(const Communicator& ranks, std::byte* pool, int64_t block_bytes, int gpu)
      : gpu_(gpu),
        current_(gpu),
        pool_(pool),
        block_bytes_(block_bytes),
        stream_(cuda::Stream::Priority::high),
        exchange_(ranks, block_bytes) {}
  ~StagedExchange() override {
    cudaStreamSynchronize(stream_.get());  // nothing is copied into memory that goes now
  }

  void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
    const cuda::CurrentDevice current(gpu_);
    std::vector<BlockExchange::Message> posted;
    for (const Message& message : receives) {
      if (message.slots.empty()) continue;
      Transfer& transfer = receiving_[tag].emplace_back(new_transfer(message));
      posted.push_back({message.peer, {{transfer.staging->host.get(), count_of(transfer)}}});
    }
    exchange_.start(tag, posted, {});
    for (const Message& message : sends) {
      if (message.slots.empty()) continue;
      Transfer& transfer = sending_[tag].emplace_back(new_transfer(message));
      Staging& staging = *transfer.staging;
      cuda::gather_blocks(pool_, staging.slots.as<int32_t>(), count_of(transfer), block_bytes_, staging.packed.get(), stream_.get());
      copy(staging.host.get(), staging.packed.get(), count_of(transfer) * block_bytes_, cudaMemcpyDeviceToHost);
      staging.copied.record(stream_.get());
    }
  }

  bool takes_sends_ahead() const override { return false; }  // each would hold memory

  void progress() override {
    const cuda::CurrentDevice current(gpu_);
    exchange_.progress();
    for (auto& [tag, transfers] : sending_) post_copied(tag, transfers, false);
    for (auto step = sending_.begin(); step != sending_.end();)
      step = all_posted(step->second) && exchange_.sent(step->first) ? release(sending_, step) : std::next(step);
    for (auto step = receiving_.begin(); step != receiving_.end();) {
      if (!step->second.front().is_on_its_way && exchange_.received(step->first)) scatter(step->second);
      const bool here = step->second.front().is_on_its_way && step->second.back().staging->copied.done();
      step = here ? release(receiving_, step) : std::next(step);
    }
  }

  void hand_over() override {
    const cuda::CurrentDevice current(gpu_);
    for (auto& [tag, transfers] : sending_) post_copied(tag, transfers, true);
  }

  bool received(int tag) override {
    progress();
    return receiving_.find(tag) == receiving_.end();
  }

  void finish_receives(int tag) override {
    const cuda::CurrentDevice current(gpu_);
    const auto step = receiving_.find(tag);
    if (step == receiving_.end()) return;
    hand_over();
    if (!step->second.front().is_on_its_way) {
      exchange_.finish_receives(tag);
      scatter(step->second);
    }
    step->second.back().staging->copied.wait();
    release(receiving_, step);
  }

  void finish_sends(int tag) override {
    const cuda::CurrentDevice current(gpu_);
    const auto step = sending_.find(tag);
    if (step == sending_.end()) return;
    post_copied(tag, step->second, true);
    exchange_.finish_sends(tag);
    release(sending_, step);
  }

  void set_timeout(double seconds) override { exchange_.set_timeout(seconds); }
  int64_t bytes_received() const override { return exchange_.bytes_received(); }
  int64_t bytes_sent() const override { return exchange_.bytes_sent(); }

 private:
  struct Transfer {
    Message message;
    std::unique_ptr<Staging> staging;
    bool is_on_its_way = false;  // sent: in MPI's hands; received: being copied to the device
  };
  using Steps = std::map<int, std::deque<Transfer>>;

  static int64_t count_of(const Transfer& transfer) { return static_cast<int64_t>(transfer.message.slots.size()); }
  static bool all_posted(const std::deque<Transfer>& transfers) {
    return std::all_of(transfers.begin(), transfers.end(), [](const Transfer& transfer) { return transfer.is_on_its_way; });
  }

  void copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    cuda::check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream_.get()), "cudaMemcpyAsync");
  }

  Transfer new_transfer(const Message& message) {
    Transfer transfer{message, idle_.empty() ? std::make_unique<Staging>() : std::move(idle_.back())};
    if (!idle_.empty()) idle_.pop_back();
    Staging& staging = *transfer.staging;
    staging.host.reserve(count_of(transfer) * block_bytes_);
    staging.packed.reserve(count_of(transfer) * block_bytes_);
    staging.slots.reserve(count_of(transfer) * 4);
    copy(staging.slots.get(), transfer.message.slots.data(), count_of(transfer) * 4, cudaMemcpyHostToDevice);
    return transfer;
  }

  void post_copied(int tag, std::deque<Transfer>& transfers, bool wait) {
    for (Transfer& transfer : transfers) {
      if (transfer.is_on_its_way) continue;
      if (wait) transfer.staging->copied.wait();
      if (!transfer.staging->copied.done()) continue;
      exchange_.start(tag, {}, {{transfer.message.peer, {{transfer.staging->host.get(), count_of(transfer)}}}});
      transfer.is_on_its_way = true;
    }
  }

  void scatter(std::deque<Transfer>& transfers) {
    for (Transfer& transfer : transfers) {
      Staging& staging = *transfer.staging;
      copy(staging.packed.get(), staging.host.get(), count_of(transfer) * block_bytes_, cudaMemcpyHostToDevice);
      cuda::scatter_blocks(staging.packed.get(), staging.slots.as<int32_t>(), count_of(transfer), block_bytes_, pool_, stream_.get());
      staging.copied.record(stream_.get());
      transfer.is_on_its_way = true;
    }
  }

  Steps::iterator release(Steps& steps, Steps::iterator step) {
    for (Transfer& transfer : step->second) idle_.push_back(std::move(transfer.staging));
    return steps.erase(step);
  }

  int gpu_;
  cuda::CurrentDevice current_;
  std::byte* pool_;
  int64_t block_bytes_;
  cuda::Stream stream_;
  std::vector<std::unique_ptr<Staging>> idle_;
  Steps receiving_, sending_;
  BlockExchange exchange_;  // last: what is on its way is cancelled before its memory goes
};

class StagedTransport : public Transport {
 public:
  explicit StagedTransport(int gpu) : gpu_(gpu) {}
  std::string name() const override { return "MPI through pinned host memory"; }
  bool passes_host_memory() const override { return true; }
  std::unique_ptr<PoolExchange> between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) override {
    return std::make_unique<StagedExchange>(ranks, pool, block_bytes, gpu_);
  }

 private:
  int gpu_;
};

}  // namespace

std::unique_ptr<Transport> staged_transport(int gpu_ordinal) { return std::make_unique<StagedTransport>(gpu_ordinal); }

}  // namespace longspan::comm
