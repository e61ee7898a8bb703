#include "kernels/cpu/attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "problem.hpp"
#include "targets.hpp"

namespace longspan::kernels {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr ElementType kTypes[] = {ElementType::float32, ElementType::float16, ElementType::bfloat16};
constexpr Tile::Form kForms[] = {Tile::Form::full, Tile::Form::band, Tile::Form::subtiles, Tile::Form::bits};

TEST(Attention, EveryTypeAndHeadDimAgreesWithTheReference) {
  uint32_t seed = 0;
  for (ElementType type : kTypes) {
    for (int head_dim : {8, 16, 24, 40, 64, 72, 96, 128, 136, 256}) {
      for (int group : {1, 3, 4}) {
        SCOPED_TRACE(std::string(name_of(type)) + " head_dim " + std::to_string(head_dim) + " group " + std::to_string(group));
        const Problem problem({.type = type,
                               .head_dim = head_dim,
                               .kv_heads = group == 1 ? 2 : 1,
                               .group = group,
                               .query_rows = {37, 20},
                               .key_rows = {128, 60, 128},
                               .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
                               .seed = ++seed});
        const States states = problem.run();
        expect_right(problem, states, type);
        if (group == 3) expect_right(problem, states, ElementType::float32);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Attention, EveryFormAndSizeAgreesWithTheReference) {
  uint32_t seed = 100;
  for (Tile::Form form : kForms) {
    for (int rows : {1, 7, 64, 100, 127, 128}) {
      for (int keys : {1, 7, 64, 100, 127, 128}) {
        SCOPED_TRACE("form " + std::to_string(static_cast<int>(form)) + " rows " + std::to_string(rows) + " keys " + std::to_string(keys));
        const Problem problem({.type = kTypes[seed % 3],
                               .head_dim = 16,
                               .kv_heads = 1,
                               .query_rows = {rows},
                               .key_rows = {keys, 128},
                               .forms = {form},
                               .seed = ++seed});
        expect_right(problem, problem.run(), ElementType::float32);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Attention, MoreHeadsInAnItemThanShareATile) {
  const Problem problem(
      {.type = ElementType::bfloat16, .head_dim = 24, .kv_heads = 1, .group = 19, .query_rows = {33}, .key_rows = {128, 40}, .seed = 7});
  expect_right(problem, problem.run(2), ElementType::bfloat16);
}

TEST(Attention, EveryInstructionSetAgreesWithTheReference) {
  std::set<std::string> names;
  for (const Target& target : runnable_targets()) {
    const ForcedTarget forced(target);
    names.insert(target.name);
    SCOPED_TRACE(target.name);
    uint32_t seed = 200;
    for (ElementType type : kTypes) {
      for (int head_dim : {8, 40, 64}) {
        SCOPED_TRACE(std::string(name_of(type)) + " " + std::to_string(head_dim));
        const Problem problem({.type = type,
                               .head_dim = head_dim,
                               .kv_heads = 2,
                               .group = 3,
                               .query_rows = {29, 1},
                               .key_rows = {128, 61, 128},
                               .seed = ++seed});
        const States states = problem.run(2);
        EXPECT_TRUE(states == problem.run(1));
        expect_right(problem, states, type);
        if (HasFatalFailure()) return;
      }
    }
  }
  EXPECT_EQ(names.size(), runnable_targets().size());
}

// Every 16-bit pattern as a value that one row looks at alone: its output is that value.
TEST(Attention, LoadsEveryHalfAndBfloat16) {
  for (ElementType type : {ElementType::float16, ElementType::bfloat16}) {
    Problem problem({.type = type, .head_dim = 256, .kv_heads = 1, .query_rows = {128, 128}, .key_rows = {128, 128}});
    problem.tiles.clear();
    for (int block = 0; block < 2; ++block) {
      Tile diagonal;
      diagonal.form = Tile::Form::band, diagonal.band = {0, 0}, diagonal.key = block;
      problem.tiles.push_back(diagonal);
      Work& item = problem.work[static_cast<size_t>(block)];
      item.state_row = item.q_row, item.first_tile = block, item.tile_count = 1;
      for (int i = 0; i < kTile * 256; ++i) {
        const auto bits = static_cast<uint16_t>(block * kTile * 256 + i);
        std::memcpy(problem.pool.data() + 2 * problem.value_element(0, block, 0, i), &bits, 2);
      }
    }
    for (const Target& target : runnable_targets()) {
      const ForcedTarget forced(target);
      const States states = problem.run();
      for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
        const auto bits = static_cast<uint16_t>(pattern);
        const float expected = type == ElementType::float16 ? float_from_float16(bits) : float_from_bfloat16(bits);
        if (std::isnan(expected))
          ASSERT_TRUE(std::isnan(states.o[pattern])) << pattern << target.name;
        else
          ASSERT_EQ(states.o[pattern], expected) << pattern << target.name;
      }
    }
  }
}

Problem mixed_problem(ElementType type, uint32_t seed) {
  return Problem({.type = type,
                  .head_dim = 40,
                  .kv_heads = 2,
                  .group = 3,
                  .query_rows = {128, 77, 1, 128},
                  .key_rows = {128, 128, 90, 128, 128, 1, 128},
                  .seed = seed});
}

TEST(Attention, BitsDoNotDependOnTheNumberOfThreads) {
  for (ElementType type : kTypes) {
    const Problem problem = mixed_problem(type, 11);
    const States states = problem.run(1);
    EXPECT_TRUE(problem.run(2) == states);
    EXPECT_TRUE(problem.run(3) == states);
  }
}

TEST(Attention, BitsDoNotDependOnStepsOrRuns) {
  for (const Target& target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (uint32_t seed = 20; seed < 23; ++seed) {
      const Problem problem = mixed_problem(kTypes[seed % 3], seed);
      const States whole = problem.run();
      std::mt19937 random(seed);
      States states = problem.empty_states();
      cpu::ThreadPool threads(2);
      // Each item's list, runs taken apart into single tiles, is dealt out in order to five steps, of which some get nothing of it.
      std::vector<std::vector<Tile>> singles(problem.work.size());
      for (size_t w = 0; w < problem.work.size(); ++w) {
        for (int64_t t = 0; t < problem.work[w].tile_count; ++t) {
          const Tile& tile = problem.tiles[static_cast<size_t>(problem.work[w].first_tile + t)];
          if (tile.form != Tile::Form::full) singles[w].push_back(tile);
          for (int64_t i = 0; tile.form == Tile::Form::full && i < tile.count; ++i)
            singles[w].push_back(Tile::full_run(tile.key + static_cast<int32_t>(i), 1));
        }
      }
      std::vector<size_t> taken(problem.work.size());
      constexpr int kSteps = 5;
      for (int s = 0; s < kSteps; ++s) {
        std::vector<Tile> tiles;
        std::vector<Work> work = problem.work;
        for (size_t w = 0; w < work.size(); ++w) {
          const size_t left = singles[w].size() - taken[w];
          const size_t count = s + 1 == kSteps ? left : std::min<size_t>(left, random() % 3);
          work[w].first_tile = static_cast<int64_t>(tiles.size());
          work[w].tile_count = static_cast<int64_t>(count);
          tiles.insert(tiles.end(), singles[w].begin() + static_cast<int64_t>(taken[w]),
                       singles[w].begin() + static_cast<int64_t>(taken[w] + count));
          taken[w] += count;
        }
        std::shuffle(work.begin(), work.end(), random);
        Step step = problem.step(states);
        step.work = work, step.tiles = tiles;
        cpu::forward(step, threads);
      }
      EXPECT_TRUE(states == whole) << target.name << " seed " << seed;
    }
  }
}

TEST(Attention, ItemsThatBeginDoNotReadTheirStates) {
  for (ElementType type : kTypes) {
    Problem problem({.type = type, .head_dim = 40, .group = 2, .query_rows = {128, 37}, .key_rows = {128, 90}, .seed = 5});
    const States cleared = problem.run();
    for (Work& item : problem.work) item.begins = true;
    States states = problem.empty_states();
    for (auto* floats : {&states.m, &states.l, &states.o})
      std::fill(floats->begin(), floats->end(), std::numeric_limits<float>::quiet_NaN());
    cpu::ThreadPool threads(2);
    cpu::forward(problem.step(states), threads);
    EXPECT_TRUE(states == cleared);
  }
}

TEST(Attention, AnyOrderOfTilesIsRight) {
  Problem problem({.type = ElementType::float32, .head_dim = 64, .query_rows = {50}, .key_rows = std::vector<int>(9, 128), .seed = 31});
  std::mt19937 random(5);
  for (int round = 0; round < 4; ++round) {
    for (const Work& item : problem.work)
      std::shuffle(problem.tiles.begin() + item.first_tile, problem.tiles.begin() + item.first_tile + item.tile_count, random);
    expect_right(problem, problem.run(), ElementType::float32);
    if (HasFatalFailure()) return;
  }
}

TEST(Attention, LongListsAreRight) {
  for (ElementType type : kTypes) {
    const Problem problem({.type = type,
                           .head_dim = 24,
                           .kv_heads = 1,
                           .group = 2,
                           .query_rows = {19},
                           .key_rows = std::vector<int>(40, 128),
                           .scale = 0.2f,
                           .seed = 35});
    expect_right(problem, problem.run(), ElementType::float32);
  }
}

TEST(Attention, StartReturnsAndWaitEnds) {
  const Problem problem = mixed_problem(ElementType::bfloat16, 41);
  States states = problem.empty_states();
  cpu::ThreadPool threads(2);
  const Step step = problem.step(states);
  cpu::start_forward(step, threads);
  while (!threads.wait_for(0.001)) {
  }
  EXPECT_TRUE(threads.finished());
  EXPECT_TRUE(states == problem.run());
  States untouched = problem.empty_states();
  Step nothing = problem.step(untouched);
  nothing.work = {};
  cpu::forward(nothing, threads);
  EXPECT_TRUE(untouched == problem.empty_states());
}

// Which (state, head) pairs look at key `key` of `block` under `kv_head`.
std::vector<bool> lookers(const Problem& problem, int kv_head, int64_t block, int key) {
  std::vector<bool> looks(static_cast<size_t>(problem.rows) * problem.heads);
  for (const Work& item : problem.work) {
    if (item.kv_head != kv_head) continue;
    for (int row = 0; row < item.rows; ++row) {
      problem.for_each_key(item, row, [&](int64_t b, int k) {
        for (int h = 0; h < item.head_count && b == block && k == key; ++h) {
          const int head = problem.head_lists[static_cast<size_t>(item.first_head) + static_cast<size_t>(h)];
          looks[static_cast<size_t>((item.state_row + row) * problem.heads + head)] = true;
        }
      });
    }
  }
  return looks;
}

bool same_state(const States& a, const States& b, size_t state, size_t dim) {
  const auto same = [](const float* x, const float* y, size_t n) { return std::memcmp(x, y, n * sizeof(float)) == 0; };
  return same(&a.m[state], &b.m[state], 1) && same(&a.l[state], &b.l[state], 1) && same(&a.o[state * dim], &b.o[state * dim], dim);
}

TEST(Attention, PoisonReachesOnlyTheRowsThatLookAtIt) {
  for (const Target& target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (uint32_t seed = 50; seed < 53; ++seed) {
      const ElementType type = kTypes[seed % 3];
      constexpr int kDim = 24;
      const ProblemOptions options{.type = type,
                                   .head_dim = kDim,
                                   .kv_heads = 2,
                                   .group = 2,
                                   .query_rows = {128, 45},
                                   .key_rows = {128, 100, 128, 128},
                                   .seed = seed};
      const Problem clean(options);
      const States before = clean.run();
      std::mt19937 random(seed);
      for (int round = 0; round < 6; ++round) {
        const int kv_head = static_cast<int>(random() % 2);
        const auto block = static_cast<int64_t>(random() % 4);
        const auto key = static_cast<int>(random() % static_cast<unsigned>(options.key_rows[static_cast<size_t>(block)]));
        const int element = static_cast<int>(random() % kDim);
        const float poison = round % 3 == 0 ? kInfinity : round % 3 == 1 ? -kInfinity : kNan;
        const std::vector<bool> looks = lookers(clean, kv_head, block, key);

        Problem values(options);
        values.set(values.pool, values.value_element(kv_head, block, key, element), poison);
        const States with_value = values.run(2);
        const Output value_output = finished(values, with_value, type);
        Problem keys(options);
        keys.set(keys.pool, keys.key_element(kv_head, block, key, element), poison);
        const States with_key = keys.run(2);
        const Output key_output = finished(keys, with_key, type);
        for (size_t state = 0; state < looks.size(); ++state) {
          if (looks[state]) {
            // Only that element of the row's output; the state of the others is the same.
            EXPECT_EQ(with_value.l[state], before.l[state]);
            for (size_t d = 0; d < kDim; ++d) {
              if (d == static_cast<size_t>(element))
                EXPECT_FALSE(std::isfinite(value_output.at(state * kDim + d)));
              else
                EXPECT_EQ(with_value.o[state * kDim + d], before.o[state * kDim + d]);
              EXPECT_TRUE(!std::isnan(poison) || std::isnan(key_output.at(state * kDim + d)));
            }
            EXPECT_TRUE(!std::isnan(poison) || std::isnan(key_output.lse[state]));
          } else {
            EXPECT_TRUE(same_state(with_value, before, state, kDim)) << target.name << " state " << state;
            EXPECT_TRUE(same_state(with_key, before, state, kDim)) << target.name << " state " << state;
          }
        }
      }
    }
  }
}

// Keys past a block's end, in full tiles too, and slots nobody refers to hold NaN in every Problem. Other contents must give the same bits.
TEST(Attention, WhatNobodyLooksAtChangesNothing) {
  for (ElementType type : kTypes) {
    Problem problem(
        {.type = type, .head_dim = 16, .kv_heads = 1, .group = 2, .query_rows = {100}, .key_rows = {1, 7, 100, 127}, .seed = 61});
    const States before = problem.run();
    for (float value : before.o) ASSERT_TRUE(std::isfinite(value));
    const size_t size = size_of(type);
    for (float other : {0.0f, 5.0f, kInfinity}) {
      for (size_t i = 0; i < problem.pool.size() / size; ++i) {
        if (std::isnan(load_element(problem.pool.data(), type, i)) || load_element(problem.pool.data(), type, i) == kInfinity)
          problem.set(problem.pool, i, other);
      }
      EXPECT_TRUE(problem.run() == before) << other;
      if (other == 0) problem = Problem(problem.options);
    }
    std::fill(problem.slots.begin() + 1, problem.slots.begin() + 2, -1);  // a unit that is not there, and no tile that asks for it
    for (Work& item : problem.work) item.tile_count = 0;
    EXPECT_TRUE(problem.run() == problem.empty_states());
  }
}

TEST(Attention, NanInOneQueryRowStaysThere) {
  for (ElementType type : kTypes) {
    constexpr int kDim = 40;
    const ProblemOptions options{
        .type = type, .head_dim = kDim, .kv_heads = 1, .group = 2, .query_rows = {60}, .key_rows = {128, 100, 128}, .seed = 71};
    const Problem clean(options);
    const States before = clean.run();
    for (float poison : {kNan, kInfinity}) {
      Problem problem(options);
      constexpr size_t kRow = 13, kHead = 1;
      problem.set(problem.q, (kRow * 2 + kHead) * kDim + 7, poison);
      const States after = problem.run();
      const Output output = finished(problem, after, type);
      for (size_t state = 0; state < after.l.size(); ++state) {
        if (state != kRow * 2 + kHead) {
          EXPECT_TRUE(same_state(after, before, state, kDim)) << state;
        } else if (std::isnan(poison)) {
          EXPECT_GT(before.l[state], 0);
          for (size_t d = 0; d < kDim; ++d) EXPECT_TRUE(std::isnan(output.at(state * kDim + d)));
        }
      }
    }
  }
}

TEST(Attention, HugeAndTinyScores) {
  uint32_t seed = 80;
  for (float size : {1e-6f, 1e-3f, 30.0f, 100.0f}) {
    // Standard deviation of the scores: size² · 8 (head_dim 64): up to 1e4 times a few at 100 with scale 0.125.
    for (ElementType type : {ElementType::float32, ElementType::bfloat16}) {
      SCOPED_TRACE(std::to_string(size) + " " + std::string(name_of(type)));
      const Problem problem({.type = type,
                             .head_dim = 64,
                             .kv_heads = 1,
                             .group = 2,
                             .query_rows = {64},
                             .key_rows = {128, 128, 77},
                             .q_size = size,
                             .k_size = size,
                             .seed = ++seed});
      const States states = problem.run();
      expect_right(problem, states, type);
      if (HasFatalFailure()) return;
    }
  }
}

// A row whose scores in one tile are all −∞ (an infinite key) has no finite maximum there, and goes on unharmed.
TEST(Attention, AllScoresMinusInfinityInATile) {
  Problem problem({.type = ElementType::float32, .head_dim = 8, .kv_heads = 1, .query_rows = {40}, .key_rows = {50, 128, 50}, .seed = 88});
  for (size_t row = 0; row < 40; ++row) problem.set(problem.q, row * 8, row < 30 ? 1.0f : 2.0f);
  for (int64_t block : {0, 1})
    for (int key = 0; key < problem.key_rows[static_cast<size_t>(block)]; ++key)
      problem.set(problem.pool, problem.key_element(0, block, key, 0), -kInfinity);
  Tile band;
  band.form = Tile::Form::band, band.band = {-20, 20}, band.key = 0;
  for (const std::vector<Tile>& list : std::vector<std::vector<Tile>>{{band, Tile::full_run(1, 1), Tile::full_run(2, 1)},
                                                                      {Tile::full_run(0, 3)},
                                                                      {Tile::full_run(2, 1), band, Tile::full_run(1, 1)},
                                                                      {band}}) {
    problem.tiles = list;
    problem.work[0].first_tile = 0, problem.work[0].tile_count = static_cast<int64_t>(list.size());
    expect_right(problem, problem.run(), ElementType::float32);
    if (HasFatalFailure()) return;
  }
}

TEST(Attention, NegativeAndZeroScale) {
  for (float scale : {-0.3f, 0.0f}) {
    const Problem problem(
        {.type = ElementType::float32, .head_dim = 16, .query_rows = {40}, .key_rows = {128, 50, 128}, .scale = scale, .seed = 91});
    expect_right(problem, problem.run(), ElementType::float32);
  }
}

TEST(Attention, RowsThatSeeNothing) {
  Problem problem(
      {.type = ElementType::float16, .head_dim = 16, .kv_heads = 1, .query_rows = {128}, .key_rows = {128, 20, 128}, .seed = 95});
  problem.tiles.clear();
  Tile band;  // rows 100… see key row−100, others nothing
  band.form = Tile::Form::band, band.band = {100, 100}, band.key = 0;
  Tile far = band;  // of 20 keys rows 108 to 127 see one
  far.key = 1, far.band = {108, 127};
  Tile empty;
  empty.form = Tile::Form::subtiles, empty.subtiles = 0, empty.key = 2, empty.quarters = 0;
  problem.tiles = {band, empty, far};
  problem.work[0].first_tile = 0, problem.work[0].tile_count = 3;
  const States states = problem.run();
  expect_right(problem, states, ElementType::float16);
  const Output output = finished(problem, states, ElementType::float16);
  for (size_t row = 0; row < 100; ++row) {
    EXPECT_EQ(output.lse[row], -kInfinity);
    EXPECT_EQ(states.m[row], -kInfinity);
    EXPECT_EQ(states.l[row], 0);
    for (size_t d = 0; d < 16; ++d) EXPECT_EQ(output.at(row * 16 + d), 0);
  }
  EXPECT_TRUE(std::isfinite(output.lse[100]));
}

// Rows of the state arrays that no item names, and rows past an item's, stay as they are.
TEST(Attention, TouchesOnlyItsOwnStates) {
  const Problem problem(
      {.type = ElementType::bfloat16, .head_dim = 8, .kv_heads = 2, .group = 2, .query_rows = {13, 9}, .key_rows = {128}, .seed = 97});
  for (const Work& item : problem.work) {
    const States before = problem.empty_states();
    States after = before;
    Step step = problem.step(after);
    step.work = std::span(&item, 1);
    cpu::ThreadPool threads(1);
    cpu::forward(step, threads);
    for (size_t state = 0; state < after.l.size(); ++state) {
      const auto row = static_cast<int64_t>(state) / problem.heads;
      const auto heads = std::span(problem.head_lists).subspan(static_cast<size_t>(item.first_head), static_cast<size_t>(item.head_count));
      const bool own = row >= item.state_row && row < item.state_row + item.rows &&
                       std::find(heads.begin(), heads.end(), static_cast<int32_t>(state) % problem.heads) != heads.end();
      EXPECT_TRUE(own || same_state(after, before, state, 8)) << state;
    }
  }
}

}  // namespace
}  // namespace longspan::kernels
