// Blocks between the pools of one host's GPUs, each of which reads what it needs out of the others' memory (CUDA IPC, over NVLink or PCIe):
//
//   home:            says that a step's blocks are there (MPI), and in which slots they lie, unless who needs them knows; or where the rows
//                    lie that they are made of
//   who needs them:  copies them from there to its own slots | says that it has them (MPI)
//
// Example: 4 units in slots 7, 8, 90, 3 at home come to slots 64, 65, 66, 67 here: one kernel reads each from home's pool where it lies.
// Nothing is gathered or scattered, no kernel waits for another GPU's, and long runs between two ranks are left to a copy engine.
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "comm/cuda/peer_memory.hpp"
#include "comm/transport.hpp"
#include "kernels/cuda/peer_copies.hpp"
#include "kernels/cuda/runtime.hpp"
#include "kernels/cuda/small_copies.hpp"

namespace longspan::comm {

namespace {

namespace cuda = kernels::cuda;
using peer_memory::PeerMemory, peer_memory::OpenedRows, peer_memory::RowsThere;

using Clock = std::chrono::steady_clock;

// Bytes from which a run is left to a copy engine, which takes 9 us more for each than the link needs: of 395 GB/s, an H100 that reads
// gets 322 in runs of 16 MiB and 217 in runs of 4 MiB.
constexpr int64_t kLongRun = int64_t{32} << 20;
// Multiprocessors that copy; what computes meanwhile has the rest. An H200 reads 200, 296, 363, 372 and 373 GB/s from another with 4, 6, 8,
// 12 and 16 (random blocks of 64 KiB, medians of 7, by a program that is not kept). Bigbird over 1Mi tokens with 4 heads of keys took two
// of them 8.2 ms with 8, 8.4 and 8.5 with 12, 8.3 and 8.4 with 6; with 16 heads 15.0 and 15.1 with 8, 14.8 and 14.9 with 12 (medians of 9
// in turns). Of more ranks, whose long runs no copy engine takes, 8 were not measured.
constexpr int kOfTwo = 8, kOfMore = 12;
constexpr int64_t kMostKept = int64_t{64} << 20;  // bytes of lists of all steps, in pages
constexpr int64_t kLeastList = 1 << 12;           // copies, so that lists seldom grow

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What no exchange uses now: pinned memory for a step's copies, which takes longer to make than a step may take.
using IdleLists = std::vector<std::unique_ptr<cuda::PinnedMemory>>;

class PeerExchange : public PoolExchange {
 public:
  PeerExchange(const Communicator& ranks, IdleLists& idle, std::byte* pool, int64_t block_bytes, int gpu)
      : ranks_(ranks),
        idle_(idle),
        gpu_(gpu),
        current_(gpu),
        pool_(pool),
        block_bytes_(block_bytes),
        peers_(std::in_place, ranks, pool),
        stream_(cuda::Stream::Priority::high),
        engine_stream_(cuda::Stream::Priority::high),
        slots_(ranks, sizeof(int32_t)),
        taken_(ranks, sizeof(uint64_t)) {}
  // Nobody's memory goes while another has it open, unless the job is over for all.
  ~PeerExchange() override {
    int before = 0, finalized = 0;
    cudaGetDevice(&before);
    cudaSetDevice(gpu_);
    cudaStreamSynchronize(engine_stream_.get());
    cudaStreamSynchronize(stream_.get());
    peers_.reset(), opened_.reset();
    for (auto* steps : {&receiving_, &kept_})
      for (auto& [tag, step] : *steps)
        if (step.list) idle_.push_back(std::move(step.list));
    cudaSetDevice(before);
    MPI_Finalized(&finalized);
    if (finalized == 0 && std::uncaught_exceptions() == 0 && !is_abandoned_) MPI_Barrier(ranks_.handle());
  }

