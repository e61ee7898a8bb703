// What each rank does, in figures: the table of `plan`, of `attend --dry-run` and of the run record.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "plan/rank_plan.hpp"

namespace longspan::cli {

enum class Unit : uint8_t { count, bytes, flop, ratio };

struct Figure {
  std::string key;    // in JSON
  std::string title;  // in tables
  Unit unit = Unit::count;
  double value = 0;
};

// In a fixed order: rows, tiles, FLOP, keys needed, held, moved (with lower bound and ring), long rows, memory, stripes, steps.
std::vector<Figure> figures_of(const plan::Shared& shared, const plan::RankPlan& plan, const plan::Blocks& blocks);

// One table: figure | min | mean | max | rank of max; or figure | value for a single rank. `ranks[r]` numbers values[r].
std::string figures_text(const std::vector<std::vector<Figure>>& values, const std::vector<int>& ranks, bool estimated);
nlohmann::ordered_json figures_json(const std::vector<std::vector<Figure>>& values, const std::vector<int>& ranks);

// What is the same on all ranks: partition, long rows.
std::vector<std::pair<std::string, std::string>> shared_lines(const plan::Shared& shared);
nlohmann::ordered_json shared_json(const plan::Shared& shared);

}  // namespace longspan::cli
