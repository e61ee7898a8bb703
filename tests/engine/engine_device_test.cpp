// What the engine asks of its device: steps one beside another, and lists that it keeps or forgets.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine_run.hpp"
#include "tests/support/test_devices.hpp"

namespace longspan::testing {
namespace {

// CPUs whose steps write results, as a GPU's do where each is the only one of its stripe, and which take a second step beside the first:
// that is not over until there is one, or a while has passed.
class TakesTwoSteps : public CpuWithSpareThreads {
 public:
  using CpuWithSpareThreads::CpuWithSpareThreads;
  bool finishes_in_steps() const override { return true; }
  bool can_start_beside() const override { return true; }
  void start(const kernels::Step& step, int64_t q_rows, const kernels::Pool& pool, const kernels::Results& results) override {
    running_ = {step, q_rows, pool, results};
    began_ = std::chrono::steady_clock::now();
    CpuDevice::start(step, q_rows, pool, results);
  }
  void start_beside(const kernels::Step& step, int64_t q_rows, const kernels::Pool& pool, const kernels::Results& results) override {
    ASSERT_TRUE(running_ && !next_);
    next_ = {step, q_rows, pool, results};
    is_behind_ = false;
  }
  void start_behind(const kernels::Step& step, int64_t q_rows, const kernels::Pool& pool, const kernels::Results& results) override {
    ASSERT_TRUE(running_ && !next_);
    next_ = {step, q_rows, pool, results};
    ++behind, is_behind_ = true;
  }
  // Behind the step that runs, and before one that is started behind it.
  void merge_blocks(std::span<const kernels::MergeBlocks> all) override {
    std::vector<std::vector<kernels::StateBlock>> blocks;
    std::vector<float*> packed;
    for (const kernels::MergeBlocks& one : all) blocks.emplace_back(one.blocks.begin(), one.blocks.end()), packed.push_back(one.packed);
    after_step([this, blocks = std::move(blocks), packed = std::move(packed)] {
      std::vector<kernels::MergeBlocks> merges;
      for (size_t i = 0; i < packed.size(); ++i) merges.push_back({blocks[i], packed[i]});
      CpuDevice::merge_blocks(merges);
    });
  }
  void start_download(const void* from, int64_t bytes, void* to) override {
    after_step([this, from, bytes, to] { CpuWithSpareThreads::start_download(from, bytes, to); });
  }
  bool is_downloaded() override { return after_.empty() && CpuWithSpareThreads::is_downloaded(); }
  bool wait_for(double seconds) override {
    if (!running_) return true;
    if (!next_ && std::chrono::steady_clock::now() - began_ < patience) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      return false;
    }
    if (!CpuDevice::wait_for(seconds)) return false;
    const auto& [step, rows, pool, results] = *running_;
    if (results.o != nullptr)  // of long rows there are states
      finish({step.heads, step.head_dim, rows, step.m, step.l, step.o, results.type, results.o, results.lse});
    running_.reset();
    for (const auto& work : std::exchange(after_, {})) work();
    if (const std::optional<Started> next = std::exchange(next_, std::nullopt)) start(next->step, next->q_rows, next->pool, next->results);
    return true;
  }
  int behind = 0;                           // steps
  std::chrono::milliseconds patience{100};  // until a step without a next one is over

 private:
  void after_step(std::function<void()> work) {
    EXPECT_FALSE(next_ && is_behind_) << "what a step is started behind is asked for after it";
    if (running_)
      after_.push_back(std::move(work));
    else
      work();
  }
  struct Started {
    kernels::Step step;
    int64_t q_rows;
    kernels::Pool pool;
    kernels::Results results;
  };
  std::optional<Started> running_, next_;
  bool is_behind_ = false;                    // the next one
  std::vector<std::function<void()>> after_;  // the step that runs
  std::chrono::steady_clock::time_point began_;
};

TEST(EngineBesideTest, AStripesOnlyStepStartsBeforeTheEndOfTheOneBefore) {
  const comm::Communicator world(MPI_COMM_WORLD);
  TakesTwoSteps device(2);
  if (world.size() == 1) device.patience *= 5;  // nobody else's keys may be late, whatever else this machine does
  comm::MpiTransport transport;
  for (const std::string text : {"block_random(128, 4, 3)", "causal & window(700)"}) {
    SCOPED_TRACE(text);
    Problem problem(shape_of(ElementType::bfloat16, 4, 2, 16), Documents::single(plan::kBlock * 47 * world.size() + 77), text);
    if (text != "block_random(128, 4, 3)" && world.size() > 1) continue;  // stripes have two steps
    const Outcome outcome = attend_on(device, transport, world, problem, {.stripes = 5, .twice = true, .as_on_gpu = true});
    testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 53, false);
    EXPECT_EQ(outcome.record.steps_beside, static_cast<int64_t>(outcome.plan.stripes.size()) - 1);
  }
}