  void expect(const std::vector<Step>& steps, size_t at_once, bool again) override {
    const cuda::CurrentDevice current(gpu_);
    std::vector<int64_t> copies;  // of each step that brings something
    for (const Step& step : steps) {
      int64_t blocks = 0;
      for (const Message& message : step.receives) blocks += std::accumulate(message.runs.begin(), message.runs.end(), int64_t{0});
      if (blocks > 0) copies.push_back(blocks);
    }
    if (copies.empty()) return;
    const int64_t most = *std::max_element(copies.begin(), copies.end());
    copies_.reserve(most * static_cast<int64_t>(sizeof(cuda::BlockCopy)), stream_);
    constexpr int64_t kPage = 4096;
    const int64_t bytes = std::accumulate(copies.begin(), copies.end(), int64_t{0}, [](int64_t sum, int64_t blocks) {
      return sum + (list_bytes(blocks) + kPage - 1) / kPage * kPage;
    });
    keeps_ = again && bytes <= kMostKept;
    if (!keeps_) copies.assign(at_once, most);
    IdleLists lists;
    for (const int64_t blocks : copies) lists.push_back(idle_list(blocks, keeps_ ? blocks : most));
    for (auto& list : lists) idle_.push_back(std::move(list));
  }

  void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
    const cuda::CurrentDevice current(gpu_);  // events belong to it
    std::vector<BlockExchange::Message> told, heard, done;
    if (Receiving* step = receives.empty() ? nullptr : receiving_for(tag, receives)) {
      heard = heard_of(*step);
      if (!step->is_listed && step->knows()) {
        for (Receive& of : step->from) of.there_now = mine_;  // most likely as here
        list(*step);
      }
    }
    for (const Message& message : sends) {
      if (!message.slots.empty())
        sending_[tag].push_back({message.peer, message.slots, static_cast<int64_t>(message.slots.size())});
      else if (message.blocks > 0)
        sending_[tag].push_back({message.peer, {}, message.blocks});
    }
    if (const auto step = sending_.find(tag); !sends.empty() && step != sending_.end()) {
      for (Send& send : step->second) {
        done.push_back({send.peer, {{reinterpret_cast<std::byte*>(&send.taken), 1}}});
        told.push_back({send.peer, {send.slots.empty() ? words_of(mine_) : words_of(send.slots)}});
      }
    }
    slots_.start(tag, heard, told);
    taken_.start(tag, done, {});
    if (!heard.empty()) under_way_.push_back(tag);
    progress();
  }

  bool receive_again(int tag) override {
    const auto before = kept_.find(tag);
    if (before == kept_.end()) return false;
    const cuda::CurrentDevice current(gpu_);
    slots_.start(tag, heard_of(again(before)), {});
    under_way_.push_back(tag);
    progress();
    return true;
  }

  bool takes_sends_ahead() const override { return true; }
  bool reads_from_peers() const override { return true; }

  bool reads_rows(const RowLayout& layout) override {
    layout_ = layout;
    return static_cast<size_t>(ranks_.size() - 1) <= cuda::kMostRowPeers;
  }
  bool send_from_rows(const RowArrays& arrays) override {
    const cuda::CurrentDevice current(gpu_);
    if (arrays.rows == 0 || arrays.first != shown_.first || arrays.second != shown_.second || arrays.rows != shown_.rows)
      shown_ = arrays, mine_ = arrays.rows > 0 ? peer_memory::rows_to_show(arrays) : RowsThere{};
    return mine_.rows > 0;
  }

  // Compute that is started before a step's kernel has its multiprocessors takes all of them and leaves none until its end.
  void let_it_begin() override {
    constexpr double kPatience = 0.0002;  // seconds: for what peers say, and for a launch
    const auto start = Clock::now();
    while (true) {
      progress();  // takes out what is over
      if (under_way_.empty() || receiving_.at(under_way_.front()).has_multiprocessors() || seconds_since(start) > kPatience) return;
      sched_yield();
    }
  }

  void progress() override {
    slots_.progress();
    taken_.progress();
    // In the order of their start: what is needed first comes first, also where its homes are the last to say where it lies.
    for (const int tag : under_way_) {
      Receiving& step = receiving_.at(tag);
      if (!step.is_started && !slots_.received(tag)) break;
      if (!step.is_started) copy(step);
    }
    while (!under_way_.empty() && receiving_.at(under_way_.front()).is_over()) over(under_way_.front()), under_way_.pop_front();
  }

  void abandon() override { is_abandoned_ = true; }

  bool received(int tag) override {
    progress();
    return receiving_.find(tag) == receiving_.end();
  }

