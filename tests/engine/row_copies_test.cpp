#include "engine/row_copies.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/cpu/device.hpp"

namespace longspan::engine {
namespace {

constexpr Shape kShape{.tokens = 40000, .heads = 4, .kv_heads = 2, .head_dim = 40, .type = ElementType::float16};
constexpr int64_t kRowBytes = 4 * 40 * 2;

// Byte b of a read of token t, KV head h: from all of them, so that any mistake of place shows.
std::byte byte_of(int dataset, int64_t token, int64_t at) { return static_cast<std::byte>((token * 31 + at * 7 + dataset) % 251); }

class Source : public Input, public Output {
 public:
  explicit Source(bool any_thread) : any_thread_(any_thread) {}
  void read_q(int64_t begin, int64_t count, std::byte* out) override { fill(0, begin, count, 0, kRowBytes, out); }
  void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    fill(1, begin, count, head * 80, heads * 80, out);
  }
  void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
    fill(2, begin, count, head * 80, heads * 80, out);
  }
  void write(int64_t begin, int64_t count, const std::byte* o, const float* lse) override {
    seen();
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t b = 0; b < kRowBytes; ++b)
        if (o[r * kRowBytes + b] != byte_of(3, begin + r, b)) ++wrong;
      for (int h = 0; h < kShape.heads; ++h)
        if (lse[r * kShape.heads + h] != static_cast<float>(begin + r) + static_cast<float>(h)) ++wrong;
      ++written[static_cast<size_t>(begin + r)];
    }
  }
  bool from_any_thread() const override { return any_thread_; }

  std::set<std::thread::id> threads;
  std::atomic<int64_t> wrong = 0, fail_at = -1;
  std::vector<std::atomic<int>> written = std::vector<std::atomic<int>>(static_cast<size_t>(kShape.tokens));

 private:
  void seen() {
    const std::lock_guard lock(mutex_);
    threads.insert(std::this_thread::get_id());
  }
  void fill(int dataset, int64_t begin, int64_t count, int64_t first, int64_t bytes, std::byte* out) {
    seen();
    if (fail_at >= begin && fail_at < begin + count) throw std::runtime_error("unreadable");
    for (int64_t r = 0; r < count; ++r)
      for (int64_t b = 0; b < bytes; ++b) *out++ = byte_of(dataset, begin + r, first + b);
  }
  bool any_thread_;
  std::mutex mutex_;
};

// Leaves threads to the host, and reaches memory as told.
class OtherDevice : public kernels::cpu::CpuDevice {
 public:
  OtherDevice() : CpuDevice(1) {}
  int spare_threads() const override { return 3; }
  kernels::Reach reach(const void*) const override { return reached; }
  kernels::Reach reached{.by_host = true, .straight = true};
};

class RowCopiesTest : public ::testing::TestWithParam<bool> {
 protected:
  Source source_{GetParam()};
  OtherDevice device_;
  RowCopies copies_{source_, source_, kShape, ElementType::float16, device_};
};

constexpr int64_t kFirst = 333, kCount = 33333;
const Intervals kTokens{{7, 40}, {100, 101}, {1000, 20000}, {20000, 20000}, {20001, 39999}};  // 10 MiB: several parts, the last one short

std::vector<int64_t> rows_of(const Intervals& tokens, int64_t first, int64_t count) {
  std::vector<int64_t> all;
  for (const Interval& run : tokens)
    for (int64_t token = run.begin; token < run.end; ++token) all.push_back(token);
  return {all.begin() + first, all.begin() + first + count};
}

TEST_P(RowCopiesTest, EveryRowComesToItsPlace) {
  std::vector<std::byte> q(kCount * kRowBytes), k(kCount * 80), v(kCount * 80);
  copies_.read_q(kTokens, kFirst, kCount, q.data());
  copies_.read_keys(kTokens, kFirst, kCount, 1, 1, k.data(), v.data());
  const std::vector<int64_t> rows = rows_of(kTokens, kFirst, kCount);
  for (int64_t r = 0; r < kCount; ++r) {
    for (int64_t b = 0; b < kRowBytes; ++b) ASSERT_EQ(q[r * kRowBytes + b], byte_of(0, rows[r], b)) << r << ' ' << b;
    for (int64_t b = 0; b < 80; ++b) {
      ASSERT_EQ(k[r * 80 + b], byte_of(1, rows[r], 80 + b)) << r << ' ' << b;
      ASSERT_EQ(v[r * 80 + b], byte_of(2, rows[r], 80 + b)) << r << ' ' << b;
    }
  }
  const bool only_here = source_.threads == std::set{std::this_thread::get_id()};
  EXPECT_EQ(only_here, !GetParam());
}

