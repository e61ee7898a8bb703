// What is checked of the ranks of a launch, and what counts as unfit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspan::doctor {

// A figure over the ranks that have one; `worst_rank` is the slowest of them (−1: nobody has one).
struct Spread {
  double least = 0, median = 0, most = 0;
  int worst_rank = -1;
};

enum class Better : uint8_t { higher, lower };
enum class Verdict : uint8_t { ok, slow, unfit };

// Worse than the median by this factor is worth telling; by `tolerance` (option) it is unfit: one such rank holds up all others.
constexpr double kSlow = 1.25;
// The job's disk must reach this, whatever the ranks.
constexpr double kLeastDiskRate = 20e6;  // bytes/s, all ranks together
// What a rank must have at least.
constexpr int64_t kLeastMemory = int64_t{256} << 20;
constexpr int64_t kLeastSharedMemory = int64_t{16} << 20;  // of /dev/shm, through which ranks of a host talk
// Clocks farther apart make logs of hosts and times of files useless.
constexpr double kMostClockOffset = 1;  // seconds

// values[r] of rank r; NaN where there is none.
Spread spread_of(const std::vector<double>& values, Better better);
// How many times worse the worst rank is than the median, at least 1; infinite for a rate of 0.
double worse_by(const Spread& spread, Better better);
Verdict judge(const Spread& spread, Better better, double tolerance);

}  // namespace longspan::doctor
