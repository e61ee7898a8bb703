// The attention kernel by itself on one device: one step over a whole sequence in its memory, and the peak of the arithmetic it uses.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/device.hpp"
#include "longspan/shape.hpp"
#include "pattern/pattern.hpp"

namespace longspan::bench {

struct KernelMeasure {
  double flop = 0;              // 4·head_dim for each pair in 64×64 quarters of tiles with an allowed pair, over all heads
  std::vector<double> seconds;  // each time: all tiles, rounding the output, on a GPU also sending the lists there
  std::vector<double> peaks;    // FLOP/s: before the first time, and after each

  double rate() const;   // FLOP/s, of the median time
  double peak() const;   // median
  double share() const;  // the median of each time's rate over the mean of the peaks on both sides of it: clocks change meanwhile
};

// Synthetic rows. shape.tokens is a multiple of 128. The first run counts too when `times` is 1; else there is one more before. `peak`
// measures, in FLOP/s, what the device's arithmetic gives at best.
KernelMeasure measure_kernel(const pattern::Pattern& pattern, const Shape& shape, int times, kernels::Device& device,
                             const std::function<double()>& peak);

}  // namespace longspan::bench
