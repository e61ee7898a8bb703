// Finishing, merging and clearing of states.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/attention.hpp"
#include "problem.hpp"
#include "targets.hpp"

namespace longspan::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rounding as element_type.hpp says, on every float16 and bfloat16 neighbourhood: the values, the ties between them, and a little beside.
TEST(Finish, RoundsLikeTheElementTypes) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    for (const float value : {float_from_bfloat16(static_cast<uint16_t>(bits)), float_from_float16(static_cast<uint16_t>(bits))}) {
      uint32_t pattern;
      std::memcpy(&pattern, &value, 4);
      for (uint32_t beside : {0u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u}) {
        const uint32_t shifted = pattern + beside;
        float result;
        std::memcpy(&result, &shifted, 4);
        values.push_back(result);
      }
    }
  }
  constexpr int kDim = 8;
  ASSERT_EQ(values.size() % kDim, 0u);
  const auto rows = static_cast<int64_t>(values.size() / kDim);
  const std::vector<float> m(static_cast<size_t>(rows), 1), l(static_cast<size_t>(rows), 1);
  cpu::ThreadPool threads(2);
  for (const Target& target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
      std::vector<std::byte> out(values.size() * size_of(type));
      std::vector<float> lse(m.size(), kNan);
      cpu::finish({.heads = 1,
                   .head_dim = kDim,
                   .rows = rows,
                   .m = m.data(),
                   .l = l.data(),
                   .o = values.data(),
                   .output_type = type,
                   .out = out.data(),
                   .lse = lse.data()},
                  threads);
      for (size_t i = 0; i < values.size(); ++i) {
        unsigned char expected[4] = {};
        store_element(expected, type, 0, values[i]);
        if (std::isnan(values[i]))
          ASSERT_TRUE(std::isnan(load_element(out.data(), type, i)))
              << std::hex << std::bit_cast<uint32_t>(values[i]) << " " << name_of(type) << target.name;
        else
          ASSERT_EQ(std::memcmp(expected, out.data() + i * size_of(type), size_of(type)), 0)
              << values[i] << " " << name_of(type) << target.name;
      }
      for (float value : lse) ASSERT_FLOAT_EQ(value, std::log(2.0f));
    }
  }
}

TEST(Finish, DividesAndKnowsEmptyRows) {
  const std::vector<float> m{-kInfinity, 3, 1e4f, -kInfinity}, l{0, 2, 0.75f, kNan};
  std::vector<float> o(32, 0.0f);
  for (size_t i = 8; i < 24; ++i) o[i] = static_cast<float>(i);
  for (size_t i = 24; i < 32; ++i) o[i] = kNan;
  cpu::ThreadPool threads(1);
  std::vector<float> out(32, kNan), lse(4, kNan);
  cpu::finish({.heads = 2,
               .head_dim = 8,
               .rows = 2,
               .m = m.data(),
               .l = l.data(),
               .o = o.data(),
               .output_type = ElementType::float32,
               .out = reinterpret_cast<std::byte*>(out.data()),
               .lse = lse.data()},
              threads);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(out[i], 0);
  for (size_t i = 8; i < 16; ++i) EXPECT_EQ(out[i], static_cast<float>(i) / 2);
  for (size_t i = 16; i < 24; ++i) EXPECT_EQ(out[i], static_cast<float>(i) / 0.75f);
  for (size_t i = 24; i < 32; ++i) EXPECT_TRUE(std::isnan(out[i]));
  EXPECT_EQ(lse[0], -kInfinity);
  EXPECT_FLOAT_EQ(lse[1], static_cast<float>(4 * std::log(2.0)));
  EXPECT_FLOAT_EQ(lse[2], static_cast<float>(1e4 * std::log(2.0) + std::log(0.75)));
  EXPECT_TRUE(std::isnan(lse[3]));
}

TEST(Finish, NothingToDo) {
  cpu::ThreadPool threads(2);
  cpu::finish({.heads = 4, .head_dim = 64}, threads);
  cpu::merge({.head_dim = 64}, threads);
  cpu::clear_states(0, 64, nullptr, nullptr, nullptr, threads);
  EXPECT_TRUE(threads.finished());
}

