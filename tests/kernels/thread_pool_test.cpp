#include "kernels/cpu/thread_pool.hpp"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <latch>
#include <stdexcept>
#include <vector>

#include "longspan/error.hpp"

namespace longspan::kernels::cpu {
namespace {

TEST(ThreadPool, EveryItemOnceByAKnownWorker) {
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t items : {0, 1, 2, 7, 1000}) {
      std::vector<int> calls(static_cast<size_t>(items));  // not atomic: an item belongs to one thread, wait() orders it before us
      pool.for_each(items, [&](int64_t item, int worker) {
        EXPECT_TRUE(worker >= 0 && worker < threads);
        ++calls[static_cast<size_t>(item)];
      });
      EXPECT_TRUE(pool.finished());
      EXPECT_EQ(calls, std::vector<int>(static_cast<size_t>(items), 1));
    }
  }
}

TEST(ThreadPool, OneThreadTakesItemsInAscendingOrder) {
  ThreadPool pool(1);
  std::vector<int64_t> order;
  pool.for_each(50, [&](int64_t item, int) { order.push_back(item); });
  for (size_t i = 0; i < order.size(); ++i) EXPECT_EQ(order[i], static_cast<int64_t>(i));
  EXPECT_EQ(order.size(), 50u);
}

TEST(ThreadPool, NothingToDoIsFinishedAtOnce) {
  ThreadPool pool(2);
  EXPECT_TRUE(pool.finished());
  pool.wait();  // without a loop
  pool.start(0, [](int64_t, int) { FAIL(); });
  EXPECT_TRUE(pool.finished());
  EXPECT_TRUE(pool.wait_for(0));
  pool.wait();
}

TEST(ThreadPool, WaitForGivesUpAndTheLoopGoesOn) {
  ThreadPool pool(2);
  std::latch gate(1);
  std::atomic<int> done = 0;
  pool.start(3, [&](int64_t, int) {
    gate.wait();
    ++done;
  });
  EXPECT_FALSE(pool.finished());
  EXPECT_FALSE(pool.wait_for(0.01));
  EXPECT_THROW(pool.start(1, [](int64_t, int) {}), Error);
  gate.count_down();
  EXPECT_TRUE(pool.wait_for(1e300));
  EXPECT_EQ(done, 3);
}

TEST(ThreadPool, FirstExceptionIsRethrownOnceAndThePoolGoesOn) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.for_each(20,
                             [](int64_t item, int) {
                               if (item % 2) throw std::runtime_error("odd");
                             }),
               std::runtime_error);
  pool.wait();
  std::atomic<int> calls = 0;
  pool.for_each(5, [&](int64_t, int) { ++calls; });
  EXPECT_EQ(calls, 5);
}

TEST(ThreadPool, DestroyedWhileALoopRuns) {
  std::atomic<int> calls = 0;
  std::latch started(1);
  {
    ThreadPool pool(1);
    pool.start(1000000, [&](int64_t item, int) {
      if (item == 0) started.count_down();
      ++calls;
    });
    started.wait();
  }
  EXPECT_GE(calls, 1);
}

TEST(ThreadPool, NeedsAThread) { EXPECT_THROW(ThreadPool(0), Error); }

TEST(AvailableCpus, FollowsTheAffinityMask) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(available_cpus(), CPU_COUNT(&before));
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &before)) continue;
    CPU_SET(cpu, &one);
    break;
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(available_cpus(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

}  // namespace
}  // namespace longspan::kernels::cpu