// The first stripe of own rows need not wait for anybody either: what long rows leave for others is packed before it.
TEST(EngineBesideTest, AStepIsStartedBehindTheOneOfLongRowsAndItsPacking) {
  const comm::Communicator world(MPI_COMM_WORLD);
  TakesTwoSteps device(2);
  if (world.size() == 1) device.patience *= 5;
  comm::MpiTransport transport;
  Problem problem(shape_of(ElementType::bfloat16, 4, 2, 16), Documents::single(plan::kBlock * 47 * world.size() + 77),
                  "block_random(128, 4, 3) | global(100, 120)");
  const Outcome outcome = attend_on(device, transport, world, problem, {.stripes = 5, .twice = true, .as_on_gpu = true});
  testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 53, false);
  EXPECT_GE(world.max(int64_t{device.behind}), 1);  // where its keys came in time
  if (world.size() == 1) {
    EXPECT_EQ(device.behind, 2);  // one in each run
  }
}

// Rows in memory that the device reaches: nothing is read, but by an input that stands before this one (NoValues).
class LiesThere : public WholeInput {
 public:
  explicit LiesThere(Problem& problem) : WholeInput(problem), problem_(problem) {}
  const std::byte* q_in_place(int64_t begin, int64_t) override { return row(problem_.q(), problem_.shape().heads, begin); }
  const std::byte* k_in_place(int64_t begin, int64_t) override { return row(problem_.k(), problem_.shape().kv_heads, begin); }
  const std::byte* v_in_place(int64_t begin, int64_t) override { return row(problem_.v(), problem_.shape().kv_heads, begin); }
  void read_q(int64_t begin, int64_t count, std::byte* out) override {
    if (!may_be_read) throw std::runtime_error("queries are read that lie there");
    WholeInput::read_q(begin, count, out);
  }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    if (!may_be_read) throw std::runtime_error("keys are read that lie there");
    WholeInput::read_k(begin, count, head, heads, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    if (!may_be_read) throw std::runtime_error("values are read that lie there");
    WholeInput::read_v(begin, count, head, heads, out);
  }
  bool may_be_read = false;

 private:
  const std::byte* row(const std::vector<std::byte>& rows, int heads, int64_t begin) const {
    return rows.data() + static_cast<size_t>(begin * heads) * problem_.row_bytes(1);
  }
  Problem& problem_;
};

// How many blocks it is asked to load, at a time and in all.
class CountsLoads : public CpuWithSpareThreads {
 public:
  using CpuWithSpareThreads::CpuWithSpareThreads;
  int64_t start_loading(const kernels::KeyBlocks& blocks, const kernels::Pool& pool) override {
    loads.push_back(static_cast<int64_t>(blocks.rows.size()));
    loaded += loads.back();
    return CpuWithSpareThreads::start_loading(blocks, pool);
  }
  std::vector<int64_t> loads;
  int64_t loaded = 0;
};

// The device loads own keys in parts, those first that others get first, and brings the queries of long rows to the host.
TEST(EngineInPlaceTest, RowsThatTheDeviceReachesAreUsedWhereTheyLie) {
  const comm::Communicator world(MPI_COMM_WORLD);
  comm::MpiTransport transport;
  for (const std::string text : {"block_random(128, 4, 3) | global(100, 400)", "causal & window(700)", "full"}) {
    SCOPED_TRACE(text);
    CountsLoads device(2);
    Problem problem(shape_of(ElementType::bfloat16, 4, 2, 16), Documents::from_lengths({plan::kBlock * 11 * world.size() + 77, 300, 1}),
                    text);
    LiesThere input(problem);
    const Outcome outcome = attend_on(device, transport, world, problem, {.stripes = 3, .as_on_gpu = true}, {}, &input);
    testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 53, false);
    EXPECT_EQ(device.loaded, size_of(outcome.plan.own));
  }
}