  void finish_receives(int tag) override {
    if (received(tag)) return;
    slots_.finish_receives(tag);
    constexpr auto kBusyTime = std::chrono::milliseconds(2);
    constexpr auto kNap = std::chrono::microseconds(50);
    const auto start = Clock::now();
    while (!received(tag)) {
      if (timeout_ > 0 && seconds_since(start) > timeout_)
        throw Error({.code = ExitCode::device,
                     .what = fmt::format("this rank's GPU did not copy what step {} of the exchange brings in {:.3g} s", tag, timeout_),
                     .from = fmt::format("rank {}", ranks_.rank()),
                     .mend = "see whether nvidia-smi finds the devices in order; --transport nccl or mpi does without peer access"});
      if (Clock::now() - start > kBusyTime) std::this_thread::sleep_for(kNap);
      sched_yield();
    }
  }

  void finish_sends(int tag) override {
    finish_receives(tag);
    taken_.finish_sends(tag);
    const auto step = sending_.find(tag);
    if (step == sending_.end()) return;
    slots_.finish_sends(tag);
    taken_.finish_receives(tag);
    for (const Send& send : step->second) bytes_sent_ += send.blocks * block_bytes_;
    sending_.erase(step);
  }

  void set_timeout(double seconds) override {
    timeout_ = seconds;
    slots_.set_timeout(seconds);
    taken_.set_timeout(seconds);
  }
  int64_t bytes_received() const override { return bytes_received_; }
  int64_t bytes_sent() const override { return bytes_sent_; }

 private:
  struct Receive {  // of one home
    int peer = 0;
    std::vector<int32_t> there, here;  // slots
    bool knows = false;                // `there` was named here
    RowsThere there_now{};             // what home says then: that the blocks are there, in its pool or in these rows
    bool in_rows = false;              // which of the two the step's lists were made for
  };
  struct Run {
    cuda::BlockCopy first;
    int64_t bytes;
  };
  struct Receiving {
    std::vector<Receive> from;
    bool is_listed = false, is_started = false;
    std::vector<Run> runs;                     // for the copy engine
    int64_t blocks = 0, of_rows = 0;           // for multiprocessors:
    std::unique_ptr<cuda::PinnedMemory> list;  // {begun, copies of blocks, of rows}; none: the copy engine does it all
    cuda::Event done;
    bool knows() const {
      return std::all_of(from.begin(), from.end(), [](const Receive& of) { return of.knows; });
    }
    bool is_over() const { return is_started && done.done(); }
    bool has_multiprocessors() const {
      return is_started && (!list || done.done() || *reinterpret_cast<const volatile uint32_t*>(list->get()) != 0);
    }
  };
  struct Send {
    int peer;
    std::vector<int32_t> slots;  // none: the peer knows them, or finds the blocks in rows
    int64_t blocks;
    uint64_t taken = 0;
  };
  static_assert(sizeof(cuda::RowCopy) == sizeof(cuda::BlockCopy), "they share a list");
  static constexpr int64_t kListHead = 256;  // bytes before the copies

  // The step that these messages are, with its lists if it is one as before; null if they bring nothing.
  Receiving* receiving_for(int tag, const std::vector<Message>& receives) {
    const auto brings = [](const Message& message) { return !message.slots.empty(); };
    if (std::none_of(receives.begin(), receives.end(), brings)) return nullptr;
    if (const auto before = kept_.find(tag); before != kept_.end()) {
      auto of = before->second.from.begin();
      const auto is_same = [&, end = before->second.from.end()](const Message& message) {
        if (!brings(message)) return true;
        if (of == end) return false;
        const Receive& known = *of++;
        return known.peer == message.peer && known.here == message.slots && known.there == message.slots_there;
      };
      if (std::all_of(receives.begin(), receives.end(), is_same) && of == before->second.from.end()) return &again(before);
      if (before->second.list) idle_.push_back(std::move(before->second.list));
      kept_.erase(before);
    }
    Receiving& step = receiving_[tag];
    for (const Message& message : receives) {
      if (!brings(message)) continue;
      Receive& receive = step.from.emplace_back();
      receive.peer = message.peer;
      receive.here = message.slots;
      receive.there = message.slots_there;
      receive.knows = !receive.there.empty();
      if (!receive.knows) receive.there.resize(message.slots.size());
    }
    return &step;
  }

  Receiving& again(std::map<int, Receiving>::iterator kept) {
    Receiving& step = receiving_.insert(kept_.extract(kept)).position->second;
    step.is_started = false;
    begin_list(step);
    return step;
  }

