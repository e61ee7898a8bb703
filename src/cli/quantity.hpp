// Numbers as people write them on a command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace longspan::cli {

// "12", "32k" (10^3), "3M", "2G", "1T" (powers of 1000), "64Ki", "12Mi", "8Gi", "1Ti" (powers of 1024), "-5"; bytes may end in "B" (8GiB).
// Nothing when the text is something else or does not fit in 64 bits.
std::optional<int64_t> parse_quantity(const std::string& text, bool bytes = false);
std::optional<double> parse_real(const std::string& text);  // finite
// "90", "90s", "5min", "2h", "500ms" -> seconds, not negative.
std::optional<double> parse_duration(const std::string& text);
// true false, yes no, on off, 1 0
std::optional<bool> parse_switch(const std::string& text);

}  // namespace longspan::cli