// Attends units where their rows lie, once it has looked through them.
class AttendsRows : public CountsLoads {
 public:
  using CountsLoads::CountsLoads;
  bool attends_rows(ElementType, int, float) const override { return true; }
  int64_t start_checking(const kernels::KeysInRows& keys, ElementType, int, int, std::span<const int32_t> parts) override {
    checked_ = nullptr;
    begin_run();
    return start_later([this, flags = keys.nonfinite, all = std::set<int64_t>(parts.begin(), parts.end())] {
      checked_ = flags, checked_parts = all, ++checks;
    });
  }
  void units_arrived(const kernels::Pool& pool, std::span<const int32_t> slots, ElementType type, int head_dim) override {
    arrived += static_cast<int64_t>(slots.size());
    note(slots);
    CountsLoads::units_arrived(pool, slots, type, head_dim);
  }
  void load_units(const kernels::KeyBlocks& blocks, const ReadKeys& read, const kernels::Pool& pool) override {
    note(blocks.slots);
    CountsLoads::load_units(blocks, read, pool);
  }
  void start(const kernels::Step& step, int64_t q_rows, const kernels::Pool& pool, const kernels::Results& results) override {
    const int64_t row = step.head_dim * static_cast<int64_t>(size_of(step.type)), unit = 2 * kernels::kTile * row;
    const auto units = static_cast<size_t>(step.resident * step.kv_heads);
    pool_.assign(units * static_cast<size_t>(unit), std::byte{0xff});  // NaN
    slots_.resize(units);
    for (size_t i = 0; i < units; ++i) {
      slots_[i] = static_cast<int32_t>(i);
      std::byte* to = pool_.data() + static_cast<int64_t>(i) * unit;
      const int32_t slot = step.slots[i];
      if (slot >= 0) std::memcpy(to, step.pool + slot * unit, static_cast<size_t>(unit));
      if (slot >= -1) continue;
      EXPECT_EQ(checked_, step.in_rows.nonfinite);
      const int64_t first = kernels::KeysInRows::first_row(slot), head = static_cast<int64_t>(i) / step.resident;
      for (int64_t key = 0; key < std::min<int64_t>(kernels::kTile, step.in_rows.rows - first); ++key) {
        const int64_t from = ((first + key) * step.kv_heads + head) * row;
        std::memcpy(to + key * row, step.in_rows.k + from, static_cast<size_t>(row));
        std::memcpy(to + (kernels::kTile + key) * row, step.in_rows.v + from, static_cast<size_t>(row));
      }
      ++units_in_rows;
    }
    // Whoever is in a tile with a mask has been looked through.
    for (const kernels::Work& work : step.work)
      for (const kernels::Tile& tile : step.tiles.subspan(static_cast<size_t>(work.first_tile), static_cast<size_t>(work.tile_count)))
        for (int64_t key = tile.key; key < tile.key + (tile.form == kernels::Tile::Form::full ? tile.count : 1); ++key) {
          if (!kernels::has_mask(tile, step.key_rows[key])) continue;
          const int32_t slot = step.slots[work.kv_head * step.resident + key];
          if (slot >= 0) {
            EXPECT_TRUE(looked_through_.contains(slot));
            continue;
          }
          const int64_t first = kernels::KeysInRows::first_row(slot);
          EXPECT_TRUE(checked_parts.contains(first / kernels::kTile));
          EXPECT_TRUE(checked_parts.contains((std::min(first + kernels::kTile, step.in_rows.rows) - 1) / kernels::kTile));
        }
    kernels::Step in_pool = step;
    in_pool.pool = pool_.data(), in_pool.slots = slots_.data();
    CountsLoads::start(in_pool, q_rows, pool, results);
  }
  int checks = 0;
  int64_t units_in_rows = 0;
  std::set<int64_t> checked_parts;  // of rows, in this run, or the latest one that had some
  int64_t arrived = 0;              // units, since then

 private:
  void begin_run() {
    const std::lock_guard lock(mutex_);
    looked_through_.clear(), arrived = 0;
  }
  void note(std::span<const int32_t> slots) {
    const std::lock_guard lock(mutex_);
    looked_through_.insert(slots.begin(), slots.end());
  }
  std::mutex mutex_;
  std::set<int32_t> looked_through_;  // slots of units
  const uint8_t* checked_ = nullptr;
  std::vector<std::byte> pool_;
  std::vector<int32_t> slots_;
};

