// longspan plan: its options.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/options.hpp"
#include "cli/subject.hpp"
#include "plan/options.hpp"

namespace longspan::cli {

struct PlanOptions {
  pattern::Pattern pattern;
  Subject subject;
  int64_t ranks = 1;
  std::optional<int64_t> rank;    // show this one only
  std::optional<int64_t> memory;  // bytes per rank; absent: no limit
  plan::PartitionKind partition = plan::PartitionKind::automatic;
  plan::ExchangeKind exchange = plan::ExchangeKind::automatic;
  bool reproducible = false;
  std::optional<std::string> machine;  // file with measured rates: predict times
  std::optional<int> ranks_per_host;   // absent: as many as where the rates were measured
  std::optional<std::string> json;     // file, or "-" for standard output instead of tables
};

// Throws Error(usage or input) with all problems.
PlanOptions plan_options(const Settings& settings);

}  // namespace longspan::cli
