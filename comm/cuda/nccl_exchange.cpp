// Blocks between GPU pools by NCCL. All ranks go through the same steps in the same order; a step is one group with one message per peer,
// cut at its long runs:
//
//   its stream:   gather what is sent | send and receive everything | scatter what came
//
// Example: 16 heads of 1,000 blocks each for one peer are 16 runs of 62.5 MiB. Their slots follow each other at home, and mostly where they
// come to, so that nothing is gathered or scattered, which would cost about as much again as a quarter of the link's time.
//
// Each exchange has a communicator of its own, since what one communicator does it does in the order of issue, and two exchanges are not
// issued in the same order on all ranks.
//
// What is one run of slots goes straight out of the pool, or into it; short runs share a message with their neighbours: many small ones
// cost far more than one large one (NCCL serves those of one peer one after another).
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <deque>
#include <exception>
#include <map>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "comm/cuda/nccl_library.hpp"
#include "comm/transport.hpp"
#include "kernels/cuda/runtime.hpp"
#include "kernels/cuda/small_copies.hpp"
#include "kernels/cuda/units.hpp"

namespace longspan::comm {

namespace {

namespace cuda = kernels::cuda;

using Clock = std::chrono::steady_clock;

constexpr int kReadyTag = 77;  // on the ranks' communicator: this rank is up in NCCL
constexpr auto kBusyTime = std::chrono::milliseconds(2);
constexpr auto kNap = std::chrono::microseconds(50);

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// NCCL's communicator of all ranks, made and watched without blocking.
class NcclRanks {
 public:
  NcclRanks(const Communicator& ranks, int gpu, double timeout) {
    const cuda::CurrentDevice current(gpu);
    struct {
      ncclUniqueId id;
      ncclResult_t result;
    } first{};  // of rank 0; it fails on all ranks if it does there
    if (ranks.rank() == 0) first.result = nccl().get_unique_id(&first.id);
    ranks.broadcast(&first, sizeof first);
    check_nccl(first.result, "ncclGetUniqueId");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    check_nccl(nccl().comm_init(&comm_, ranks.size(), first.id, ranks.rank(), &config), "ncclCommInitRankConfig");
    wait_until_up(ranks, timeout);
  }

  ~NcclRanks() {
    if (!is_up()) return;
    if (std::uncaught_exceptions() > 0) {
      abort();
      return;
    }
    nccl().comm_finalize(comm_);
    ncclResult_t state = ncclInProgress;
    const auto start = Clock::now();
    while (nccl().comm_get_async_error(comm_, &state) == ncclSuccess && state == ncclInProgress && seconds_since(start) < 10)
      std::this_thread::sleep_for(kNap);
    nccl().comm_destroy(comm_);
  }
  NcclRanks(const NcclRanks&) = delete;
  NcclRanks& operator=(const NcclRanks&) = delete;

  ncclComm_t get() const { return comm_; }
  bool is_up() const { return comm_ != nullptr; }
  // Ends the kernels that wait for other ranks: until then the device is busy, and no memory of it can be given back.
  void abort() {
    if (comm_ != nullptr) nccl().comm_abort(std::exchange(comm_, nullptr));
  }

  // Throws when something went wrong in the background; whether a call still goes on there.
  bool is_busy() const {
    ncclResult_t state = ncclSuccess;
    check_nccl(nccl().comm_get_async_error(comm_, &state), "ncclCommGetAsyncError");
    check_nccl(state, "an operation of NCCL");
    return state == ncclInProgress;
  }