// Then only what others get is loaded, but all where that is most of it. In runs before keys lay elsewhere, some of them out of reach.
TEST(EngineInPlaceTest, OwnKeysStayInRowsThatTheDeviceAttends) {
  const comm::Communicator world(MPI_COMM_WORLD);
  comm::MpiTransport transport;
  bool later_ones = false;  // some were sent by a step that is not asked for at first
  const auto attend_in = [&](const std::string& text, int64_t blocks, const Setting& setting, bool lies_there, bool in_rows) {
    SCOPED_TRACE(text);
    AttendsRows device(2);
    Problem problem(shape_of(ElementType::bfloat16, 4, 2, 16), Documents::from_lengths({plan::kBlock * blocks * world.size() + 77, 300, 1}),
                    text);
    if (world.size() < 3) problem.poison_unreferenced();  // it looks for them pair by pair
    LiesThere there(problem);
    there.may_be_read = true;  // by NoValues
    WholeInput elsewhere(problem);
    engine::Input& input = lies_there ? static_cast<engine::Input&>(there) : elsewhere;
    const Outcome outcome = attend_on(device, transport, world, problem, setting, {}, &input);
    testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 53, false);
    EXPECT_EQ(outcome.record.keys_in_rows, in_rows);
    const int before = setting.twice && setting.in_place_before && !setting.keys_into_pool ? setting.times_before : 0;
    EXPECT_EQ(device.checks, before + (in_rows ? 1 : 0));
    EXPECT_EQ(device.units_in_rows > 0, before > 0 || in_rows);
    Intervals sent, first;
    size_t t = 0;
    for (const auto& of_stripe : outcome.schedule.exchanges)
      for (const engine::StepExchange& step : of_stripe) {
        for (const engine::PeerUnits& peer : step.send)
          for (const engine::UnitRun& run : peer.runs) {
            sent.push_back(run.blocks());
            if (t <= std::max(outcome.schedule.first_fetch, static_cast<size_t>(outcome.schedule.ahead - 1))) first.push_back(run.blocks());
          }
        ++t;
      }
    sent = normalised(std::move(sent)), first = normalised(std::move(first));
    later_ones = later_ones || (in_rows && size_of(sent) > size_of(first));
    if (in_rows) {
      EXPECT_EQ(device.loaded, (1 + before) * size_of(sent));
    } else if (lies_there && !setting.twice) {
      EXPECT_EQ(device.loaded, size_of(outcome.plan.own));
    }
  };
  const std::string window = "causal & window(300)", random = "bigbird(64, 3, 2, 1, 3)";
  // Three blocks of seven or more go to others, or nearly all.
  attend_in(window, 7, {.stripes = 3, .as_on_gpu = true}, true, true);
  attend_in(random, 7, {.stripes = 3, .as_on_gpu = true}, true, world.size() == 1);
  attend_in(window, 7, {.stripes = 3, .as_on_gpu = true, .keys_into_pool = true}, true, false);
  attend_in(window, 7, {.stripes = 3, .twice = true, .times_before = 2, .as_on_gpu = true}, true, true);
  attend_in(window, 7, {.stripes = 3, .twice = true, .as_on_gpu = true, .in_place_before = true}, true, true);
  attend_in(window, 7, {.stripes = 3, .twice = true, .as_on_gpu = true, .in_place_before = true}, false, false);
  // Rows that do not follow each other: two runs of blocks for each rank but the last, which has those in the middle.
  const bool is_last = world.rank() == world.size() - 1;
  attend_in(window, 7, {.partition = plan::PartitionKind::zigzag, .stripes = 3, .as_on_gpu = true}, true, is_last);
  // Every eighth block goes to all ranks after it, little by little.
  attend_in("causal & (window(100) | block_columns(128, 8, 7, 8))", 24, {.blocks_of_room = 2, .stripes = 3}, true, true);
  EXPECT_TRUE(world.size() < 3 || world.sum(int64_t{later_ones ? 1 : 0}) > 0);
  if (world.size() == 4)
    attend_in(window, 7, {.stripes = 3, .ranks_per_host = 2, .exchange = plan::ExchangeKind::node, .as_on_gpu = true}, true, true);
}

