// The CPU kernels' tests on a GPU, each with the kernel that the device would choose, with that and some keys in rows, and with the
// portable one. They skip where there is no GPU, or no CUDA in the build.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>

#include "gpu_problem.hpp"

namespace longspan::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr ElementType kTypes[] = {ElementType::float32, ElementType::float16, ElementType::bfloat16};
constexpr Tile::Form kForms[] = {Tile::Form::full, Tile::Form::band, Tile::Form::subtiles, Tile::Form::bits};

// Why no kernel here reads keys in rows; empty if one does.
std::string why_no_rows() {
  if (test_gpu() == nullptr) return why_no_gpu();
  return test_gpu()->attends_rows(ElementType::bfloat16, 128, 1) ? "" : "this GPU is none whose kernel reads keys in rows";
}

class Gpu : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (test_gpu() == nullptr) GTEST_SKIP() << why_no_gpu();
    const std::string_view way = GetParam();
    if (way == "rows" && !why_no_rows().empty()) GTEST_SKIP() << why_no_rows();
    use_portable_kernel(way == "portable");
    GpuProblem::put_keys_in_rows(way == "rows");
  }
  void TearDown() override { use_portable_kernel(false), GpuProblem::put_keys_in_rows(false); }
};

INSTANTIATE_TEST_SUITE_P(Kernels, Gpu, ::testing::Values("chosen", "rows", "portable"), [](const auto& info) { return info.param; });

TEST(GpuKeysInRows, GiveTheBitsOfThePool) {
  if (!why_no_rows().empty()) GTEST_SKIP() << why_no_rows();
  for (int head_dim : {64, 128}) {
    for (uint32_t seed = 70; seed < 78; ++seed) {
      const Problem problem({.type = kTypes[1 + seed % 2],
                             .head_dim = head_dim,
                             .kv_heads = 3,
                             .group = 2,
                             .query_rows = {128, 128, 100, 1},
                             .key_rows = {128, 64, 128, 77, 128, 128, 128, 3, 128, 128, 128},
                             .seed = seed});
      GpuProblem::put_keys_in_rows(true);
      const States in_rows = run_on_gpu(problem);
      GpuProblem::put_keys_in_rows(false);
      EXPECT_TRUE(run_on_gpu(problem) == in_rows) << "head_dim " << head_dim << " seed " << seed;
    }
  }
}

// Results lie with the rows of Q, states where the item says: the same order for both.
Output in_state_order(const Problem& problem, const Output& results) {
  Output output = results;
  const size_t row_bytes = static_cast<size_t>(problem.heads * problem.options.head_dim) * size_of(results.type);
  const auto heads = static_cast<size_t>(problem.heads);
  for (const Work& item : problem.work) {
    for (int r = 0; r < item.rows; ++r) {
      const auto from = static_cast<size_t>(item.q_row + r), to = static_cast<size_t>(item.state_row + r);
      std::memcpy(output.o.data() + to * row_bytes, results.o.data() + from * row_bytes, row_bytes);
      std::copy_n(results.lse.begin() + static_cast<std::ptrdiff_t>(from * heads), heads,
                  output.lse.begin() + static_cast<std::ptrdiff_t>(to * heads));
    }
  }
  return output;
}

