#include "longspan/shape.hpp"

#include <algorithm>

#include "longspan/error.hpp"

namespace longspan {

Documents::Documents(std::vector<int64_t> offsets, const std::string& from) : offsets_(std::move(offsets)) {
  if (offsets_.size() < 2 || offsets_.front() != 0) {
    throw Error(
        {.code = ExitCode::input,
         .what = "document offsets do not start at 0",
         .seen = offsets_.empty() ? "no entry" : std::to_string(offsets_.size()) + " entries, first " + std::to_string(offsets_.front()),
         .expected = "0, …, tokens: one entry more than there are documents",
         .from = from});
  }
  const auto descent = std::adjacent_find(offsets_.begin(), offsets_.end(), std::greater<>());
  if (descent != offsets_.end()) {
    throw Error({.code = ExitCode::input,
                 .what = "document offsets do not ascend",
                 .seen = std::to_string(descent[0]) + " before " + std::to_string(descent[1]) + " at entry " +
                         std::to_string(descent - offsets_.begin()),
                 .expected = "0, …, tokens, none smaller than the one before",
                 .from = from});
  }
}

Documents Documents::from_lengths(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return Documents(std::move(offsets), "document lengths");
}

int64_t Documents::holding(int64_t token) const { return std::upper_bound(offsets_.begin(), offsets_.end(), token) - offsets_.begin() - 1; }

}  // namespace longspan