 private:
  // Rank 0 hears of every rank that is up, so that it can name those that are not; it gives up first.
  void wait_until_up(const Communicator& ranks, double timeout) {
    const auto start = Clock::now();
    const double limit = ranks.rank() == 0 ? timeout : timeout * 1.2 + 5;
    std::vector<MPI_Request> ready;
    std::vector<char> mails(static_cast<size_t>(ranks.size()));
    if (ranks.rank() == 0) {
      ready.resize(static_cast<size_t>(ranks.size() - 1));
      for (int peer = 1; peer < ranks.size(); ++peer)
        check(MPI_Irecv(&mails[static_cast<size_t>(peer)], 1, MPI_CHAR, peer, kReadyTag, ranks.handle(),
                        &ready[static_cast<size_t>(peer - 1)]),
              "MPI_Irecv");
    }
    bool up = false, told = false;
    int all_up = 0;
    while (!up || !all_up) {
      up = up || !is_busy();
      if (up && !told && ranks.rank() != 0) {
        ready.resize(1);
        check(MPI_Isend(mails.data(), 1, MPI_CHAR, 0, kReadyTag, ranks.handle(), &ready[0]), "MPI_Isend");
        told = true;
      }
      if (ranks.rank() == 0 || told)
        check(MPI_Testall(static_cast<int>(ready.size()), ready.data(), &all_up, MPI_STATUSES_IGNORE), "MPI_Testall");
      if (timeout > 0 && seconds_since(start) > limit) throw_missing(ranks, ready, seconds_since(start));
      std::this_thread::sleep_for(kNap);
    }
  }

  [[noreturn]] void throw_missing(const Communicator& ranks, std::vector<MPI_Request>& ready, double waited) const {
    std::vector<int> missing;
    for (size_t i = 0; ranks.rank() == 0 && i < ready.size(); ++i)
      if (ready[i] != MPI_REQUEST_NULL) missing.push_back(static_cast<int>(i) + 1);
    for (MPI_Request& request : ready) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
    throw Error(
        {.code = ExitCode::communication,
         .what = fmt::format("time-out: NCCL did not come up in {:.3g} s", waited),
         .seen = missing.empty() ? "this rank waits for others" : "nothing from " + describe_ranks(missing),
         .from = fmt::format("rank {}", ranks.rank()),
         .mend = "see whether those ranks run and their hosts reach each other (NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO); --transport mpi does "
                 "without NCCL"});
  }

  ncclComm_t comm_ = nullptr;
};

constexpr int64_t kLeastList = 1 << 14;          // slots, so that lists seldom grow
constexpr int64_t kLongRun = int64_t{32} << 20;  // bytes from which a run travels by itself

bool is_run(std::span<const int32_t> slots) {
  for (size_t i = 1; i < slots.size(); ++i)
    if (slots[i] != slots[0] + static_cast<int32_t>(i)) return false;
  return true;
}

// The slots of a message's parts: each long run, and what lies between long runs.
std::vector<std::span<const int32_t>> parts_of(const PoolExchange::Message& message, int64_t block_bytes) {
  std::vector<std::span<const int32_t>> parts;
  const std::span<const int32_t> slots(message.slots);
  size_t begin = 0, at = 0;
  const auto cut = [&] {
    if (at > begin) parts.push_back(slots.subspan(begin, at - begin));
    begin = at;
  };
  for (const int64_t run : message.runs) {
    const bool by_itself = run * block_bytes >= kLongRun;
    if (by_itself) cut();
    at += static_cast<size_t>(run);
    if (by_itself) cut();
  }
  at = slots.size();
  cut();
  return parts;
}

// What no exchange uses now: communicators, and pinned memory for lists of slots. A copy out of other memory would wait for the stream,
// with it for other ranks.
struct Idle {
  std::vector<std::unique_ptr<NcclRanks>> communicators;
  std::vector<std::unique_ptr<cuda::PinnedMemory>> lists;
};

class NcclExchange : public PoolExchange {
 public:
  // Takes a communicator of `idle` and gives it back at the end, if it is still up.
  NcclExchange(const Communicator& ranks, Idle& idle, std::byte* pool, int64_t block_bytes, int gpu)
      : ranks_(ranks),
        idle_(idle),
        own_(std::move(idle.communicators.back())),
        comm_(*own_),
        gpu_(gpu),
        current_(gpu),
        pool_(pool),
        block_bytes_(block_bytes),
        stream_(cuda::Stream::Priority::high) {
    idle.communicators.pop_back();
  }
  ~NcclExchange() override {
    if (std::uncaught_exceptions() == 0) {
      cudaStreamSynchronize(stream_.get());
    } else {
      comm_.abort();  // or giving memory back would wait for ranks that may be gone
      cudaStreamSynchronize(stream_.get());
    }
    if (own_->is_up()) idle_.communicators.push_back(std::move(own_));
  }

