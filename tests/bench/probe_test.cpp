#include "bench/probe.hpp"

#include <gtest/gtest.h>

namespace longspan::bench {
namespace {

TimedStep timed(double quarters, double tiles, double seconds, double full_quarters = 0) {
  return {{.full_quarters = full_quarters, .partial_quarters = quarters, .partial_tiles = tiles}, seconds};
}

TEST(PartialRates, AreThoseThatTwoStepsWereTimedWith) {
  const PartialRates example = partial_rates(timed(10, 3, 16e-6), timed(24, 24, 72e-6), 5e-6);
  EXPECT_NEAR(example.quarter, 1e-6, 1e-12);
  EXPECT_NEAR(example.tile, 2e-6, 1e-12);
  // What full tiles take beside is taken off.
  const PartialRates beside = partial_rates(timed(10, 3, 16e-6 + 7 * 5e-6, 7), timed(24, 24, 72e-6 + 5e-6, 1), 5e-6);
  EXPECT_NEAR(beside.quarter, 1e-6, 1e-12);
  EXPECT_NEAR(beside.tile, 2e-6, 1e-12);
}

TEST(PartialRates, AreOneForAQuarterWhereTheyCannotBeToldApart) {
  for (const TimedStep& other : {timed(20, 6, 40e-6),      // the same mixture
                                 timed(24, 24, 400e-6),    // a quarter would take less than nothing
                                 timed(24, 24, 20e-6),     // a tile would
                                 timed(0, 0, 1e-3, 100)})  // no partial tile
  {
    const PartialRates rates = partial_rates(timed(10, 3, 16e-6), other, 5e-6);
    EXPECT_DOUBLE_EQ(rates.quarter, 1.6e-6);
    EXPECT_EQ(rates.tile, 0);
  }
}

}  // namespace
}  // namespace longspan::bench
