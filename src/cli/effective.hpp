// Effective options with where each came from: what a command prints at its start, and what its record keeps.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/options.hpp"

namespace longspan::cli {

// A table "option  value  from"; with given_only, only what does not stand at its default.
std::string settings_text(const Settings& settings, bool given_only = false, int indent = 0);
// {"memory": {"value": "8Gi", "from": "environment LONGSPAN_MEMORY"}, …}; null for an absent value.
nlohmann::ordered_json settings_json(const Settings& settings);

}  // namespace longspan::cli
