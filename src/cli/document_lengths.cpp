#include "cli/document_lengths.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "cli/quantity.hpp"
#include "pattern/philox.hpp"

namespace longspan::cli {

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0;;) {
    const size_t comma = text.find(',', begin);
    parts.push_back(text.substr(begin, comma == std::string::npos ? comma : comma - begin));
    if (comma == std::string::npos) return parts;
    begin = comma + 1;
  }
}

// Adds documents until `tokens` are used up; the last one is cut.
template <typename NextLength>
std::vector<int64_t> fill(int64_t tokens, NextLength next_length) {
  std::vector<int64_t> lengths;
  for (int64_t used = 0; used < tokens;) {
    lengths.push_back(std::min(next_length(static_cast<int64_t>(lengths.size())), tokens - used));
    used += lengths.back();
  }
  if (lengths.empty()) lengths.push_back(0);
  return lengths;
}

// A standard normal number that belongs to `document` (Box and Muller, "A note on the generation of random normal deviates", 1958).
double normal(int64_t document, uint64_t seed) {
  constexpr uint32_t kStream = 0xd0c5;  // keeps these words apart from those of the elements
  const auto words = philox4x32({static_cast<uint32_t>(document), static_cast<uint32_t>(document >> 32), 0, kStream}, philox_key(seed));
  const double radius = std::sqrt(-2 * std::log((words[0] + 1.0) * 0x1p-32));
  return radius * std::cos(2 * std::numbers::pi * words[1] * 0x1p-32);
}

}  // namespace

Documents documents_from(const Settings& settings, uint64_t seed) {
  constexpr const char* kForms = "lengths such as 1000,24,0,7, or fixed:LENGTH, or lognormal:MEAN,SIGMA";
  const std::optional<int64_t> tokens = settings.maybe_integer("tokens");
  if (!settings.has("documents")) {
    if (!tokens)
      throw Error({.code = ExitCode::usage,
                   .what = "option --tokens is missing",
                   .expected = "--tokens N, or --documents with lengths",
                   .mend = "give the number of tokens"});
    return Documents::single(*tokens);
  }
  const std::string& text = settings.text("documents");
  const size_t colon = text.find(':');
  const std::string rule = colon == std::string::npos ? "" : text.substr(0, colon);
  const std::vector<std::string> values = split(colon == std::string::npos ? text : text.substr(colon + 1));
  if (!rule.empty() && !tokens)
    throw Error({.code = ExitCode::usage, .what = "option --tokens is missing", .expected = "--tokens N beside --documents " + text});
  if (rule == "fixed") {
    const auto length = values.size() == 1 ? parse_quantity(values.front()) : std::nullopt;
    if (!length || *length < 1)
      throw Error(settings.problem("documents", "document length makes no sense", "fixed:LENGTH with LENGTH of at least 1"));
    return Documents::from_lengths(fill(*tokens, [&](int64_t) { return *length; }));
  }
  if (rule == "lognormal") {
    const auto mean = values.size() == 2 ? parse_quantity(values[0]) : std::nullopt;
    const auto sigma = values.size() == 2 ? parse_real(values[1]) : std::nullopt;
    if (!mean || *mean < 1 || !sigma || *sigma < 0 || *sigma > 10)
      throw Error(settings.problem("documents", "document length makes no sense",
                                   "lognormal:MEAN,SIGMA with MEAN of at least 1 token and 0 <= SIGMA <= 10"));
    const double mu = std::log(static_cast<double>(*mean)) - *sigma * *sigma / 2;  // the mean of exp(N(mu, sigma²)) is exp(mu + sigma²/2)
    return Documents::from_lengths(fill(*tokens, [&](int64_t document) {
      const double length = std::exp(mu + *sigma * normal(document, seed));
      return length >= static_cast<double>(*tokens) ? *tokens : std::max<int64_t>(1, std::llround(length));
    }));
  }
  if (!rule.empty()) {
    const std::string near = nearest_name(rule, {"fixed", "lognormal"});
    throw Error(settings.problem("documents", "unknown rule " + rule, kForms, near.empty() ? "" : "did you mean " + near + "?"));
  }
  std::vector<int64_t> lengths;
  int64_t sum = 0;
  for (const std::string& value : values) {
    const auto length = parse_quantity(value);
    if (!length || *length < 0 || __builtin_add_overflow(sum, *length, &sum))
      throw Error(settings.problem("documents", fmt::format("document length \"{}\" makes no sense", value), kForms));
    lengths.push_back(*length);
  }
  if (tokens && settings.given("tokens") && *tokens != sum)
    throw Error(settings.problem("documents", fmt::format("documents have {} tokens together, --tokens says {}", sum, *tokens), {},
                                 "leave out --tokens"));
  return Documents::from_lengths(lengths);
}

}  // namespace longspan::cli
