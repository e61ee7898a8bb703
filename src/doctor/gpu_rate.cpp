#include "doctor/gpu_rate.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

namespace longspan::doctor {

namespace {

constexpr int kRepeats = 5;

// Of the median repeat, the first left out.
template <typename Copy>
double rate_of(int64_t bytes, Copy copy) {
  std::vector<double> seconds;
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    copy();
    if (repeat > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return static_cast<double>(bytes) / std::max(seconds[kRepeats / 2], 1e-9);
}

}  // namespace

GpuRate gpu_rate(const kernels::Gpu& gpu, kernels::Device& device, int64_t bytes) {
  GpuRate rate{.copy = kernels::copy_rate(gpu)};
  const kernels::Buffer there = device.allocate(bytes), here = device.allocate_host(bytes);
  std::memset(here.get(), 1, static_cast<size_t>(bytes));
  rate.to_gpu = rate_of(bytes, [&] { device.upload(here.get(), bytes, there.get()); });
  rate.from_gpu = rate_of(bytes, [&] { device.download(there.get(), bytes, here.get()); });
  return rate;
}

}  // namespace longspan::doctor