// Whose memory others can open.
class SharesRows : public AttendsRows {
 public:
  using AttendsRows::AttendsRows;
  kernels::Buffer allocate(int64_t bytes) override {
    return kernels::Buffer(allocate_shared(bytes), {[](void* memory, void*) { free_shared(memory); }, nullptr});
  }
};

// K and V lie in memory that others can open.
class LiesInSharedMemory : public LiesThere {
 public:
  explicit LiesInSharedMemory(Problem& problem)
      : LiesThere(problem), row_bytes_(problem.shape().kv_heads * static_cast<int64_t>(problem.row_bytes(1))) {
    for (const auto& [from, to] : {std::pair(&problem.k(), &k_), std::pair(&problem.v(), &v_)})
      std::copy(from->begin(), from->end(), to->emplace(static_cast<int64_t>(from->size()) + kBefore).get() + kBefore);
  }
  const std::byte* k_in_place(int64_t begin, int64_t) override { return k_->get() + kBefore + begin * row_bytes_; }
  const std::byte* v_in_place(int64_t begin, int64_t) override { return v_->get() + kBefore + begin * row_bytes_; }

 private:
  static constexpr int64_t kBefore = 48;  // bytes of something else
  int64_t row_bytes_;
  std::optional<SharedRows> k_, v_;
};

// Then nothing is loaded: others copy what they need out of these rows, however much that is, and not only while rows stay where they were.
TEST(EngineInPlaceTest, OthersReadKeysInTheRowsOfTheirHome) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const OpenDevice peers = OpenDevice::of(TestDevice::cpu_peer, world);
  if (peers.transport == nullptr) GTEST_SKIP() << peers.why_not;
  const auto attend_in = [&](const std::string& text, const Setting& setting, bool in_shared_memory, bool may) {
    SCOPED_TRACE(text);
    SharesRows device(2);
    Problem problem(shape_of(ElementType::bfloat16, 4, 2, 16), Documents::from_lengths({300, plan::kBlock * 7 * world.size() + 77, 1}),
                    text);
    if (world.size() < 3) problem.poison_unreferenced();
    std::optional<LiesThere> there;
    std::optional<LiesInSharedMemory> shared_rows;
    LiesThere& input = in_shared_memory ? shared_rows.emplace(problem) : there.emplace(problem);
    input.may_be_read = true;  // queries, where they do not follow each other, and by NoValues
    const Outcome outcome = attend_on(device, *peers.transport, world, problem, setting, {}, &input);
    testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 53, false);
    const bool shared = may && outcome.plan.own.size() == 1;  // rows that follow each other
    EXPECT_EQ(outcome.record.keys_shared, shared);
    EXPECT_TRUE(outcome.record.keys_in_rows || !shared);
    if (shared && !setting.twice) {
      EXPECT_EQ(device.loaded, 0);
    }
    return outcome.record.bytes_received;
  };
  const std::string window = "causal & window(300)", random = "bigbird(64, 3, 2, 1, 3)";
  const auto nothing_moved = [&](int64_t bytes) { return world.sum(bytes) == 0; };
  for (const std::string& text : {window, random, std::string("full")}) {
    EXPECT_FALSE(nothing_moved(attend_in(text, {.stripes = 3, .as_on_gpu = true, .share_keys = true}, true, true)));
    // Time after time: in the same rows, in others, and after they were in the pool.
    attend_in(text, {.stripes = 3, .twice = true, .times_before = 2, .as_on_gpu = true, .in_place_before = true, .share_keys = true}, true,
              true);
    attend_in(text, {.stripes = 3, .twice = true, .as_on_gpu = true, .share_keys = true}, true, true);
  }
  // In rows at first, and then not.
  attend_in(random, {.stripes = 3, .twice = true, .as_on_gpu = true, .in_place_before = true, .share_keys = true}, false, false);
  // Nobody said that they may, or the memory is not one that others can open.
  attend_in(random, {.stripes = 3, .as_on_gpu = true}, true, false);
  attend_in(random, {.stripes = 3, .as_on_gpu = true, .keys_into_pool = true, .share_keys = true}, true, false);
  attend_in(random, {.stripes = 3, .as_on_gpu = true, .share_keys = true}, false, false);
  // Those of some ranks do not.
  attend_in(random, {.partition = plan::PartitionKind::zigzag, .stripes = 3, .as_on_gpu = true, .share_keys = true}, true, true);
  // Little room, so that slots are used again and again.
  attend_in("causal & (window(100) | block_columns(128, 8, 7, 8))", {.blocks_of_room = 2, .stripes = 3, .share_keys = true}, true, true);
  if (world.size() == 4) {
    const Setting setting{.stripes = 3, .ranks_per_host = 2, .exchange = plan::ExchangeKind::node, .as_on_gpu = true, .share_keys = true};
    attend_in(random, setting, true, true);
  }
}