  void expect(const std::vector<Step>& steps, size_t at_once, bool) override {
    const cuda::CurrentDevice current(gpu_);
    const auto packed = [&](const std::vector<Message>& messages) {  // blocks, at most
      int64_t blocks = 0;
      for (const Message& message : messages)
        for (const int64_t run : message.runs) blocks += run * block_bytes_ >= kLongRun ? 0 : run;
      return blocks;
    };
    int64_t most_out = 0, most_in = 0, most = 0;
    for (const Step& step : steps) {
      const int64_t out = packed(step.sends), in = packed(step.receives);
      most_out = std::max(most_out, out), most_in = std::max(most_in, in), most = std::max(most, out + in);
    }
    if (most_out > 0) out_.reserve(most_out * block_bytes_, stream_), out_slots_.reserve(most_out * 4, stream_);
    if (most_in > 0) in_.reserve(most_in * block_bytes_, stream_), in_slots_.reserve(most_in * 4, stream_);
    std::vector<std::unique_ptr<cuda::PinnedMemory>> lists;
    while (most > 0 && lists.size() < at_once) lists.push_back(idle_list(most));
    for (auto& list : lists) idle_.lists.push_back(std::move(list));
  }

  void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
    const cuda::CurrentDevice current(gpu_);  // events belong to it
    Started made;
    for (const Message& message : receives) made.add(message, block_bytes_, made.received);
    for (const Message& message : sends) made.add(message, block_bytes_, made.sent);
    if (made.peers.empty()) return;
    Started& step = steps_.emplace(tag, std::move(made)).first->second;  // what it holds outlives a failure in here, until abandon()
    // One buffer each way will do: the stream orders this step's use of it after the last one's.
    Packed out(sends, block_bytes_, pool_), in(receives, block_bytes_, pool_);
    int32_t* lists = nullptr;
    if (out.blocks + in.blocks > 0) {
      step.lists = idle_list(out.blocks + in.blocks);
      lists = reinterpret_cast<int32_t*>(step.lists->get());
    }
    out.place(out_, out_slots_, lists, stream_);
    in.place(in_, in_slots_, lists + out.blocks, stream_);
    for (const Packed::Part& part : out.parts)
      if (part.slots != nullptr) cuda::gather_blocks(pool_, part.slots, part.count, block_bytes_, part.data, stream_.get());
    step.packed.record(stream_.get());
    check_nccl(nccl().group_start(), "ncclGroupStart");
    for (const Packed::Part& part : out.parts)
      check_nccl(nccl().send(part.data, static_cast<size_t>(part.count * block_bytes_), ncclUint8, part.peer, comm_.get(), stream_.get()),
                 "ncclSend");
    for (const Packed::Part& part : in.parts)
      check_nccl(
          nccl().receive(part.data, static_cast<size_t>(part.count * block_bytes_), ncclUint8, part.peer, comm_.get(), stream_.get()),
          "ncclRecv");
    check_nccl(nccl().group_end(), "ncclGroupEnd");
    wait(tag, step.peers, "set up", [&] { return !comm_.is_busy(); });  // the first time connections are made; then the stream has it
    for (const Packed::Part& part : in.parts)
      if (part.slots != nullptr) cuda::scatter_blocks(part.data, part.slots, part.count, block_bytes_, pool_, stream_.get());
    step.done.record(stream_.get());
    under_way_.push_back(tag);
  }

  // Compute that is started before NCCL's kernel has its multiprocessors takes all of them and leaves none until its end; then those of the
  // peers, which may have theirs, wait for this rank's (measured: causal on two H100 5 % slower). Nothing tells when the kernel begins, but
  // it can as soon as what comes before it in the stream is over: here, the packing, and the groups before. So before each step of compute
  // it is the oldest group's turn.
  void let_it_begin() override {
    constexpr auto kLaunch = std::chrono::microseconds(100);
    constexpr double kPatience = 60;  // seconds, for a copy inside this GPU's memory
    const auto start = Clock::now();
    Started* const step = oldest();
    if (step == nullptr || std::exchange(step->has_begun, true)) return;
    while (!step->done.done() && (!step->seen_packed || Clock::now() - *step->seen_packed < kLaunch)) {
      progress();
      sched_yield();
      if (step->seen_packed || seconds_since(start) < kPatience) continue;
      throw Error({.code = ExitCode::device,
                   .what = fmt::format("this rank's GPU did not pack step {} of the exchange in {:.3g} s", under_way_.front(), kPatience),
                   .from = fmt::format("rank {}", ranks_.rank()),
                   .mend = "see whether nvidia-smi finds the device in order"});
    }
  }