  // What homes say: that their blocks are there, and in which slots, unless it is known.
  static std::vector<BlockExchange::Message> heard_of(Receiving& step) {
    std::vector<BlockExchange::Message> heard;
    for (Receive& of : step.from) {
      heard.push_back({of.peer, {of.knows ? words_of(of.there_now) : words_of(of.there)}});
    }
    return heard;
  }
  static BlockExchange::Piece words_of(std::vector<int32_t>& slots) {
    return {reinterpret_cast<std::byte*>(slots.data()), static_cast<int64_t>(slots.size())};
  }
  static BlockExchange::Piece words_of(RowsThere& there) {
    static_assert(sizeof there % sizeof(int32_t) == 0);
    return {reinterpret_cast<std::byte*>(&there), sizeof there / sizeof(int32_t)};
  }

  void begin_list(Receiving& step) const {
    if (step.list) *reinterpret_cast<volatile uint32_t*>(step.list->get()) = 0;
  }

  // What copies what, once it is known where it lies: thousands of blocks take a tenth of a millisecond, before their homes have them or
  // while they are read.
  void list(Receiving& step) {
    const bool by_engine = ranks_.size() == 2;
    std::vector<std::vector<cuda::BlockCopy>> by_home;
    std::vector<std::vector<cuda::RowCopy>> rows_by_home;
    step.runs.clear();
    for (Receive& of : step.from) {
      of.in_rows = of.there_now.rows > 0;
      if (of.in_rows)
        rows_by_home.push_back(rows_of(of));
      else
        by_home.push_back(blocks_of(of, by_engine ? &step.runs : nullptr));
    }
    const std::vector<cuda::BlockCopy> copies = in_turns(std::move(by_home));
    const std::vector<cuda::RowCopy> of_rows = in_turns(std::move(rows_by_home));
    step.blocks = static_cast<int64_t>(copies.size()), step.of_rows = static_cast<int64_t>(of_rows.size());
    step.is_listed = true;
    if (step.list) idle_.push_back(std::move(step.list));
    if (step.blocks + step.of_rows == 0) return;
    step.list = idle_list(step.blocks + step.of_rows);
    begin_list(step);
    std::byte* const first = step.list->get() + kListHead;
    std::copy(copies.begin(), copies.end(), reinterpret_cast<cuda::BlockCopy*>(first));
    std::copy(of_rows.begin(), of_rows.end(), reinterpret_cast<cuda::RowCopy*>(first) + step.blocks);
  }

  void copy(Receiving& step) {
    const cuda::CurrentDevice current(gpu_);
    const auto is_as_listed = [](const Receive& of) { return of.in_rows == (of.there_now.rows > 0); };
    if (!step.is_listed || !std::all_of(step.from.begin(), step.from.end(), is_as_listed)) list(step);
    if (step.list) {
      const int64_t bytes = (step.blocks + step.of_rows) * static_cast<int64_t>(sizeof(cuda::BlockCopy));
      // One of them will do: the stream orders its next use behind this one.
      copies_.reserve(bytes, stream_);
      cuda::copy_small(copies_.get(), step.list->get() + kListHead, bytes, stream_.get());
      auto* const begun = reinterpret_cast<volatile uint32_t*>(step.list->get());
      const int multiprocessors = ranks_.size() == 2 ? kOfTwo : kOfMore;
      const auto* const blocks = copies_.as<cuda::BlockCopy>();
      cuda::copy_blocks(blocks, step.blocks, block_bytes_, multiprocessors, begun, stream_.get());
      if (step.of_rows > 0) {
        std::vector<cuda::PeerRows> peers(static_cast<size_t>(ranks_.size() - 1));
        for (const Receive& of : step.from)
          if (of.in_rows) peers[number_of(of.peer)] = opened_->of(of.peer, of.there_now);
        cuda::copy_rows(peers, layout_.columns, layout_.column_bytes, reinterpret_cast<const cuda::RowCopy*>(blocks + step.blocks),
                        step.of_rows, quarters_of_block(), multiprocessors, begun, stream_.get());
      }
    }
    for (const Run& run : step.runs)
      cuda::check(cudaMemcpyAsync(run.first.to, run.first.from, static_cast<size_t>(run.bytes), cudaMemcpyDefault, engine_stream_.get()),
                  "cudaMemcpyAsync");
    if (!step.runs.empty()) {
      engine_done_.record(engine_stream_.get());
      stream_.wait_for(engine_done_);
    }
    step.done.record(stream_.get());
    step.is_started = true;
  }