// NaN and ∞ are looked for where some tile has a mask: in runs that find the lists of the one before.
TEST(EngineInPlaceTest, OnlyWhatIsMaskedIsLookedThrough) {
  const comm::Communicator world(MPI_COMM_WORLD);
  comm::MpiTransport transport;
  int64_t in_rows = 0;  // jobs
  const auto attend_in = [&](const std::string& text, const std::vector<int64_t>& lengths, int times_before, auto expect) {
    SCOPED_TRACE(text);
    AttendsRows device(2);
    Problem problem(shape_of(ElementType::bfloat16, 4, 2, 16), Documents::from_lengths(lengths), text);
    if (world.size() < 3) problem.poison_unreferenced();
    LiesThere input(problem);
    input.may_be_read = true;
    const Setting setting{.partition = plan::PartitionKind::contiguous,
                          .stripes = 3,
                          .twice = true,
                          .times_before = times_before,
                          .as_on_gpu = true,
                          .in_place_before = true};
    const Outcome outcome = attend_on(device, transport, world, problem, setting, {}, &input);
    testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 53, false);
    if (world.size() == 1) {
      EXPECT_TRUE(outcome.record.keys_in_rows);
    }
    if (!outcome.record.keys_in_rows) return;
    int64_t fetched = 0;
    for (const auto& of_stripe : outcome.schedule.exchanges)
      for (const engine::StepExchange& step : of_stripe)
        for (const engine::PeerUnits& peer : step.receive)
          for (const engine::UnitRun& run : peer.runs) fetched += run.kv_heads * run.blocks().length();
    ++in_rows;
    expect(static_cast<int64_t>(device.checked_parts.size()), size_of(outcome.plan.own), device.arrived, fetched);
  };
  const std::string blocks = "block_window(64, 1, 1) | global(0, 192)";
  const int64_t whole = plan::kBlock * 9 * world.size();
  const auto all = [](int64_t parts, int64_t own, int64_t arrived, int64_t fetched) {
    EXPECT_EQ(parts, own);
    EXPECT_EQ(arrived, fetched);
  };
  const auto none = [](int64_t parts, int64_t, int64_t arrived, int64_t) {
    EXPECT_EQ(parts, 0);
    EXPECT_EQ(arrived, 0);
  };
  attend_in(blocks, {whole, 640, 64}, 0, all);  // nobody knows
  attend_in(blocks, {whole, 640, 64}, 1, none);
  attend_in(blocks, {whole, 640, 64}, 3, none);
  // Ends of two documents, with what follows them in the same 128 rows.
  attend_in(blocks, {whole - 3, 640, 70}, 1, [](int64_t parts, int64_t own, int64_t arrived, int64_t) {
    EXPECT_LE(parts, std::min<int64_t>(own, 4));
    EXPECT_LE(arrived, 2 * 2);  // blocks and KV heads
  });
  attend_in("causal & window(300)", {whole, 640}, 1, all);
  EXPECT_GT(world.sum(in_rows), 0);
}

// First what others get first, which is little here, or nothing.
TEST(EngineInPlaceTest, TheDeviceBeginsToLoadWithLittle) {
  const comm::Communicator world(MPI_COMM_WORLD);
  comm::MpiTransport transport;
  CountsLoads device(2);
  Problem problem(shape_of(ElementType::bfloat16, 1, 1, 16), Documents::single(plan::kBlock * 1100 * world.size() + 77),
                  "causal & window(40) | global(0, 50)");
  LiesThere input(problem);
  const Outcome outcome = attend_on(device, transport, world, problem, {.stripes = 5, .as_on_gpu = true}, {}, &input);
  testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 1999, false);
  EXPECT_EQ(device.loaded, size_of(outcome.plan.own));
  std::vector<int64_t> most{512};  // blocks of a load, and of those after it
  for (const int64_t blocks : device.loads) {
    EXPECT_GT(blocks, 0);
    EXPECT_LE(blocks, most.back());
    most.push_back(blocks == most.back() ? 2 * blocks : most.back());
  }
  EXPECT_GE(device.loads.size(), 2);
}