  bool takes_sends_ahead() const override { return false; }  // a step is one group
  bool starts_in_one_order() const override { return true; }

  void progress() override {
    comm_.is_busy();
    Started* const step = oldest();
    if (step != nullptr && !step->seen_packed && step->packed.done()) step->seen_packed = Clock::now();
  }
  void abandon() override { comm_.abort(); }

  bool received(int tag) override {
    const auto step = steps_.find(tag);
    return step == steps_.end() || (!comm_.is_busy() && step->second.done.done());
  }

  void finish_receives(int tag) override {
    const auto step = steps_.find(tag);
    if (step == steps_.end()) return;
    wait(tag, step->second.peers, "finish", [&] { return received(tag); });
    bytes_received_ += std::exchange(step->second.received, 0);
    if (step->second.lists) idle_.lists.push_back(std::move(step->second.lists));
  }

  void finish_sends(int tag) override {
    finish_receives(tag);
    const auto step = steps_.find(tag);
    if (step == steps_.end()) return;
    bytes_sent_ += step->second.sent;
    steps_.erase(step);
    std::erase(under_way_, tag);
  }

  void set_timeout(double seconds) override { timeout_ = seconds; }
  int64_t bytes_received() const override { return bytes_received_; }
  int64_t bytes_sent() const override { return bytes_sent_; }

 private:
  struct Started {
    std::vector<int> peers;
    int64_t received = 0, sent = 0;  // bytes
    cuda::Event packed, done;
    std::optional<Clock::time_point> seen_packed;  // when the packing was seen to be over
    bool has_begun = false;                        // or compute has waited for that as long as it does
    std::unique_ptr<cuda::PinnedMemory> lists;     // of slots, on their way to the device
    void add(const Message& message, int64_t block_bytes, int64_t& bytes) {
      if (message.slots.empty()) return;
      peers.push_back(message.peer);
      bytes += static_cast<int64_t>(message.slots.size()) * block_bytes;
    }
  };

  // Of the groups on their way; null if there is none.
  Started* oldest() {
    for (; !under_way_.empty(); under_way_.pop_front()) {
      const auto step = steps_.find(under_way_.front());
      if (step != steps_.end() && !step->second.done.done()) return &step->second;
    }
    return nullptr;
  }

  // Where each message of one direction lies: in the pool, or packed in a buffer with its list of slots.
  struct Packed {
    struct Part {
      int peer;
      int64_t count;
      std::byte* data;
      const int32_t* slots;  // device memory; null: in the pool
    };
    std::vector<Part> parts;
    std::vector<int32_t> all_slots;
    int64_t block_bytes, blocks = 0;

    Packed(const std::vector<Message>& messages, int64_t block_bytes_, std::byte* pool) : block_bytes(block_bytes_) {
      static constexpr int32_t kLater = 0;
      for (const Message& message : messages) {
        for (const std::span<const int32_t> part : parts_of(message, block_bytes)) {
          const bool in_place = is_run(part);
          parts.push_back({message.peer, static_cast<int64_t>(part.size()), in_place ? pool + part[0] * block_bytes : nullptr,
                           in_place ? nullptr : &kLater});
          if (in_place) continue;
          all_slots.insert(all_slots.end(), part.begin(), part.end());
          blocks += parts.back().count;
        }
      }
    }
    // `pinned`: for the slots of all blocks; stays until the stream has been here.
    void place(cuda::DeviceMemory& memory, cuda::DeviceMemory& slots, int32_t* pinned, const cuda::Stream& stream) {
      if (blocks == 0) return;
      std::byte* data = memory.reserve(blocks * block_bytes, stream);
      slots.reserve(blocks * 4, stream);
      std::copy(all_slots.begin(), all_slots.end(), pinned);
      cuda::copy_small(slots.get(), pinned, blocks * 4, stream.get());
      const auto* list = slots.as<int32_t>();
      for (Part& part : parts) {
        if (part.slots == nullptr) continue;
        part.data = data, part.slots = list;
        data += part.count * block_bytes, list += part.count;
      }
    }
  };

