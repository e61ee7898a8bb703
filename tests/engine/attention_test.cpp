// The library as a user meets it: tensors in memory with strides, planned once, attended many times; errors the same on all ranks.
#include "longspan/attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "longspan/error.hpp"
#include "problem.hpp"
#include "tests/pattern/brute_force.hpp"
#include "tests/support/test_devices.hpp"

namespace longspan::testing {
namespace {

class AttentionTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    const OpenDevice gpu = OpenDevice::of(GetParam() == DeviceKind::cpu ? TestDevice::cpu : TestDevice::gpu, world_);
    if (!gpu.device) GTEST_SKIP() << gpu.why_not;
  }
  // This rank's rows of `all`, which have `row` bytes each, one after another.
  static std::vector<std::byte> own_rows(const Attention& attention, const std::vector<std::byte>& all, int64_t row) {
    std::vector<std::byte> rows;
    for (const Interval& run : attention.tokens()) rows.insert(rows.end(), all.begin() + run.begin * row, all.begin() + run.end * row);
    return rows;
  }
  static WholeOutput whole_of(const Attention& attention, const Shape& shape, ElementType type, const std::byte* o, const float* lse) {
    WholeOutput whole(shape, type);
    int64_t local = 0;
    for (const Interval& run : attention.tokens()) {
      const int64_t row = local * shape.heads;
      whole.write(run.begin, run.length(), o + row * shape.head_dim * static_cast<int64_t>(size_of(type)), lse + row);
      local += run.length();
    }
    return whole;
  }
  // Attends with rows on the device: twice as they are, then for each of `nans` with NaN in V of these tokens, then as they were.
  void expect_nans_reach_those_who_look(Problem& problem, const std::string& text, const std::vector<std::vector<int64_t>>& nans,
                                        bool share, const std::vector<std::shared_ptr<const pattern::BlockMaskSource>>& lists = {}) {
    const OpenDevice open = OpenDevice::of(GetParam() == DeviceKind::cpu ? TestDevice::cpu : TestDevice::gpu, world_);
    kernels::Device& device = *open.device;
    const Shape& shape = problem.shape();
    const Documents& documents = problem.documents();
    const int64_t o_row = int64_t{shape.head_dim} * 2, q_row = shape.heads * o_row, k_row = shape.kv_heads * o_row;
    kernels::Buffer k, v;  // go after the object
    Attention attention(MPI_COMM_WORLD, shape, text, documents,
                        {.output_type = shape.type,
                         .device = GetParam(),
                         .share_gpu = true,
                         .rows_on_gpu = true,
                         .share_keys = share,
                         .threads = 1,
                         .block_masks = lists});
    const int64_t rows = attention.local_rows();
    const auto there = [&](const std::vector<std::byte>& all, int64_t row) {
      kernels::Buffer memory = device.allocate(rows * row);
      device.upload(own_rows(attention, all, row).data(), rows * row, memory.get());
      return memory;
    };
    const kernels::Buffer q = there(problem.q(), q_row), o = device.allocate(rows * q_row), lse = device.allocate(rows * shape.heads * 4);
    k = there(problem.k(), k_row), v = there(problem.v(), k_row);
    std::vector<float> its_lse(static_cast<size_t>(rows * shape.heads));
    const auto attend = [&] {
      attention.forward({q.get()}, {k.get()}, {v.get()}, {o.get()}, reinterpret_cast<float*>(lse.get()));
      std::vector<std::byte> result(static_cast<size_t>(rows * q_row));
      device.download(o.get(), rows * q_row, result.data());
      device.download(lse.get(), rows * shape.heads * 4, its_lse.data());
      return result;
    };
    const std::vector<std::byte> clean = attend(), nan(static_cast<size_t>(k_row), std::byte{0xff});
    const std::vector<float> clean_lse = its_lse;
    const WholeOutput whole = whole_of(attention, shape, shape.type, clean.data(), clean_lse.data());
    expect_exact(world_, problem, attention.tokens(), shape.type, whole.o, whole.lse, 17, GetParam() != DeviceKind::cpu);
    EXPECT_EQ(attend(), clean);
    for (const std::vector<int64_t>& tokens : nans) {
      const auto put = [&](const std::byte* from, int64_t bytes_of_token) {
        int64_t first = 0;
        for (const Interval& run : attention.tokens()) {
          for (int64_t token : tokens)
            if (run.contains(token)) device.upload(from + token * bytes_of_token, k_row, v.get() + (first + token - run.begin) * k_row);
          first += run.length();
        }
      };
      put(nan.data(), 0);
      const std::vector<std::byte> odd = attend();
      put(problem.v().data(), k_row);
      EXPECT_EQ(its_lse, clean_lse);
      int64_t row = 0, wrong = 0;  // no rank leaves: others would wait for it
      for (const Interval& run : attention.tokens())
        for (int64_t i = run.begin; i < run.end; ++i, ++row)
          for (int head = 0; head < shape.heads; ++head) {
            const int64_t document = documents.holding(i), begin = documents.begin(document);
            const bool looks = std::any_of(tokens.begin(), tokens.end(), [&](int64_t token) {
              return documents.holding(token) == document &&
                     problem.pattern().allowed(problem.pattern().group_of(head), document, i - begin, token - begin);
            });
            const auto at = static_cast<size_t>(row * q_row + head * o_row);
            const bool same = std::memcmp(&odd[at], &clean[at], static_cast<size_t>(o_row)) == 0;
            if (same != looks && std::isnan(load_element(&odd[at], shape.type, 0)) == looks) continue;
            if (wrong++ == 0) ADD_FAILURE() << "token " << tokens.front() << " row " << i << " head " << head << (looks ? " looks" : "");
          }
      EXPECT_EQ(wrong, 0);
    }
    EXPECT_EQ(attend(), clean);
  }
  comm::Communicator world_{MPI_COMM_WORLD};
};

