// The machine-readable twin of what a command prints: one JSON object with a schema version.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace longspan::report {

// Raised whenever a key is renamed, removed or changes its meaning; new keys do not raise it.
constexpr int kSchemaVersion = 2;

// {"schema_version", "command", "longspan": {version, commit, compiler, build_type}, "time": UTC}; callers add their own keys.
nlohmann::ordered_json new_record(const std::string& command);

// Writes `record` under a temporary name beside `file`, syncs, and renames: a reader sees the old file or the whole new one.
// "-" prints to standard output instead. Throws Error(io).
void write_record(const nlohmann::ordered_json& record, const std::string& file);

// The same for any text (SVG files).
void write_text(const std::string& text, const std::string& file);

}  // namespace longspan::report
