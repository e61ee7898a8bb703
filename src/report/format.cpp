#include "report/format.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace longspan::report {

std::string count_text(int64_t count) {
  std::string digits = std::to_string(count);
  const size_t first = count < 0 ? 1 : 0;
  for (size_t at = digits.size(); at > first + 3;) digits.insert(at -= 3, ",");
  return digits;
}

std::string bytes_text(int64_t bytes) {
  constexpr std::array kUnits{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes > -1024 && bytes < 1024) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; std::abs(value) >= 1023.995 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.{}f} {}", value, std::abs(value) < 10 ? 2 : std::abs(value) < 100 ? 1 : 0, kUnits[unit]);
}

std::string duration_text(double seconds) {
  if (!(seconds >= 0)) return "?";
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (seconds < 0.9995) return fmt::format("{:.3g} ms", seconds * 1e3);
  if (seconds < 59.95) return fmt::format("{:.1f} s", seconds);
  if (seconds > 1e12) return "ages";
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  const int64_t minutes = (whole + 30) / 60;
  if (minutes < int64_t{48} * 60) return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
  return fmt::format("{} d {:02} h", minutes / 1440, minutes % 1440 / 60);
}

std::string percent_text(double share) {
  const double percent = share * 100;
  if (!std::isfinite(percent)) return "-";
  if (percent == 0 || std::abs(percent) >= 0.05) return fmt::format("{:.1f} %", percent);
  return fmt::format("{:.2g} %", percent);
}

std::string number_text(double value) { return fmt::format("{:.5g}", value); }

std::string exact_text(double value) { return fmt::format("{}", value); }

std::string amount_text(double amount, const std::string& unit) {
  constexpr std::array kScales{std::pair{1e18, "E "}, std::pair{1e15, "P "}, std::pair{1e12, "T "},
                               std::pair{1e9, "G "},  std::pair{1e6, "M "},  std::pair{1e3, "k "}};
  for (const auto& [scale, prefix] : kScales)
    if (amount >= scale) return fmt::format("{:.3g} {}{}", amount / scale, prefix, unit);
  return fmt::format("{:.3g} {}", amount, unit);
}

std::string rate_text(double per_second, const std::string& unit) { return amount_text(per_second, unit) + "/s"; }

int64_t columns_of(const std::string& utf8) {
  int64_t columns = 0;
  for (const char byte : utf8) columns += (static_cast<unsigned char>(byte) & 0xc0) != 0x80;
  return columns;
}

}  // namespace longspan::report
