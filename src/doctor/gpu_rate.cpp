#include "doctor/gpu_rate.hpp"

#include <cstring>

#include "doctor/typical_seconds.hpp"

namespace longspan::doctor {

namespace {

constexpr int kRepeats = 5;

}  // namespace

GpuRate gpu_rate(const kernels::Gpu& gpu, kernels::Device& device, int64_t bytes) {
  GpuRate rate{.copy = kernels::copy_rate(gpu)};
  const kernels::Buffer there = device.allocate(bytes), here = device.allocate_host(bytes);
  std::memset(here.get(), 1, static_cast<size_t>(bytes));
  const auto per_second = [&](auto copy) { return static_cast<double>(bytes) / typical_seconds(kRepeats, copy); };
  rate.to_gpu = per_second([&] { device.upload(here.get(), bytes, there.get()); });
  rate.from_gpu = per_second([&] { device.download(there.get(), bytes, here.get()); });
  return rate;
}

}  // namespace longspan::doctor
