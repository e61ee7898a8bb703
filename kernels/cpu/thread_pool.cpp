#include "kernels/cpu/thread_pool.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "longspan/error.hpp"

namespace longspan::kernels::cpu {

ThreadPool::ThreadPool(int threads) {
  if (threads < 1) internal_error("a thread pool of " + std::to_string(threads) + " threads");
  workers_.reserve(static_cast<size_t>(threads));
  try {
    for (int worker = 0; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
  } catch (const std::system_error& error) {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;  // or the threads that did start would be joined for ever
    }
    wake_.notify_all();
    throw Error({.code = ExitCode::environment,
                 .what = "cannot start a compute thread",
                 .seen = std::to_string(workers_.size()) + " started, then: " + error.what(),
                 .expected = std::to_string(threads) + " threads",
                 .from = "--threads",
                 .mend = "use fewer threads or raise the limit of processes (ulimit -u)"});
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    next_ = items_;  // bodies that run are let finish, the rest is dropped
  }
  wake_.notify_all();
  workers_.clear();  // joins
}

void ThreadPool::start(int64_t items, std::function<void(int64_t item, int worker)> body) {
  {
    std::lock_guard lock(mutex_);
    if (next_ < items_ || running_ > 0) internal_error("a loop was started on a thread pool whose last loop still runs");
    body_ = std::move(body);
    items_ = std::max<int64_t>(items, 0);
    next_ = 0;
    failure_ = nullptr;
  }
  wake_.notify_all();
}

bool ThreadPool::finished() {
  std::lock_guard lock(mutex_);
  return next_ >= items_ && running_ == 0;
}

bool ThreadPool::wait_for(double timeout) {
  constexpr double kLongest = 1e8;  // seconds, three years: more would overflow the clock
  std::exception_ptr failure;
  {
    std::unique_lock lock(mutex_);
    const auto limit = std::chrono::duration<double>(std::clamp(timeout, 0.0, kLongest));
    if (!done_.wait_for(lock, limit, [this] { return next_ >= items_ && running_ == 0; })) return false;
    failure = std::exchange(failure_, nullptr);
  }
  if (failure) std::rethrow_exception(failure);
  return true;
}

void ThreadPool::wait() {
  while (!wait_for(1e6)) {
  }
}

void ThreadPool::work(int worker) {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || next_ < items_; });
    if (stop_) return;
    while (next_ < items_) {
      const int64_t item = next_++;
      ++running_;
      lock.unlock();
      std::exception_ptr failure;
      try {
        body_(item, worker);  // start() leaves body_ alone while anything runs
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      --running_;
      if (failure) {
        if (!failure_) failure_ = failure;
        next_ = items_;
      }
    }
    if (running_ == 0) done_.notify_all();
  }
}

int available_cpus() {
  // More than 1,024 CPUs need a larger set; the kernel says EINVAL until it is large enough.
  for (int cpus = CPU_SETSIZE; cpus <= (1 << 20); cpus *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(cpus));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cpus));
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return 1;
}

}  // namespace longspan::kernels::cpu