// Units that are fetched keep their slots for the next run where all of a run have one, and are found there time after time.
TEST(EngineKeepsTest, UnitsStayWhereAllHaveRoom) {
  const comm::Communicator world(MPI_COMM_WORLD);
  comm::MpiTransport transport;
  CpuWithSpareThreads device(2);
  const auto problem_of = [&](const std::string& text) {
    return Problem(shape_of(ElementType::bfloat16, 4, 2, 16), Documents::single(plan::kBlock * 13 * world.size() + 77), text);
  };
  Problem some_long = problem_of("block_random(64, 4, 3) | global(100, 120)"), two_steps = problem_of("block_random(64, 4, 3)");
  Problem longer(shape_of(ElementType::bfloat16, 1, 1, 16), Documents::single(plan::kBlock * 100 * world.size()), "causal & window(200)");
  const auto stay = [&](Problem& problem, const Setting& setting) {
    const Outcome outcome = attend_on(device, transport, world, problem, setting);
    testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 53, false);
    return world.sum(int64_t{outcome.record.units_stayed ? 1 : 0});
  };
  EXPECT_EQ(stay(some_long, {.stripes = 3, .as_on_gpu = true}), 0) << "there is no run before";
  EXPECT_EQ(stay(some_long, {.stripes = 3, .twice = true, .as_on_gpu = true}), world.size());
  EXPECT_EQ(stay(some_long, {.stripes = 3, .twice = true, .times_before = 3, .as_on_gpu = true}), world.size());
  EXPECT_EQ(stay(two_steps, {.twice = true, .times_before = 2}), world.size());
  // Of many stripes not all are asked for before the first is over; with little room some come twice.
  EXPECT_EQ(stay(longer, {.stripes = 12, .twice = true, .times_before = 2}), 0);
  if (world.size() > 1) {
    EXPECT_EQ(stay(some_long, {.blocks_of_room = 2, .stripes = 3, .twice = true, .times_before = 2}), 0);
  }
  if (world.size() == 4) {  // what is passed on inside a host has its slots anew
    const Setting setting{.twice = true, .times_before = 2, .ranks_per_host = 2, .exchange = plan::ExchangeKind::node};
    EXPECT_EQ(stay(two_steps, setting), 0);
  }
}

// Keeps what is made ready of lists that stay, as a GPU does.
class KeepsLists : public CpuWithSpareThreads {
 public:
  using CpuWithSpareThreads::CpuWithSpareThreads;
  void prepare(const kernels::Step& step) override {
    if (step.lists_stay) ++prepared, kept.insert(step.work.data());
  }
  void forget_lists(const kernels::Work* work) override { kept.erase(work); }
  std::set<const kernels::Work*> kept;
  int prepared = 0;
};

// Whatever step the device was told of last, it knows none of them once the engine is gone: its next lists may lie where these lay.
TEST(EngineKeepsTest, NothingStaysOnTheDeviceAfterARunThatFails) {
  class Fails : public WholeInput {
   public:
    using WholeInput::WholeInput;
    void read_q(int64_t begin, int64_t count, std::byte* out) override {
      if (begin >= fail_from) throw std::runtime_error("unreadable");
      WholeInput::read_q(begin, count, out);
    }
    void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // lists come first
      WholeInput::read_k(begin, count, head, heads, out);
    }
    bool from_any_thread() const override { return false; }
    int64_t fail_from = 0;
  };
  const comm::Communicator alone(MPI_COMM_SELF);
  Problem problem(shape_of(ElementType::float32), Documents::single(3000), "causal");
  for (int64_t fail_from : {int64_t{0}, int64_t{2000}, int64_t{3000}}) {
    KeepsLists device(2);
    comm::MpiTransport transport;
    Fails input(problem);
    input.fail_from = fail_from;
    const auto run = [&] { attend_on(device, transport, alone, problem, {.stripes = 3, .twice = true}, {}, &input); };
    if (fail_from < 3000) {
      EXPECT_THROW(run(), std::runtime_error);
    } else {
      run();
    }
    EXPECT_TRUE(device.prepared > 0 || fail_from == 0);
    EXPECT_TRUE(device.kept.empty());
  }
}

}  // namespace
}  // namespace longspan::testing
