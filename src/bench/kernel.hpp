// The attention kernel by itself on this machine: one step over a whole sequence in memory, and the peak of the arithmetic it uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cpu/thread_pool.hpp"
#include "longspan/shape.hpp"
#include "pattern/pattern.hpp"

namespace longspan::bench {

struct KernelMeasure {
  std::string kernel;                      // the instruction set
  double flop = 0;                         // 4·head_dim for each pair in 64×64 quarters of tiles with an allowed pair, over all heads
  std::vector<double> seconds;             // each time: clearing the states, all tiles, rounding the output
  double peak_before = 0, peak_after = 0;  // FLOP/s

  double rate() const;   // FLOP/s, of the median time
  double share() const;  // of the mean of the two peaks
};

// Synthetic rows. shape.tokens is a multiple of 128. The first run counts too when `times` is 1; else there is one more before.
KernelMeasure measure_kernel(const pattern::Pattern& pattern, const Shape& shape, int times, kernels::cpu::ThreadPool& threads);

}  // namespace longspan::bench
