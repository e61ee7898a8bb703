#include "cli/quantity.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

namespace longspan::cli {

namespace {

struct Suffix {
  std::string_view text;
  int64_t factor;
};
constexpr std::array kSuffixes{Suffix{"Ki", int64_t{1} << 10},
                               Suffix{"Mi", int64_t{1} << 20},
                               Suffix{"Gi", int64_t{1} << 30},
                               Suffix{"Ti", int64_t{1} << 40},
                               Suffix{"k", 1'000},
                               Suffix{"K", 1'000},
                               Suffix{"M", 1'000'000},
                               Suffix{"G", 1'000'000'000},
                               Suffix{"T", 1'000'000'000'000},
                               Suffix{"", 1}};

template <typename Number>
std::optional<std::pair<Number, std::string_view>> leading_number(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return std::nullopt;
  return std::pair{value, text.substr(static_cast<size_t>(end - text.data()))};
}

}  // namespace

std::optional<int64_t> parse_quantity(const std::string& text, bool bytes) {
  const auto number = leading_number<int64_t>(text);
  if (!number) return std::nullopt;
  auto [value, rest] = *number;
  if (bytes && rest.ends_with('B')) rest.remove_suffix(1);
  for (const Suffix& suffix : kSuffixes) {
    if (rest != suffix.text) continue;
    int64_t product = 0;
    if (__builtin_mul_overflow(value, suffix.factor, &product)) return std::nullopt;
    return product;
  }
  return std::nullopt;
}

std::optional<double> parse_real(const std::string& text) {
  const auto number = leading_number<double>(text);
  if (!number || !number->second.empty() || !std::isfinite(number->first)) return std::nullopt;
  return number->first;
}

std::optional<double> parse_duration(const std::string& text) {
  const auto number = leading_number<double>(text);
  if (!number || !std::isfinite(number->first) || number->first < 0) return std::nullopt;
  const auto [value, unit] = *number;
  if (unit.empty() || unit == "s") return value;
  if (unit == "ms") return value / 1000;
  if (unit == "min") return value * 60;
  if (unit == "h") return value * 3600;
  return std::nullopt;
}

std::optional<bool> parse_switch(const std::string& text) {
  if (text == "true" || text == "yes" || text == "on" || text == "1") return true;
  if (text == "false" || text == "no" || text == "off" || text == "0") return false;
  return std::nullopt;
}

}  // namespace longspan::cli
