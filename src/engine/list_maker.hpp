// Tile lists of a rank's stripes, made in their order and ahead of their use, some stripes and as far as the memory for lists goes. A
// device that leaves threads to the host (a GPU) has them made by a thread of their own, beside everything else:
//
//   lists      |--0--|--1--|--2--|--3--|
//   I/O        own keys          |q 0 |q 1 |      ...
//   device                            |--0--|--1--|
//
// Else the caller makes them, when it has time.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <vector>

#include "engine/io_thread.hpp"
#include "engine/stripe_lists.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::engine {

class ListMaker {
 public:
  using Kept = std::vector<std::shared_ptr<const StripeLists>>;  // by stripe
  // Whether all of a plan's lists together take half of `bytes` at most: a GPU has them too, with more for each step.
  static bool can_keep(const plan::RankPlan& plan, int64_t bytes);

  // Called for one stripe after another, by the caller's thread (`threads` is null) or by the maker's.
  using Make = std::function<StripeLists(size_t stripe, kernels::cpu::ThreadPool* threads)>;
  // `plan`, and what `make` uses, outlive the maker. `bytes`: of lists that may be there at one time, those in use among them
  // (plan::Memory::lists). `threads`: how many the lists may take; 1: only the caller's.
  // `kept` (null: none) has the lists of runs before; those that this one makes are kept with them, if can_keep().
  ListMaker(const plan::RankPlan& plan, int64_t bytes, int threads, Make make, Kept* kept = nullptr);
  ~ListMaker();  // those that have not been begun are not made any more

  bool has_thread() const { return spare_threads_ > 1; }
  bool keeps() const { return kept_ != nullptr; }
  // As many more as there is room for: asked for where there is a thread, and one of them made where there is none. Whether there were any.
  bool make_ahead();

  // The next stripe's, which now is in use; `wait` waits until the future is ready, and rethrows what went wrong. Room for others follows.
  std::shared_ptr<const StripeLists> take(const std::function<void(std::future<void>&)>& wait);
  // The next stripe's, if they are there; where there is no thread, they are made. Null after the last one.
  const StripeLists* next();

 private:
  struct Made {
    std::shared_ptr<const StripeLists> lists;
    std::future<void> done;  // not valid: they are there
  };
  void make_one();
  bool has_room() const;

  const plan::RankPlan& plan_;
  int64_t bytes_;
  int spare_threads_;
  Make make_;
  Kept* kept_;
  size_t taken_ = 0, asked_ = 0;  // stripes before these are in use or were, and are made or will be
  std::deque<Made> made_;         // of stripes [taken_, asked_)
  std::atomic<bool> ended_ = false;
  std::optional<kernels::cpu::ThreadPool> threads_;  // both from when there is something to make: kept lists need none
  std::optional<IoThread> thread_;                   // last: its tasks use everything above
};

}  // namespace longspan::engine
