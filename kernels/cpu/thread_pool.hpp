// A fixed set of threads that share out the items of a loop. One pool per rank; the calling thread waits and computes nothing,
// so that it can drive messages meanwhile.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace longspan::kernels::cpu {

class ThreadPool {
 public:
  // `threads` >= 1 workers. Throws Error(environment) if the system does not give them. The destructor lets running bodies end and drops
  // the rest of the loop.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()); }

  // Calls body(item, worker) for every item of [0, items), each once, in no fixed order; items are handed out one by one in
  // ascending order. Starts and returns; wait() ends it. One loop at a time: Error(internal) while another runs. After a body has thrown,
  // no further items are handed out.
  void start(int64_t items, std::function<void(int64_t item, int worker)> body);
  // True once every item of the started loop is done. Does not block.
  bool finished();
  // Blocks until every item is done; rethrows the first exception of a body. After `timeout` (seconds) returns false with the loop still
  // running.
  bool wait_for(double timeout);
  void wait();

  void for_each(int64_t items, std::function<void(int64_t item, int worker)> body) {
    start(items, std::move(body));
    wait();
  }

 private:
  void work(int worker);

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::function<void(int64_t, int)> body_;
  int64_t items_ = 0, next_ = 0, running_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;
  std::vector<std::jthread> workers_;
};

// CPUs this process may run on (sched_getaffinity), at least 1.
int available_cpus();

}  // namespace longspan::kernels::cpu
