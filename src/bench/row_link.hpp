// The way of rows between host memory and a GPU's, measured as the engine uses it: one thread brings queries, another takes results away.
#pragma once

#include <cstdint>

#include "kernels/device.hpp"

namespace longspan::bench {

// Bytes/s.
struct RowLinkRates {
  double in = 0, out = 0;  // each by itself
  double both = 0;         // together, as many each way at the same time

  // plan::Rates::both_ways: how many times longer a copy takes while another goes the other way, 1 (no longer) to 2 (as long as one after
  // the other). Example: 50 GB each way take 1 s by themselves, and 1.2 s together: 83 GB/s, 1.2.
  double slowdown() const;
};

class RowLink {
 public:
  // Copies of `bytes` (some MiB) each way, between pinned host memory and the memory of `device`, a GPU, which outlives this: takes as much
  // of both, twice. Throws as Device::allocate.
  RowLink(kernels::Device& device, int64_t bytes);
  RowLinkRates measure();  // once

 private:
  void bring();
  void take();

  kernels::Device& device_;
  int64_t rows_;
  kernels::Buffer host_in_, host_out_, queries_, results_;
};

}  // namespace longspan::bench