TEST_P(RowCopiesTest, EveryRowIsWrittenOnce) {
  const std::vector<int64_t> rows = rows_of(kTokens, kFirst, kCount);
  std::vector<std::byte> o(kCount * kRowBytes);
  std::vector<float> lse(kCount * kShape.heads);
  for (int64_t r = 0; r < kCount; ++r) {
    for (int64_t b = 0; b < kRowBytes; ++b) o[r * kRowBytes + b] = byte_of(3, rows[r], b);
    for (int h = 0; h < kShape.heads; ++h) lse[r * kShape.heads + h] = static_cast<float>(rows[r]) + static_cast<float>(h);
  }
  copies_.write(kTokens, kFirst, kCount, o.data(), lse.data());
  EXPECT_EQ(source_.wrong, 0);
  const std::set<int64_t> written(rows.begin(), rows.end());
  for (int64_t t = 0; t < kShape.tokens; ++t) ASSERT_EQ(source_.written[t], static_cast<int>(written.count(t))) << t;
}

// Rows of tokens [1000, 39999) lie in memory one after another, as Q, K and V and for results; those before do not.
class PlacedSource : public Source {
 public:
  explicit PlacedSource(bool any_thread) : Source(any_thread) {}
  const std::byte* q_in_place(int64_t begin, int64_t) override { return begin < 1000 ? nullptr : &memory[(begin - 1000) * kRowBytes]; }
  const std::byte* k_in_place(int64_t begin, int64_t) override { return begin < 1000 ? nullptr : &memory[(begin - 1000) * 160]; }
  const std::byte* v_in_place(int64_t begin, int64_t) override { return begin < 1000 ? nullptr : &memory[v_shift + (begin - 1000) * 160]; }
  kernels::Device::ResultRows in_place(int64_t begin, int64_t) override {
    if (begin < 1000) return {};
    return {&memory[(begin - 1000) * kRowBytes], &lse[static_cast<size_t>((begin - 1000) * kShape.heads)]};
  }
  int64_t v_shift = 1;
  std::vector<std::byte> memory = std::vector<std::byte>(39000 * kRowBytes);
  std::vector<float> lse = std::vector<float>(39000 * kShape.heads);
};

TEST_P(RowCopiesTest, RowsThatLieTogetherStayWhereTheyAre) {
  PlacedSource source(GetParam());
  RowCopies copies(source, source, kShape, ElementType::float16, device_);
  std::vector<std::byte> buffer(20 * kRowBytes);
  const int64_t first = 33 + 1;  // of kTokens: token 1000
  EXPECT_EQ(copies.read_q(kTokens, first + 5, 18000, nullptr), &source.memory[5 * kRowBytes]);
  const auto keys = copies.read_keys(kTokens, first + 5, 18000, 0, 2, nullptr, nullptr);
  EXPECT_EQ(keys.k, &source.memory[5 * 160]);
  EXPECT_EQ(keys.v, &source.memory[1 + 5 * 160]);
  EXPECT_EQ(copies.place(kTokens, first + 5, 18000).o, &source.memory[5 * kRowBytes]);
  EXPECT_EQ(copies.place(kTokens, first + 5, 18000).lse, &source.lse[5 * kShape.heads]);
  EXPECT_TRUE(source.threads.empty()) << "rows were read";
  // Token 20000 lies between 19999 and 20001 and is not asked for; token 100 lies elsewhere.
  for (const auto& [begin, count] : {std::pair(first + 18990, int64_t{20}), std::pair(first - 1, int64_t{20})}) {
    EXPECT_EQ(copies.read_q(kTokens, begin, count, buffer.data()), buffer.data());
    EXPECT_EQ(buffer[19 * kRowBytes], byte_of(0, rows_of(kTokens, begin, count).back(), 0));
    EXPECT_EQ(copies.place(kTokens, begin, count).o, nullptr);
  }
  // Some of the KV heads do not lie together.
  EXPECT_EQ(copies.read_keys(kTokens, first + 5, 20, 1, 1, buffer.data(), buffer.data() + 1600).k, buffer.data());
}