  static std::unique_ptr<cuda::PinnedMemory> new_list(int64_t slots) {
    return std::make_unique<cuda::PinnedMemory>(4 *
                                                static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(kLeastList, slots)))));
  }
  // One that is long enough. None is made longer, since giving pinned memory back waits for all that the device does.
  std::unique_ptr<cuda::PinnedMemory> idle_list(int64_t slots) {
    const auto fits = std::find_if(idle_.lists.begin(), idle_.lists.end(), [&](const auto& list) { return list->bytes() >= slots * 4; });
    if (fits == idle_.lists.end()) return new_list(slots);
    std::unique_ptr<cuda::PinnedMemory> list = std::move(*fits);
    idle_.lists.erase(fits);
    return list;
  }

  // Until `done` says so; meanwhile errors in the background are seen, MPI moves on, and after the time-out the peers are named.
  template <typename Done>
  void wait(int tag, const std::vector<int>& peers, const char* what, Done done) {
    const auto start = Clock::now();
    for (int64_t polls = 1; !done(); ++polls) {
      if (timeout_ > 0 && seconds_since(start) > timeout_) {
        std::vector<int> ascending = peers;
        std::sort(ascending.begin(), ascending.end());
        ascending.erase(std::unique(ascending.begin(), ascending.end()), ascending.end());
        throw Error({.code = ExitCode::communication,
                     .what = fmt::format("time-out: step {} of the exchange did not {} in {:.3g} s", tag, what, timeout_),
                     .seen = "its messages go to and come from " + describe_ranks(ascending),
                     .from = fmt::format("rank {}, NCCL {}", ranks_.rank(), nccl().version),
                     .mend = "see whether those ranks still run and their hosts can be reached"});
      }
      if (polls % 16 == 0) {
        int flag = 0;
        check(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, ranks_.handle(), &flag, MPI_STATUS_IGNORE), "MPI_Iprobe");
        if (Clock::now() - start > kBusyTime) std::this_thread::sleep_for(kNap);
      }
      sched_yield();
    }
  }

  const Communicator& ranks_;
  Idle& idle_;
  std::unique_ptr<NcclRanks> own_;
  NcclRanks& comm_;
  int gpu_;
  cuda::CurrentDevice current_;
  std::byte* pool_;
  int64_t block_bytes_;
  cuda::Stream stream_;
  cuda::DeviceMemory out_, in_, out_slots_, in_slots_;
  std::deque<int> under_way_;  // tags of the groups that may be, oldest first
  std::map<int, Started> steps_;
  double timeout_ = 300;
  int64_t bytes_received_ = 0, bytes_sent_ = 0;
};

class NcclTransport : public Transport {
 public:
  NcclTransport(const Communicator& ranks, int gpu, double timeout) : gpu_(gpu), timeout_(timeout) { add(ranks); }
  std::string name() const override { return "NCCL " + nccl().version; }
  std::unique_ptr<PoolExchange> between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) override {
    if (idle_.communicators.empty()) add(ranks);
    return std::make_unique<NcclExchange>(ranks, idle_, pool, block_bytes, gpu_);
  }

 private:
  void add(const Communicator& ranks) { idle_.communicators.push_back(std::make_unique<NcclRanks>(ranks, gpu_, timeout_)); }

  int gpu_;
  double timeout_;
  Idle idle_;
};

}  // namespace

std::unique_ptr<Transport> nccl_transport(const Communicator& ranks, int gpu_ordinal, double timeout) {
  return std::make_unique<NcclTransport>(ranks, gpu_ordinal, timeout);
}

}  // namespace longspan::comm
