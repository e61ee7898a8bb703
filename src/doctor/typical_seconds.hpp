// How long something takes that is measured now.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace longspan::doctor {

// Seconds of the median of `repeats` calls, after one that does not count; at least 1 ns.
template <typename Call>
double typical_seconds(int repeats, Call call) {
  std::vector<double> seconds;
  for (int repeat = 0; repeat <= repeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    call();
    if (repeat > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return std::max(seconds[seconds.size() / 2], 1e-9);
}

}  // namespace longspan::doctor