INSTANTIATE_TEST_SUITE_P(Devices, AttentionTest, ::testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(AttentionTest, StridedShardsManyTimes) {
  const std::string text = "causal & (window(255) | sink(4))";
  const Shape shape{.tokens = 1500, .heads = 4, .kv_heads = 2, .head_dim = 24, .type = ElementType::float16};
  const Documents documents = Documents::from_lengths({1000, 0, 90, 410});
  Attention attention(MPI_COMM_WORLD, shape, text, documents,
                      {.output_type = ElementType::float32, .device = GetParam(), .share_gpu = true, .threads = 1});
  EXPECT_EQ(world_.sum(attention.local_rows()), shape.tokens);
  for (unsigned seed : {1u, 2u}) {
    Problem problem(shape, documents, text, seed);
    // Q, K and V interleaved in one buffer, heads apart by more than head_dim: [row][4 + 2 + 2 heads][32].
    const int64_t wide = 32, row = 8 * wide, rows = attention.local_rows();
    std::vector<uint16_t> qkv(static_cast<size_t>(rows * row), 0x7e00);  // NaN between the heads
    int64_t local = 0;
    for (const Interval& run : attention.tokens()) {
      for (int64_t token = run.begin; token < run.end; ++token, ++local) {
        for (int h = 0; h < 4; ++h)
          std::memcpy(&qkv[static_cast<size_t>(local * row + h * wide)], problem.q().data() + (token * 4 + h) * 48, 48);
        for (int h = 0; h < 2; ++h) {
          std::memcpy(&qkv[static_cast<size_t>(local * row + (4 + h) * wide)], problem.k().data() + (token * 2 + h) * 48, 48);
          std::memcpy(&qkv[static_cast<size_t>(local * row + (6 + h) * wide)], problem.v().data() + (token * 2 + h) * 48, 48);
        }
      }
    }
    std::vector<float> o(static_cast<size_t>(rows * 4 * 40), -1), lse(static_cast<size_t>(rows * 4));
    attention.forward({qkv.data(), row, wide}, {qkv.data() + 4 * wide, row, wide}, {qkv.data() + 6 * wide, row, wide}, {o.data(), 160, 40},
                      lse.data());
    EXPECT_EQ(attention.bytes_received(), attention.bytes_needed());
    std::vector<std::byte> whole(static_cast<size_t>(shape.tokens * 4 * 24) * 4);
    std::vector<float> whole_lse(static_cast<size_t>(shape.tokens * 4));
    local = 0;
    for (const Interval& run : attention.tokens()) {
      for (int64_t token = run.begin; token < run.end; ++token, ++local) {
        for (int h = 0; h < 4; ++h) {
          std::memcpy(whole.data() + (token * 4 + h) * 96, &o[static_cast<size_t>(local * 160 + h * 40)], 96);
          EXPECT_EQ(o[static_cast<size_t>(local * 160 + h * 40 + 24)], -1) << "written between the heads";
          whole_lse[static_cast<size_t>(token * 4 + h)] = lse[static_cast<size_t>(local * 4 + h)];
        }
      }
    }
    expect_exact(world_, problem, attention.tokens(), ElementType::float32, whole, whole_lse, 11, GetParam() != DeviceKind::cpu);
  }
}

// Tensors without gaps in memory that a GPU copies from and to by itself; one of them elsewhere is read as any other. On CPUs it is memory.
TEST_P(AttentionTest, RowsThatTheDeviceReachesByItself) {
  const OpenDevice open = OpenDevice::of(GetParam() == DeviceKind::cpu ? TestDevice::cpu : TestDevice::gpu, world_);
  const std::string text = "bigbird(64, 3, 1, 2, 5)";
  const Shape shape{.tokens = 2100, .heads = 4, .kv_heads = 2, .head_dim = 64, .type = ElementType::bfloat16};
  const Documents documents = Documents::single(shape.tokens);
  Attention attention(MPI_COMM_WORLD, shape, text, documents,
                      {.output_type = ElementType::bfloat16, .device = GetParam(), .share_gpu = true, .threads = 1});
  Problem problem(shape, documents, text, 3);
  const int64_t rows = attention.local_rows(), q_row = 4 * 64 * 2, k_row = 2 * 64 * 2;
  std::vector<std::byte> elsewhere(static_cast<size_t>(rows * k_row + 1));
  const kernels::Buffer q = open.device->allocate_host(rows * q_row + 1), k = open.device->allocate_host(rows * k_row + 1),
                        v = open.device->allocate_host(rows * k_row + 1), o = open.device->allocate_host(rows * q_row + 1),
                        lse = open.device->allocate_host(rows * 4 * 4 + 4);
  for (bool v_elsewhere : {false, true}) {
    std::memset(o.get(), 0xff, static_cast<size_t>(rows * q_row));
    std::memset(lse.get(), 0xff, static_cast<size_t>(rows * 4 * 4));
    std::byte* v_rows = v_elsewhere ? elsewhere.data() : v.get();
    int64_t local = 0;
    for (const Interval& run : attention.tokens()) {
      std::memcpy(q.get() + local * q_row, problem.q().data() + run.begin * q_row, static_cast<size_t>(run.length() * q_row));
      std::memcpy(k.get() + local * k_row, problem.k().data() + run.begin * k_row, static_cast<size_t>(run.length() * k_row));
      std::memcpy(v_rows + local * k_row, problem.v().data() + run.begin * k_row, static_cast<size_t>(run.length() * k_row));
      local += run.length();
    }
    attention.forward({q.get()}, {k.get()}, {v_rows}, {o.get()}, reinterpret_cast<float*>(lse.get()));
    const WholeOutput whole = whole_of(attention, shape, ElementType::bfloat16, o.get(), reinterpret_cast<const float*>(lse.get()));
    expect_exact(world_, problem, attention.tokens(), ElementType::bfloat16, whole.o, whole.lse, 17, GetParam() != DeviceKind::cpu);
  }
}

// Tensors in the device's own memory, used where they lie, by other ranks too if they may; misaligned ones are copied, those with gaps a
// GPU refuses.
TEST_P(AttentionTest, RowsThatLieOnTheDevice) {
  const OpenDevice open = OpenDevice::of(GetParam() == DeviceKind::cpu ? TestDevice::cpu : TestDevice::gpu, world_);
  kernels::Device& device = *open.device;
  const Shape shape{.tokens = 2100, .heads = 4, .kv_heads = 2, .head_dim = 64, .type = ElementType::bfloat16};
  const Documents documents = Documents::single(shape.tokens);
  const int64_t q_row = 4 * 64 * 2, k_row = 2 * 64 * 2, o_row = 4 * 64 * 2;
  unsigned seed = 3;
  const char* const two_classes = "0-1: causal & window(300); 2: bigbird(64, 3, 1, 2, 5); 3: global(0, 10) | window(70)";
  for (const auto& [text, share] : {std::pair("bigbird(64, 3, 1, 2, 5)", false), std::pair("bigbird(64, 3, 1, 2, 5)", true),
                                    std::pair("causal", true), std::pair(two_classes, false), std::pair(two_classes, true)}) {
    SCOPED_TRACE(text);
    std::vector<kernels::Buffer> keys;  // go after the object that may have shown them to others
    Attention attention(MPI_COMM_WORLD, shape, text, documents,
                        {.output_type = ElementType::bfloat16,
                         .device = GetParam(),
                         .share_gpu = true,
                         .rows_on_gpu = true,
                         .share_keys = share,
                         .threads = 1});
    const int64_t rows = attention.local_rows();
    for (int64_t shift : {0, 2}) {  // bytes
      Problem problem(shape, documents, text, ++seed);
      std::vector<std::byte> with_its_lse;
      for (bool with_lse : {true, false}) {
        const std::vector<std::byte> q = own_rows(attention, problem.q(), q_row), k = own_rows(attention, problem.k(), k_row),
                                     v = own_rows(attention, problem.v(), k_row);
        const auto there = [&](const std::vector<std::byte>& from) {
          kernels::Buffer memory = device.allocate(static_cast<int64_t>(from.size()) + 16);
          device.upload(from.data(), static_cast<int64_t>(from.size()), memory.get() + shift);
          return memory;
        };
        std::vector<std::byte> o(static_cast<size_t>(rows * o_row), std::byte{0xff});
        std::vector<float> lse(static_cast<size_t>(rows * 4), -1);
        const kernels::Buffer q_there = there(q), o_there = there(o), lse_there = device.allocate(rows * 16 + 16);
        const std::byte* const k_there = keys.emplace_back(there(k)).get();
        const std::byte* const v_there = keys.emplace_back(there(v)).get();
        device.upload(lse.data(), rows * 16, lse_there.get());
        const auto forward = [&](int64_t gap) {
          attention.forward({q_there.get() + shift, 4 * 64 + gap}, {k_there + shift}, {v_there + shift}, {o_there.get() + shift},
                            with_lse ? reinterpret_cast<float*>(lse_there.get()) : nullptr);
        };
        forward(0);
        device.download(o_there.get() + shift, rows * o_row, o.data());
        device.download(lse_there.get(), rows * 16, lse.data());
        const WholeOutput whole = whole_of(attention, shape, ElementType::bfloat16, o.data(), lse.data());
        if (with_lse) {
          with_its_lse = o;
          expect_exact(world_, problem, attention.tokens(), ElementType::bfloat16, whole.o, whole.lse, 17, GetParam() != DeviceKind::cpu);
          continue;
        }
        EXPECT_EQ(o, with_its_lse);
        EXPECT_EQ(std::count(lse.begin(), lse.end(), -1.0f), rows * 4) << "nobody wants it";
        if (GetParam() == DeviceKind::cpu) continue;
        EXPECT_THROW(forward(8), Error);
      }
    }
  }
}

// Calls after the first look for NaN only where some row sees a part of a block. What one had not, the next may have, and the one after
// that not: rows that do not look at it have the same bits each time.
TEST_P(AttentionTest, ANanInOneOfManyCallsReachesThoseWhoLookAtIt) {
  const Shape shape{.tokens = 2100, .heads = 4, .kv_heads = 2, .head_dim = 64, .type = ElementType::bfloat16};
  const Documents documents = Documents::from_lengths({1000, 90, 1010});
  for (const char* text : {"bigbird(64, 3, 1, 2, 5)", "causal & window(100)",
                           "0-1: block_window(64, 2, 1); 2: causal & window(100); *: bigbird(64, 3, 1, 2, 5)"}) {
    SCOPED_TRACE(text);
    Problem problem(shape, documents, text, 3);
    expect_nans_reach_those_who_look(problem, text, {{990}, {500}, {1085}, {2099}}, true);
    if (world_.max(HasFailure() ? 1 : 0) > 0) return;
  }
}

TEST_P(AttentionTest, RandomPatternsAndNans) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    const auto one_of = [&](const auto& all) { return all[random() % all.size()]; };
    const auto [heads, kv_heads] = one_of(std::vector<std::pair<int, int>>{{1, 1}, {4, 2}, {6, 2}, {3, 3}, {8, 1}});
    const int64_t size = 1 + static_cast<int64_t>(random() % 1500);
    const Documents documents = Documents::from_lengths({size, 0, 1, static_cast<int64_t>(random() % 300)});
    const Shape shape{.tokens = documents.tokens(),
                      .heads = heads,
                      .kv_heads = kv_heads,
                      .head_dim = one_of(std::vector{64, 128}),
                      .type = one_of(std::vector{ElementType::float16, ElementType::bfloat16})};
    const auto masks = pattern::brute::random_masks(documents, heads, kv_heads, random);
    std::string text = pattern::brute::random_pattern(random, 2, size, masks).text;
    if (heads > 1 && random() % 2 == 0) text = "0: " + text + "; *: " + pattern::brute::random_pattern(random, 2, size, masks).text;
    const pattern::Pattern parsed = pattern::Pattern::parse(text);
    const auto lists = masks.sources_for(parsed, documents);
    const bool share = random() % 2 == 0;
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + text + " on " + std::to_string(size) + " tokens, " + std::to_string(heads) + "/" +
                 std::to_string(kv_heads) + " heads of " + std::to_string(shape.head_dim) + (share ? ", shared" : ""));
    Problem problem(shape, documents, pattern::BoundPattern(parsed, heads, kv_heads, documents, lists), seed);
    std::vector<std::vector<int64_t>> nans(3);
    for (std::vector<int64_t>& of_call : nans)
      for (int count = static_cast<int>(random() % 3); count >= 0; --count)
        of_call.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(shape.tokens)));
    expect_nans_reach_those_who_look(problem, text, nans, share, lists);
    if (world_.max(HasFailure() ? 1 : 0) > 0) return;
  }
}