TEST_P(RowCopiesTest, WhereKernelsFindRows) {
  PlacedSource source(GetParam());
  RowCopies copies(source, source, kShape, ElementType::float16, device_);
  const Intervals together{{1000, 3000}}, apart{{1000, 1020}, {1021, 1030}}, elsewhere{{900, 1010}};
  EXPECT_EQ(copies.q_in_kernels(together), nullptr) << "reached straight is not enough";
  device_.reached = {.by_host = false, .straight = true, .in_kernels = true};
  EXPECT_EQ(copies.q_in_kernels(together), source.memory.data());
  EXPECT_EQ(copies.results_in_kernels(together).o, source.memory.data());
  EXPECT_EQ(copies.results_in_kernels(together).lse, source.lse.data());
  for (const Intervals& tokens : {apart, elsewhere, Intervals{}}) {
    EXPECT_EQ(copies.q_in_kernels(tokens), nullptr);
    EXPECT_EQ(copies.results_in_kernels(tokens).o, nullptr);
  }
  // Keys need not lie together, but all somewhere, and aligned: this source's V is not. Block 7 begins at token 896.
  const plan::Blocks blocks(Documents::single(kShape.tokens));
  const Intervals wanted{{8, 9}, {12, 14}};
  EXPECT_TRUE(copies.keys_in_kernels(blocks, wanted).empty());
  EXPECT_FALSE(copies.keys_are_in_kernels(blocks, wanted));
  source.v_shift = 16;
  const std::vector<kernels::KeyRows> keys = copies.keys_in_kernels(blocks, wanted);
  ASSERT_EQ(keys.size(), 3);
  EXPECT_EQ(keys[1].k, &source.memory[(12 * 128 - 1000) * 160]);
  EXPECT_EQ(keys[1].v, &source.memory[16 + (12 * 128 - 1000) * 160]);
  EXPECT_TRUE(copies.keys_are_in_kernels(blocks, wanted));
  for (const Intervals& none : {Intervals{{7, 10}}, Intervals{{9, 10}, {6, 7}}, Intervals{}}) {
    EXPECT_TRUE(copies.keys_in_kernels(blocks, none).empty());
    EXPECT_FALSE(copies.keys_are_in_kernels(blocks, none));
  }
}

TEST_P(RowCopiesTest, OneRowAndNone) {
  std::vector<std::byte> k(160), v(160);
  copies_.read_keys(kTokens, 0, 0, 0, 2, nullptr, nullptr);
  copies_.read_keys({}, 0, 0, 0, 2, nullptr, nullptr);
  copies_.read_keys(kTokens, 33, 1, 0, 2, k.data(), v.data());
  for (int64_t b = 0; b < 160; ++b) {
    EXPECT_EQ(k[b], byte_of(1, 100, b));
    EXPECT_EQ(v[b], byte_of(2, 100, b));
  }
}

TEST_P(RowCopiesTest, AFailureReachesTheCallerAndTheNextCallWorks) {
  std::vector<std::byte> q(30000 * kRowBytes);
  source_.fail_at = 20500;
  EXPECT_THROW(copies_.read_q(kTokens, 0, 30000, q.data()), std::runtime_error);
  source_.fail_at = -1;
  copies_.read_q(kTokens, 0, 30000, q.data());
  EXPECT_EQ(q.back(), byte_of(0, rows_of(kTokens, 29999, 1)[0], kRowBytes - 1));
}

TEST_P(RowCopiesTest, TwoCallersAtATime) {
  const Intervals tokens{{0, 20000}};
  std::vector<std::byte> q(20000 * kRowBytes), k(20000 * 160), v(20000 * 160);
  for (int i = 0; i < 20; ++i) {
    std::jthread other([&] { copies_.read_keys(tokens, 0, 20000, 0, 2, k.data(), v.data()); });
    copies_.read_q(tokens, 100, 19000, q.data());
  }
  for (int64_t r = 0; r < 19000; ++r) ASSERT_EQ(q[r * kRowBytes + 3], byte_of(0, 100 + r, 3));
  for (int64_t r = 0; r < 20000; ++r) {
    ASSERT_EQ(k[r * 160 + 3], byte_of(1, r, 3));
    ASSERT_EQ(v[r * 160 + 3], byte_of(2, r, 3));
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, RowCopiesTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "FromAnyThread" : "FromOneThread"; });

}  // namespace
}  // namespace longspan::engine
