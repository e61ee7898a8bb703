#include "bench/row_link.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <future>

namespace longspan::bench {

namespace {

// Rows of 16 heads of 128 elements of two bytes: any would do.
constexpr int kHeads = 16, kHeadDim = 128;
constexpr int64_t kRowBytes = int64_t{2} * kHeads * kHeadDim;

template <typename Call>
double seconds_of(Call call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::max(1e-9, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace

double RowLinkRates::slowdown() const {
  if (!(in > 0 && out > 0 && both > 0)) return 0;
  // Of one byte each way: the longer one has the rest of its time for itself.
  const double least = std::min(1 / in, 1 / out);
  return std::clamp((2 / both - std::abs(1 / in - 1 / out)) / least, 1.0, 2.0);
}

RowLink::RowLink(kernels::Device& device, int64_t bytes)
    : device_(device),
      rows_(std::max<int64_t>(1, bytes / kRowBytes)),
      host_in_(device.allocate_host(rows_ * kRowBytes)),
      host_out_(device.allocate_host(rows_ * kRowBytes)),
      queries_(device.allocate(rows_ * kRowBytes)),
      results_(device.allocate(rows_ * kRowBytes)) {
  std::memset(host_in_.get(), 0, static_cast<size_t>(rows_ * kRowBytes));
  bring(), take();  // what the device makes for its first copies
}

void RowLink::bring() {
  device_.load_rows(
      rows_, kRowBytes, [&](int64_t first, int64_t, std::byte*) { return host_in_.get() + first * kRowBytes; }, queries_.get());
}

void RowLink::take() {
  const kernels::Results results{ElementType::bfloat16, results_.get(), nullptr};
  device_.store_rows(
      results, rows_, kHeads, kHeadDim,
      [&](int64_t first, int64_t) {
        return kernels::Device::ResultRows{host_out_.get() + first * kRowBytes, nullptr};
      },
      [](int64_t, int64_t, const std::byte*, const float*) {});
}

RowLinkRates RowLink::measure() {
  const auto bytes = static_cast<double>(rows_ * kRowBytes);
  RowLinkRates rates{.in = bytes / seconds_of([&] { bring(); }), .out = bytes / seconds_of([&] { take(); })};
  rates.both = 2 * bytes / seconds_of([&] {
                 std::future<void> taken = std::async(std::launch::async, [&] { take(); });
                 bring();
                 taken.get();
               });
  return rates;
}

}  // namespace longspan::bench