TEST_P(AttentionTest, ErrorsAreTheSameOnAllRanks) {
  const Shape shape{.tokens = 100, .heads = 4, .kv_heads = 2, .head_dim = 16};
  const auto code_of = [&](const auto& make) {
    try {
      make();
    } catch (const Error& error) {
      return static_cast<int64_t>(error.code());
    }
    return int64_t{0};
  };
  EXPECT_EQ(code_of([&] { Attention(MPI_COMM_WORLD, shape, "windw(3)"); }), 2);
  EXPECT_EQ(code_of([&] { Attention(MPI_COMM_WORLD, {.tokens = 100, .heads = 4, .kv_heads = 3, .head_dim = 16}, "causal"); }), 2);
  EXPECT_EQ(code_of([&] { Attention(MPI_COMM_WORLD, {.tokens = 100, .heads = 4, .kv_heads = 2, .head_dim = 12}, "causal"); }), 2);
  EXPECT_EQ(code_of([&] { Attention(MPI_COMM_WORLD, shape, "causal", Documents::single(99)); }), 2);
  EXPECT_EQ(code_of([&] { Attention(MPI_COMM_WORLD, shape, "causal", {.memory = 1000}); }), 2);
  if (world_.size() > 1) {
    EXPECT_EQ(code_of([&] { Attention(MPI_COMM_WORLD, shape, world_.rank() == 1 ? "full" : "causal"); }), 2) << "ranks that disagree";
    EXPECT_EQ(code_of([&] { Attention(MPI_COMM_WORLD, shape, "causal", {.memory = world_.rank() == 1 ? 1000 : 0}); }), 2)
        << "the least counts";
  }
}

}  // namespace
}  // namespace longspan::testing