  // Of the other ranks.
  size_t number_of(int peer) const { return static_cast<size_t>(peer < ranks_.rank() ? peer : peer - 1); }
  int quarters_of_block() const { return static_cast<int>(block_bytes_ / (cuda::kQuarterRows * layout_.column_bytes)); }

  std::vector<cuda::RowCopy> rows_of(const Receive& of) const {
    std::vector<cuda::RowCopy> copies;
    copies.reserve(of.here.size());
    for (size_t i = 0; i < of.here.size(); ++i) {
      const RowPlace place = layout_.place(of.peer, of.there[i]);
      copies.push_back({pool_ + of.here[i] * block_bytes_, place.first_row, static_cast<uint8_t>(place.rows),
                        cuda::RowCopy::quarter_of(number_of(of.peer), place.quarter), static_cast<uint16_t>(place.column)});
    }
    return copies;
  }

  cuda::BlockCopy copy_of(const Receive& of, size_t i) const {
    return {peers_->of(of.peer) + of.there[i] * block_bytes_, pool_ + of.here[i] * block_bytes_};
  }

  // Those of one home; but long runs go to `runs`, if there is one.
  std::vector<cuda::BlockCopy> blocks_of(const Receive& of, std::vector<Run>* runs) const {
    std::vector<cuda::BlockCopy> blocks(of.here.size());
    auto next = blocks.begin();
    for (size_t begin = 0, end; begin < of.here.size(); begin = end) {
      end = begin + 1;
      while (end < of.here.size() && of.here[end] == of.here[end - 1] + 1 && of.there[end] == of.there[end - 1] + 1) ++end;
      const auto bytes = static_cast<int64_t>(end - begin) * block_bytes_;
      if (runs != nullptr && bytes >= kLongRun)
        runs->push_back({copy_of(of, begin), bytes});
      else
        for (size_t i = begin; i < end; ++i) *next++ = copy_of(of, i);
    }
    blocks.erase(next, blocks.end());
    return blocks;
  }

  // Of all homes side by side, each at its share: read one home after another, ranks that are not in step ask the same one at once, and its
  // link is the limit for all of them. Four H100 of one process that read 1 GiB from each of the others got 335 GB/s each by this kernel,
  // from homes in turns or not; by copy engines 391 in step, 234 out of step, 197 when all began with the same home.
  // Example: 2 blocks of one home and 4 of another are a A A b B B.
  template <typename Copy>
  static std::vector<Copy> in_turns(std::vector<std::vector<Copy>> by_home) {
    if (by_home.size() == 1) return std::move(by_home.front());
    size_t most = 0, all = 0;
    for (const auto& copies : by_home) most = std::max(most, copies.size()), all += copies.size();
    std::vector<Copy> merged;
    merged.reserve(all);
    std::vector<size_t> taken(by_home.size());
    for (size_t turn = 1; turn <= most; ++turn)
      for (size_t home = 0; home < by_home.size(); ++home)
        while (taken[home] * most < turn * by_home[home].size()) merged.push_back(by_home[home][taken[home]++]);
    return merged;
  }

  void over(int tag) {
    Receiving& step = receiving_.at(tag);
    std::vector<BlockExchange::Message> taken;
    for (const Receive& of : step.from) {
      bytes_received_ += static_cast<int64_t>(of.here.size()) * block_bytes_;
      taken.push_back({of.peer, {{reinterpret_cast<std::byte*>(&taken_word_), 1}}});
    }
    taken_.start(tag, {}, taken);
    if (keeps_ && step.knows()) {
      kept_.insert(receiving_.extract(tag));
      return;
    }
    if (step.list) idle_.push_back(std::move(step.list));
    receiving_.erase(tag);
  }

  static int64_t list_bytes(int64_t copies) { return kListHead + copies * static_cast<int64_t>(sizeof(cuda::BlockCopy)); }

