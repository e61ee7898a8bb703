// What partial tiles and rows of tiles cost, solved from the times of a few steps.
#pragma once

#include <span>

#include "plan/cost_model.hpp"

namespace longspan::bench {

struct TimedStep {
  plan::StepWork work;
  double seconds = 0;
};

struct PartialRates {
  double quarter = 0, tile = 0, row = 0;  // plan::Rates::partial_quarter, partial_tile, tile_row
};

// The rates, none below 0, that explain the steps best (least squares of relative errors), where a quarter of a full tile takes
// `full_quarter`, and one of a partial tile as much if `quarters_alike`. What the steps do not tell apart costs nothing, a quarter last of
// all. Example: a row of 3 tiles with 10 quarters takes
// 17 µs, one of 24 with 24 quarters 73, one of 1 with 2 quarters 5: 1 µs a quarter, 2 a tile, 1 a row.
PartialRates partial_rates(std::span<const TimedStep> steps, double full_quarter, bool quarters_alike = false);

}  // namespace longspan::bench