bool same(const Output& a, const Output& b) {
  return a.o == b.o && a.lse.size() == b.lse.size() && std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

TEST_P(Gpu, EveryTypeAndHeadDimAgreesWithTheReference) {
  uint32_t seed = 0;
  for (ElementType type : kTypes) {
    for (int head_dim : {8, 16, 24, 40, 64, 72, 96, 128, 136, 192, 200, 256}) {
      for (int group : {1, 3}) {
        SCOPED_TRACE(std::string(name_of(type)) + " head_dim " + std::to_string(head_dim) + " group " + std::to_string(group));
        const Problem problem({.type = type,
                               .head_dim = head_dim,
                               .kv_heads = group == 1 ? 2 : 1,
                               .group = group,
                               .query_rows = {37, 20, 70},
                               .key_rows = {128, 60, 128},
                               .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
                               .seed = ++seed});
        GpuProblem gpu(problem);
        gpu.run();
        expect_right_on_gpu(problem, gpu.finished(type));
        if (group == 3) expect_right_on_gpu(problem, gpu.finished(ElementType::float32));
        // Begun and ended in the kernel: the same bits, whatever the states held.
        States dirt = problem.empty_states();
        std::fill(dirt.m.begin(), dirt.m.end(), kNan);
        std::fill(dirt.l.begin(), dirt.l.end(), kNan);
        std::fill(dirt.o.begin(), dirt.o.end(), kNan);
        const Output in_steps = gpu.finished(type);
        gpu.set_states(dirt);
        gpu.poison_results(type);
        gpu.run(true, true);
        EXPECT_TRUE(same(in_state_order(problem, gpu.results()), in_steps));
        EXPECT_TRUE(gpu.states() == dirt) << "states of rows that ended are written";
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Gpu, EveryFormAndSizeAgreesWithTheReference) {
  uint32_t seed = 100;
  for (int head_dim : {16, 64, 128}) {
    for (Tile::Form form : kForms) {
      for (int rows : {1, 7, 64, 100, 127, 128}) {
        for (int keys : {1, 7, 64, 100, 127, 128}) {
          SCOPED_TRACE("form " + std::to_string(static_cast<int>(form)) + " rows " + std::to_string(rows) + " keys " +
                       std::to_string(keys));
          const Problem problem({.type = kTypes[seed % 3],
                                 .head_dim = head_dim,
                                 .kv_heads = 1,
                                 .query_rows = {rows},
                                 .key_rows = {keys, 128},
                                 .forms = {form},
                                 .seed = ++seed});
          GpuProblem gpu(problem);
          gpu.run();
          expect_right_on_gpu(problem, gpu.finished(problem.options.type));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

Problem mixed_problem(ElementType type, int head_dim, uint32_t seed) {
  return Problem({.type = type,
                  .head_dim = head_dim,
                  .kv_heads = 2,
                  .group = 3,
                  .query_rows = {128, 77, 1, 128},
                  .key_rows = {128, 128, 90, 128, 128, 1, 128},
                  .seed = seed});
}

// Each item's list, runs taken apart into single tiles, is dealt out in order to five steps, of which some get nothing of it.
TEST_P(Gpu, BitsDoNotDependOnSteps) {
  for (int head_dim : {64, 128, 40}) {
    for (uint32_t seed = 20; seed < 26; ++seed) {
      const Problem problem = mixed_problem(kTypes[seed % 3], head_dim, seed);
      GpuProblem gpu(problem);
      gpu.run();
      const States whole = gpu.states();
      const Output output = gpu.finished(problem.options.type);
      std::mt19937 random(seed);
      std::vector<std::vector<Tile>> singles(problem.work.size());
      for (size_t w = 0; w < problem.work.size(); ++w) {
        for (int64_t t = 0; t < problem.work[w].tile_count; ++t) {
          const Tile& tile = problem.tiles[static_cast<size_t>(problem.work[w].first_tile + t)];
          if (tile.form != Tile::Form::full) singles[w].push_back(tile);
          for (int64_t i = 0; tile.form == Tile::Form::full && i < tile.count; ++i)
            singles[w].push_back(Tile::full_run(tile.key + static_cast<int32_t>(i), 1));
        }
      }
      for (bool in_kernel : {false, true}) {
        gpu.set_states(problem.empty_states());
        gpu.poison_results(problem.options.type);
        std::vector<size_t> taken(problem.work.size());
        constexpr int kSteps = 5;
        for (int s = 0; s < kSteps; ++s) {
          std::vector<Tile> tiles;
          std::vector<Work> work;
          for (size_t w = 0; w < problem.work.size(); ++w) {
            Work item = problem.work[w];
            const size_t left = singles[w].size() - taken[w];
            const size_t count = s + 1 == kSteps ? left : std::min<size_t>(left, random() % 3);
            item.first_tile = static_cast<int64_t>(tiles.size());
            item.tile_count = static_cast<int64_t>(count);
            item.begins = in_kernel && taken[w] == 0;
            item.ends = in_kernel && s + 1 == kSteps;
            tiles.insert(tiles.end(), singles[w].begin() + static_cast<int64_t>(taken[w]),
                         singles[w].begin() + static_cast<int64_t>(taken[w] + count));
            taken[w] += count;
            work.push_back(item);
          }
          std::shuffle(work.begin(), work.end(), random);
          // Prepared or not, or others than are started then.
          if (s % 3 > 0) gpu.prepare(problem.work, problem.tiles);
          if (s % 2 > 0) gpu.prepare(work, tiles);
          gpu.run(work, tiles);
        }
        if (in_kernel)
          EXPECT_TRUE(same(in_state_order(problem, gpu.results()), output)) << "seed " << seed << " head_dim " << head_dim;
        else
          EXPECT_TRUE(gpu.states() == whole) << "seed " << seed << " head_dim " << head_dim;
      }
    }
  }
}

// Lists that are runs of 8 blocks and more, of query blocks that follow each other: Hopper's kernel of head_dim 64 takes three halves of
// them at a time, and walks two lists together. To the bit as where each block has heads of its own, so that none goes with another.
TEST_P(Gpu, LongRunsAgreeWithTheReferenceAndStandForThemselves) {
  for (uint32_t seed = 140; seed < 143; ++seed) {
    std::vector<int> key_rows(24, kTile);
    key_rows[5] = 90, key_rows[23] = 7;
    Problem problem({.type = kTypes[seed % 3],
                     .head_dim = 64,
                     .kv_heads = 2,
                     .query_rows = {128, 128, 60, 128, 1, 128, 128, 100},
                     .key_rows = key_rows,
                     .seed = seed});
    std::vector<Tile> tiles;  // of each list at most one masked tile, the rest as runs
    for (Work& item : problem.work) {
      const auto list = std::span(problem.tiles).subspan(static_cast<size_t>(item.first_tile), static_cast<size_t>(item.tile_count));
      const auto masked = std::find_if(list.begin(), list.end(), [](const Tile& tile) { return tile.form != Tile::Form::full; });
      item.first_tile = static_cast<int64_t>(tiles.size());
      const int32_t at = masked == list.end() ? 24 : masked->key;
      if (at > 0) tiles.push_back(Tile::full_run(0, at));
      if (at < 24) tiles.push_back(*masked);
      if (at < 23) tiles.push_back(Tile::full_run(at + 1, 23 - at));
      item.tile_count = static_cast<int64_t>(tiles.size()) - item.first_tile;
    }
    problem.tiles = tiles;
    const States alone = run_on_gpu(problem);
    for (Work& item : problem.work) item.first_head = problem.work[static_cast<size_t>(item.kv_head)].first_head;
    GpuProblem gpu(problem);
    gpu.run();
    EXPECT_TRUE(gpu.states() == alone) << "seed " << seed;
    const Output output = gpu.finished(problem.options.type);
    expect_right_on_gpu(problem, output);
    gpu.poison_results(problem.options.type);
    gpu.run(true, true);
    EXPECT_TRUE(same(in_state_order(problem, gpu.results()), output)) << "seed " << seed;
  }
}

TEST_P(Gpu, SameBitsManyTimes) {
  for (int head_dim : {128, 64}) {
    const Problem problem({.type = ElementType::bfloat16,
                           .head_dim = head_dim,
                           .kv_heads = 2,
                           .group = 4,
                           .query_rows = std::vector<int>(16, 128),
                           .key_rows = std::vector<int>(16, 128),
                           .seed = 5});
    GpuProblem gpu(problem);
    gpu.run(true, true);
    const Output first = gpu.results();
    for (int repeat = 0; repeat < 500; ++repeat) {
      gpu.run(true, true);
      if (repeat % 10 == 9) {
        ASSERT_TRUE(same(gpu.results(), first)) << repeat;
      }
    }
  }
}

// Items of several steps, whose states go to memory and come back: many, for what goes wrong between a thread and a copy does so seldom.
TEST_P(Gpu, SameBitsManyTimesInSteps) {
  for (int head_dim : {128, 64}) {
    const Problem problem({.type = ElementType::bfloat16,
                           .head_dim = head_dim,
                           .kv_heads = 2,
                           .group = 8,
                           .query_rows = std::vector<int>(128, 128),
                           .key_rows = std::vector<int>(24, 128),
                           .forms = {Tile::Form::full},
                           .seed = 7});
    std::vector<Tile> tiles;
    std::array<std::vector<Work>, 6> steps;
    for (int step = 0; step < 6; ++step) {  // 4 blocks of keys each: the third one comes where the states have been
      tiles.push_back(Tile::full_run(4 * step, 4));
      for (Work item : problem.work) {
        item.first_tile = step, item.tile_count = 1, item.begins = step == 0, item.ends = step == 5;
        steps[static_cast<size_t>(step)].push_back(item);
      }
    }
    GpuProblem gpu(problem);
    Output first{};
    for (int repeat = 0; repeat < 40; ++repeat) {
      for (const std::vector<Work>& step : steps) gpu.run(step, tiles);
      if (repeat == 0) first = gpu.results();
      ASSERT_TRUE(same(gpu.results(), first)) << "head_dim " << head_dim << " repeat " << repeat;
    }
  }
}

// Which (state, head) pairs look at key `key` of `block` under `kv_head`.
std::vector<bool> lookers(const Problem& problem, int kv_head, int64_t block, int key) {
  std::vector<bool> looks(static_cast<size_t>(problem.rows) * static_cast<size_t>(problem.heads));
  for (const Work& item : problem.work) {
    if (item.kv_head != kv_head) continue;
    for (int row = 0; row < item.rows; ++row) {
      problem.for_each_key(item, row, [&](int64_t b, int k) {
        for (int h = 0; h < item.head_count && b == block && k == key; ++h) {
          const int head = problem.head_lists[static_cast<size_t>(item.first_head + h)];
          looks[static_cast<size_t>((item.state_row + row) * problem.heads + head)] = true;
        }
      });
    }
  }
  return looks;
}

bool same_state(const States& a, const States& b, size_t state, size_t dim) {
  const auto equal = [](const float* x, const float* y, size_t n) { return std::memcmp(x, y, n * sizeof(float)) == 0; };
  return equal(&a.m[state], &b.m[state], 1) && equal(&a.l[state], &b.l[state], 1) && equal(&a.o[state * dim], &b.o[state * dim], dim);
}

TEST_P(Gpu, PoisonReachesOnlyTheRowsThatLookAtIt) {
  for (int head_dim : {24, 64, 128, 256}) {
    for (uint32_t seed = 50; seed < 53; ++seed) {
      const ElementType type = kTypes[seed % 3];
      const ProblemOptions options{.type = type,
                                   .head_dim = head_dim,
                                   .kv_heads = 2,
                                   .group = 2,
                                   .query_rows = {128, 45},
                                   .key_rows = {128, 100, 128, 128},
                                   .seed = seed};
      const auto dim = static_cast<size_t>(head_dim);
      const Problem clean(options);
      const States before = run_on_gpu(clean);
      std::mt19937 random(seed);
      for (int round = 0; round < 6; ++round) {
        const int kv_head = static_cast<int>(random() % 2);
        const auto block = static_cast<int64_t>(random() % 4);
        const auto key = static_cast<int>(random() % static_cast<unsigned>(options.key_rows[static_cast<size_t>(block)]));
        const int element = static_cast<int>(random() % static_cast<unsigned>(head_dim));
        const float poison = round % 3 == 0 ? kInfinity : round % 3 == 1 ? -kInfinity : kNan;
        const std::vector<bool> looks = lookers(clean, kv_head, block, key);
        SCOPED_TRACE("head_dim " + std::to_string(head_dim) + " seed " + std::to_string(seed) + " round " + std::to_string(round));

        Problem values(options);
        values.set(values.pool, values.value_element(kv_head, block, key, element), poison);
        const States with_value = run_on_gpu(values);
        Problem keys(options);
        keys.set(keys.pool, keys.key_element(kv_head, block, key, element), poison);
        const States with_key = run_on_gpu(keys);
        int wrong = 0;
        for (size_t state = 0; state < looks.size(); ++state) {
          if (looks[state]) {
            // Only that element of the row's output; the state of the others is the same.
            wrong += with_value.l[state] == before.l[state] ? 0 : 1;
            for (size_t d = 0; d < dim; ++d) {
              if (d == static_cast<size_t>(element))
                wrong += std::isfinite(with_value.o[state * dim + d]) ? 1 : 0;
              else
                wrong += with_value.o[state * dim + d] == before.o[state * dim + d] ? 0 : 1;
            }
            wrong += !std::isnan(poison) || std::isnan(with_key.l[state]) ? 0 : 1;
          } else {
            wrong += same_state(with_value, before, state, dim) ? 0 : 1;
            wrong += same_state(with_key, before, state, dim) ? 0 : 1;
          }
        }
        EXPECT_EQ(wrong, 0);
      }
    }
  }
}

// +∞, −∞ and NaN among one column's values: a row gets what the sum of those that it looks at is.
TEST_P(Gpu, PoisonsOfAColumnAddUp) {
  for (int head_dim : {24, 64, 128, 256}) {
    for (uint32_t seed = 60; seed < 66; ++seed) {
      const ProblemOptions options{.type = kTypes[seed % 3],
                                   .head_dim = head_dim,
                                   .kv_heads = 1,
                                   .group = 2,
                                   .query_rows = {128, 45},
                                   .key_rows = {128, 100, 128},
                                   .seed = seed};
      const auto dim = static_cast<size_t>(head_dim);
      const Problem clean(options);
      const States before = run_on_gpu(clean);
      std::mt19937 random(seed);
      const auto element = static_cast<size_t>(random() % static_cast<unsigned>(head_dim));
      Problem poisoned(options);
      std::vector<float> sum(before.l.size(), 0.0f);  // of what a row sees of them
      struct Poison {
        int64_t block;
        int key;
        float value;
      };
      for (const auto& [block, key, poison] : {Poison{0, 3, kInfinity}, Poison{0, 40, -kInfinity}, Poison{1, 20, kInfinity},
                                               Poison{1, 99, kNan}, Poison{2, 64, -kInfinity}, Poison{2, 127, kInfinity}}) {
        if (random() % 2 == 0) continue;
        const size_t at = poisoned.value_element(0, block, key, static_cast<int>(element));
        poisoned.set(poisoned.pool, at, poison);
        const std::vector<bool> looks = lookers(clean, 0, block, key);
        for (size_t state = 0; state < sum.size(); ++state)
          if (looks[state]) sum[state] += poison;
      }
      const States after = run_on_gpu(poisoned);
      int wrong = 0;
      for (size_t state = 0; state < sum.size(); ++state) {
        const float got = after.o[state * dim + element];
        if (sum[state] == 0)
          wrong += same_state(after, before, state, dim) ? 0 : 1;
        else
          wrong += std::isnan(sum[state]) ? (std::isnan(got) ? 0 : 1) : (got == sum[state] ? 0 : 1);
      }
      EXPECT_EQ(wrong, 0) << "head_dim " << head_dim << " seed " << seed;
    }
  }
}

TEST_P(Gpu, WhatNobodyLooksAtChangesNothing) {
  for (int head_dim : {16, 64, 128}) {
    for (ElementType type : kTypes) {
      const ProblemOptions options{.type = type,
                                   .head_dim = head_dim,
                                   .kv_heads = 2,
                                   .group = 2,
                                   .query_rows = {20},
                                   .key_rows = {1, 7, 100, 127, 128},
                                   .forms = {Tile::Form::band, Tile::Form::subtiles, Tile::Form::bits},
                                   .seed = 61};
      Problem problem(options);
      const States before = run_on_gpu(problem);
      for (float value : before.o) ASSERT_TRUE(std::isfinite(value));
      int64_t changed = 0;
      for (int kv = 0; kv < options.kv_heads; ++kv) {
        for (int64_t block = 0; block < problem.resident(); ++block) {
          for (int key = 0; key < problem.key_rows[static_cast<size_t>(block)]; ++key) {
            const std::vector<bool> looks = lookers(problem, kv, block, key);
            if (std::find(looks.begin(), looks.end(), true) != looks.end()) continue;
            ++changed;
            for (int d = 0; d < head_dim; ++d) {
              problem.set(problem.pool, problem.key_element(kv, block, key, d), kNan);
              problem.set(problem.pool, problem.value_element(kv, block, key, d), d % 2 == 0 ? kNan : kInfinity);
            }
          }
        }
      }
      EXPECT_GT(changed, 0);
      EXPECT_TRUE(run_on_gpu(problem) == before) << name_of(type) << " head_dim " << head_dim;
    }
  }
}

TEST_P(Gpu, NanInOneQueryRowStaysThere) {
  for (ElementType type : kTypes) {
    const ProblemOptions options{
        .type = type, .head_dim = 64, .kv_heads = 1, .group = 2, .query_rows = {60}, .key_rows = {128, 100, 128}, .seed = 71};
    const Problem clean(options);
    const States before = run_on_gpu(clean);
    Problem dirty(options);
    const size_t row = 17, head = 1;
    dirty.set(dirty.q, (row * 2 + head) * 64 + 5, kNan);
    const States after = run_on_gpu(dirty);
    for (size_t state = 0; state < before.l.size(); ++state) {
      if (state == row * 2 + head) {
        EXPECT_TRUE(std::isnan(after.l[state]) || before.l[state] == 0);
      } else {
        EXPECT_TRUE(same_state(after, before, state, 64)) << state;
      }
    }
  }
}

TEST_P(Gpu, LargeScoresAndAnyScale) {
  for (float size : {50.0f, 1e-3f}) {
    for (float scale : {0.125f, -0.3f, 0.0f}) {
      for (int head_dim : {40, 64, 128}) {
        const Problem problem({.type = ElementType::bfloat16,
                               .head_dim = head_dim,
                               .query_rows = {40, 100},
                               .key_rows = {128, 50, 128},
                               .q_size = size,
                               .k_size = size == 50.0f ? 3.0f : 1.0f,
                               .scale = scale,
                               .seed = 91});
        GpuProblem gpu(problem);
        gpu.run();
        expect_right_on_gpu(problem, gpu.finished(ElementType::bfloat16));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Scores so small that many keys share a row (its maximum lags behind), and so large that one key after another takes all of it.
TEST_P(Gpu, MaximaThatMoveAgainAndAgain) {
  const bool in_rows = std::string_view(GetParam()) == "rows";  // then one variant of four: the reference takes most of a minute for all
  uint32_t seed = 300;
  int jobs = 0;
  for (float size : {0.1f, 1.0f, 4.0f, 12.0f, 60.0f}) {
    for (int head_dim : {40, 64, 128}) {
      ++jobs;
      for (int variant = 0; variant < 4; ++variant) {
        ++seed;
        if (in_rows && variant != jobs % 4) continue;
        const ElementType type = variant / 2 == 0 ? ElementType::bfloat16 : ElementType::float16;
        const Problem problem(
            {.type = type,
             .head_dim = head_dim,
             .query_rows = {128, 90},
             .key_rows = std::vector<int>(24, 128),
             .forms = variant % 2 == 0 ? std::vector<Tile::Form>{Tile::Form::full} : std::vector<Tile::Form>(kForms, kForms + 4),
             .q_size = size,
             .seed = seed});
        GpuProblem gpu(problem);
        gpu.run();
        expect_right_on_gpu(problem, gpu.finished(type));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Gpu, RowsThatSeeNothing) {
  for (int head_dim : {16, 64, 128}) {
    Problem problem(
        {.type = ElementType::float16, .head_dim = head_dim, .kv_heads = 1, .query_rows = {128}, .key_rows = {128, 20, 128}, .seed = 95});
    Tile band;  // rows 100… see key row−100, others nothing
    band.form = Tile::Form::band, band.band = {100, 100}, band.key = 0, band.quarters = 4;
    Tile far = band;  // of 20 keys rows 108 to 127 see one
    far.key = 1, far.band = {108, 127};
    Tile empty;
    empty.form = Tile::Form::subtiles, empty.subtiles = 0, empty.key = 2, empty.quarters = 0;
    problem.tiles = {band, empty, far};
    problem.work[0].first_tile = 0, problem.work[0].tile_count = 3;
    for (bool in_kernel : {false, true}) {
      GpuProblem gpu(problem);
      gpu.run(in_kernel, in_kernel);
      const Output output = in_kernel ? gpu.results() : gpu.finished(ElementType::float16);
      expect_right_on_gpu(problem, output);
      for (size_t row = 0; row < 100; ++row) {
        EXPECT_EQ(output.lse[row], -kInfinity);
        for (size_t d = 0; d < static_cast<size_t>(head_dim); ++d) EXPECT_EQ(output.at(row * static_cast<size_t>(head_dim) + d), 0);
      }
      EXPECT_TRUE(std::isfinite(output.lse[100]));
    }
    // No tile at all.
    problem.work[0].tile_count = 0;
    GpuProblem gpu(problem);
    gpu.run(true, true);
    const Output output = gpu.results();
    for (float lse : output.lse) EXPECT_EQ(lse, -kInfinity);
    for (size_t i = 0; i < output.o.size() / 2; ++i) EXPECT_EQ(output.at(i), 0);
  }
}

// Rows of the state arrays that no item names, and rows past an item's, stay as they are.
TEST_P(Gpu, TouchesOnlyItsOwnStates) {
  for (int head_dim : {8, 64, 128}) {
    const Problem problem({.type = ElementType::bfloat16,
                           .head_dim = head_dim,
                           .kv_heads = 2,
                           .group = 2,
                           .query_rows = {13, 9},
                           .key_rows = {128},
                           .seed = 97});
    for (const Work& item : problem.work) {
      GpuProblem gpu(problem);
      const States before = gpu.states();
      gpu.run({item}, problem.tiles);
      const States after = gpu.states();
      for (size_t state = 0; state < after.l.size(); ++state) {
        const auto row = static_cast<int64_t>(state) / problem.heads;
        const auto heads =
            std::span(problem.head_lists).subspan(static_cast<size_t>(item.first_head), static_cast<size_t>(item.head_count));
        const bool own = row >= item.state_row && row < item.state_row + item.rows &&
                         std::find(heads.begin(), heads.end(), static_cast<int32_t>(state) % problem.heads) != heads.end();
        EXPECT_TRUE(own || same_state(after, before, state, static_cast<size_t>(head_dim))) << state;
      }
    }
  }
}

}  // namespace
}  // namespace longspan::kernels
