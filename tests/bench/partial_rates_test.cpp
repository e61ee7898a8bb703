#include "bench/partial_rates.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace longspan::bench {
namespace {

TimedStep timed(double quarters, double tiles, double rows, double seconds, double full_quarters = 0) {
  return {{.full_quarters = full_quarters, .partial_quarters = quarters, .partial_tiles = tiles, .tile_rows = rows}, seconds};
}

void expect_rates(const std::vector<TimedStep>& steps, double quarter, double tile, double row, double within = 1e-9) {
  const PartialRates rates = partial_rates(steps, 5e-6);
  EXPECT_NEAR(rates.quarter, quarter, within * 1e-6);
  EXPECT_NEAR(rates.tile, tile, within * 1e-6);
  EXPECT_NEAR(rates.row, row, within * 1e-6);
}

TEST(PartialRates, AreThoseThatStepsWereTimedWith) {
  expect_rates({timed(10, 3, 1, 17e-6), timed(24, 24, 1, 73e-6), timed(2, 1, 1, 5e-6)}, 1e-6, 2e-6, 1e-6);
  // A hundred rows each; what full tiles take beside is taken off.
  expect_rates({timed(1000, 300, 100, 1735e-6, 7), timed(2400, 2400, 100, 7305e-6, 1), timed(200, 100, 100, 500e-6)}, 1e-6, 2e-6, 1e-6);
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 50; ++repeat) {
    const auto below = [&](double most) { return std::uniform_real_distribution<double>(0.2, most)(random); };
    const double quarter = below(3) * 1e-6, tile = below(3) * 1e-6, row = below(20) * 1e-6;
    std::vector<TimedStep> steps;
    for (const auto& [quarters, tiles] : {std::pair(10, 3), {24, 24}, {2, 1}})
      steps.push_back(timed(quarters, tiles, 1, quarters * quarter + tiles * tile + row));
    expect_rates(steps, quarter, tile, row, 1e-6);
  }
}

// Of a quarter that takes 2 µs wherever it is.
TEST(PartialRates, AreOfTilesAndRowsAloneWhereQuartersAreAlike) {
  const std::vector<TimedStep> steps{timed(10, 3, 1, 46e-6), timed(24, 24, 1, 137e-6), timed(6, 2, 1, 91e-6, 28)};
  const PartialRates rates = partial_rates(steps, 2e-6, true);
  EXPECT_EQ(rates.quarter, 2e-6);
  EXPECT_NEAR(rates.tile, 3e-6, 1e-12);
  EXPECT_NEAR(rates.row, 17e-6, 1e-12);
  const PartialRates fast = partial_rates(steps, 9e-6, true);  // no time is left for anything else
  EXPECT_EQ(fast.quarter, 9e-6);
  EXPECT_EQ(fast.tile + fast.row, 0);
}

TEST(PartialRates, AreNeverBelowZeroAndCostNothingWhereTheyAreNotToldApart) {
  expect_rates({timed(10, 3, 1, 16e-6), timed(20, 6, 2, 32e-6)}, 1.6e-6, 0, 0);                          // the same mixture
  expect_rates({timed(10, 3, 1, 16e-6), timed(0, 0, 0, 1e-3, 100)}, 1.6e-6, 0, 0);                       // no partial tile
  expect_rates({timed(10, 3, 1, 10e-6), timed(24, 24, 1, 24e-6), timed(2, 1, 1, 2e-6)}, 1e-6, 0, 0);     // quarters alone
  expect_rates({timed(10, 3, 1, 13e-6), timed(24, 24, 1, 48e-6), timed(2, 1, 1, 3e-6)}, 1e-6, 1e-6, 0);  // no rows
  // A tile would take less than nothing, or a row: the best that makes sense.
  for (const auto& steps : {std::vector{timed(10, 3, 1, 30e-6), timed(24, 24, 1, 40e-6), timed(2, 1, 1, 8e-6)},
                            std::vector{timed(10, 3, 1, 12e-6), timed(24, 24, 1, 70e-6), timed(2, 1, 1, 3e-6)}}) {
    const PartialRates rates = partial_rates(steps, 5e-6);
    EXPECT_GT(rates.quarter, 0);
    EXPECT_GE(rates.tile, 0);
    EXPECT_GE(rates.row, 0);
    for (const TimedStep& step : steps) {
      const double said =
          step.work.partial_quarters * rates.quarter + step.work.partial_tiles * rates.tile + step.work.tile_rows * rates.row;
      EXPECT_NEAR(said, step.seconds, 0.5 * step.seconds);
    }
  }
  expect_rates({}, 0, 0, 0);
}

}  // namespace
}  // namespace longspan::bench
