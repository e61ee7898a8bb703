#include "longspan/error.hpp"

#include <algorithm>
#include <numeric>

namespace longspan {

std::string Problem::text() const {
  std::string line = what;
  if (!seen.empty()) line += ": seen " + seen;
  if (!expected.empty()) line += (seen.empty() ? ": expected " : ", expected ") + expected;
  if (!from.empty()) line += " (" + from + ")";
  if (!mend.empty()) line += "; " + mend;
  return line;
}

namespace {

std::string join(const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& problem : problems) text += (text.empty() ? "" : "\n") + problem.text();
  return text;
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

}  // namespace

Error::Error(std::vector<Problem> problems) : std::runtime_error(join(problems)), problems_(std::move(problems)) {}

void internal_error(const std::string& what) {
  throw Error({.code = ExitCode::internal, .what = what, .mend = "please report this with the command line and the run record"});
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, name.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) best = candidate, best_distance = distance;
  }
  return best;
}

}  // namespace longspan