// The lists of all items are cut in two; the halves are computed apart and merged. Same result as one after the other, up to rounding.
TEST(Merge, EqualsGoingOn) {
  for (const Target& target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (uint32_t seed = 1; seed < 5; ++seed) {
      const Problem problem({.type = ElementType::float32,
                             .head_dim = 40,
                             .kv_heads = 1,
                             .group = 3,
                             .query_rows = {128, 31},
                             .key_rows = {128, 128, 100, 128, 128},
                             .seed = seed});
      States first = problem.empty_states(), second = problem.empty_states();
      cpu::ThreadPool threads(2);
      for (States* half : {&first, &second}) {
        std::vector<Work> work = problem.work;
        for (Work& item : work) {
          const int64_t cut = item.tile_count / 2;
          if (half == &second) item.first_tile += cut;
          item.tile_count = half == &first ? cut : item.tile_count - cut;
        }
        Step step = problem.step(*half);
        step.work = work;
        cpu::forward(step, threads);
      }
      cpu::merge({.head_dim = 40,
                  .count = static_cast<int64_t>(first.l.size()),
                  .from_m = second.m.data(),
                  .from_l = second.l.data(),
                  .from_o = second.o.data(),
                  .m = first.m.data(),
                  .l = first.l.data(),
                  .o = first.o.data()},
                 threads);
      expect_right(problem, first, ElementType::float32);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Merge, EmptySidesAndNan) {
  constexpr size_t kDim = 8;
  // Pairs (into, from): empty-empty, empty-full, full-empty, full-full, full-NaN, NaN with m = −∞.
  std::vector<float> m{-kInfinity, -kInfinity, 2, 1, 1, -kInfinity}, l{0, 0, 3, 2, 2, kNan};
  const std::vector<float> from_m{-kInfinity, 5, -kInfinity, 3, -kInfinity, 1}, from_l{0, 4, 0, 1, kNan, 1};
  std::vector<float> o(6 * kDim), from_o(6 * kDim);
  for (size_t state = 0; state < 6; ++state) {
    for (size_t d = 0; d < kDim; ++d) {
      o[state * kDim + d] = l[state] == 0 ? 0 : l[state] * 10;
      from_o[state * kDim + d] = from_l[state] == 0 ? 0 : from_l[state] * 20;
    }
  }
  cpu::ThreadPool threads(1);
  cpu::merge({.head_dim = kDim,
              .count = 6,
              .from_m = from_m.data(),
              .from_l = from_l.data(),
              .from_o = from_o.data(),
              .m = m.data(),
              .l = l.data(),
              .o = o.data()},
             threads);
  EXPECT_EQ(m[0], -kInfinity);
  EXPECT_EQ(m[1], 5);
  EXPECT_EQ(m[2], 2);
  EXPECT_EQ(m[3], 3);
  EXPECT_EQ(l[0], 0);
  EXPECT_EQ(l[1], 4);
  EXPECT_EQ(l[2], 3);
  EXPECT_EQ(l[3], 1.5f);  // 2·2^(1−3) + 1
  for (size_t d = 0; d < kDim; ++d) {
    EXPECT_EQ(o[d], 0);
    EXPECT_EQ(o[kDim + d], 80);
    EXPECT_EQ(o[2 * kDim + d], 30);
    EXPECT_EQ(o[3 * kDim + d], 25);  // 20/4 + 20
    EXPECT_TRUE(std::isnan(o[4 * kDim + d]));
    EXPECT_TRUE(std::isnan(o[5 * kDim + d]));
  }
  EXPECT_TRUE(std::isnan(l[4]) && std::isnan(l[5]));
}

TEST(Clear, AnyCount) {
  cpu::ThreadPool threads(3);
  for (int64_t count : {1, 1023, 1024, 1025, 5000}) {
    const auto n = static_cast<size_t>(count);
    std::vector<float> m(n + 1, 7), l(n + 1, 7), o(n * 8 + 1, 7);
    cpu::clear_states(count, 8, m.data(), l.data(), o.data(), threads);
    for (size_t i = 0; i < n; ++i) EXPECT_TRUE(m[i] == -kInfinity && l[i] == 0 && o[8 * i] == 0 && o[8 * i + 7] == 0);
    EXPECT_TRUE(m[n] == 7 && l[n] == 7 && o[8 * n] == 7);
  }
}

}  // namespace
}  // namespace longspan::kernels