  // The smallest that will do; a new one for as many copies as `room` says, or some more, so that lists seldom grow.
  std::unique_ptr<cuda::PinnedMemory> idle_list(int64_t copies, int64_t room = 0) {
    auto best = idle_.end();
    for (auto list = idle_.begin(); list != idle_.end(); ++list)
      if ((*list)->bytes() >= list_bytes(copies) && (best == idle_.end() || (*list)->bytes() < (*best)->bytes())) best = list;
    if (best == idle_.end()) {
      const auto some_more = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(kLeastList, copies))));
      return std::make_unique<cuda::PinnedMemory>(list_bytes(room > 0 ? room : some_more));
    }
    std::unique_ptr<cuda::PinnedMemory> list = std::move(*best);
    idle_.erase(best);
    return list;
  }

  const Communicator& ranks_;
  IdleLists& idle_;
  int gpu_;
  cuda::CurrentDevice current_;
  std::byte* pool_;
  int64_t block_bytes_;
  uint64_t taken_word_ = 0;  // that it comes is all it says
  bool is_abandoned_ = false;
  std::optional<PeerMemory> peers_;
  std::optional<OpenedRows> opened_ = std::make_optional<OpenedRows>();
  RowLayout layout_;
  RowArrays shown_;   // rows that this rank sends out of, if it does,
  RowsThere mine_{};  // and what others are told of them
  cuda::Stream stream_, engine_stream_;
  cuda::Event engine_done_;
  cuda::DeviceMemory copies_;
  std::deque<int> under_way_;  // tags of `receiving_`, as they were started
  std::map<int, Receiving> receiving_;
  bool keeps_ = false;
  std::map<int, Receiving> kept_;  // by tag: as they were when they were over
  std::map<int, std::vector<Send>> sending_;
  double timeout_ = 300;
  int64_t bytes_received_ = 0, bytes_sent_ = 0;
  // Last: what is on its way is cancelled before its memory goes.
  BlockExchange slots_;  // from home: that blocks are there, and where they lie
  BlockExchange taken_;  // to home: they are not needed any more
};

class PeerTransport : public Transport {
 public:
  explicit PeerTransport(int gpu) : gpu_(gpu) {}
  std::string name() const override { return "peer access (CUDA IPC)"; }
  bool reads_from_peers() const override { return true; }
  std::unique_ptr<PoolExchange> between_pools(const Communicator& ranks, std::byte* pool, int64_t block_bytes) override {
    return std::make_unique<PeerExchange>(ranks, idle_, pool, block_bytes, gpu_);
  }

 private:
  int gpu_;
  IdleLists idle_;
};

}  // namespace

std::string why_no_peer_access(const Communicator& ranks, int gpu_ordinal) {
  if (ranks.hosts() > 1) return fmt::format("the ranks are on {} hosts", ranks.hosts());
  const int mine = ranks.rank();
  std::string why_not;
  // All ranks go through what is collective, whatever happens to one of them before.
  const auto attempt = [&](const auto& step) {
    try {
      step();
    } catch (const Error& error) {
      const Problem& problem = error.problems().front();
      if (why_not.empty()) why_not = problem.seen.empty() ? problem.what : problem.what + ": " + problem.seen;
    }
  };
  std::optional<cuda::CurrentDevice> current;
  std::optional<cuda::DeviceMemory> memory;
  std::byte* shown = nullptr;
  attempt([&] {
    current.emplace(gpu_ordinal);
    memory.emplace(static_cast<int64_t>(sizeof mine));
    cuda::check(cudaMemcpy(memory->get(), &mine, sizeof mine, cudaMemcpyHostToDevice), "cudaMemcpy");
    shown = memory->get();
  });
  attempt([&] {
    const PeerMemory peers(ranks, shown);
    for (int rank = 0; rank < ranks.size(); ++rank) {
      int theirs = rank;
      if (rank != mine) cuda::check(cudaMemcpy(&theirs, peers.of(rank), sizeof theirs, cudaMemcpyDefault), "cudaMemcpy");
      if (theirs != rank) why_not = fmt::format("rank {} reads {} in the memory of rank {}", mine, theirs, rank);
    }
  });
  ranks.barrier();  // the others have read too
  return why_not;
}

std::unique_ptr<Transport> peer_transport(int gpu_ordinal) { return std::make_unique<PeerTransport>(gpu_ordinal); }

}  // namespace longspan::comm
