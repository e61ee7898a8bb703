// A predicted time in figures: of `plan --machine` and of `bench scaleout`.
#pragma once

#include <array>
#include <nlohmann/json.hpp>

#include "plan/cost_model.hpp"

namespace longspan::cli {

struct JobTimeSection {
  const char *key, *title;
  double plan::RankTime::*seconds;
};
// As the sections of a run record are called, but for `rows` (its input, finish and output of rows in memory) and `file`.
inline constexpr std::array kJobTimeSections{
    JobTimeSection{"load", "load keys", &plan::RankTime::load},          JobTimeSection{"plan", "tile lists", &plan::RankTime::plan},
    JobTimeSection{"exchange", "wait: keys", &plan::RankTime::exchange}, JobTimeSection{"attend", "attend", &plan::RankTime::attend},
    JobTimeSection{"rows", "rows in and out", &plan::RankTime::rows},    JobTimeSection{"file", "wait: file", &plan::RankTime::io},
};

// {"seconds", "step_seconds", "exposed", "imbalance", "slowest_rank", "memory", "sections": {"attend": {"mean", "slowest"}, …}}
nlohmann::ordered_json job_time_json(const plan::JobTime& time);

}  // namespace longspan::cli
