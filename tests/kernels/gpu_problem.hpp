// Runs a Problem on a GPU, through the interface that the engine uses.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/device.hpp"
#include "kernels/gpus.hpp"
#include "problem.hpp"

namespace longspan::kernels {

// The first GPU, opened once; null where there is none.
Device* test_gpu();
std::string why_no_gpu();

// A Problem whose arrays lie on the GPU. Rows past a block's end are zeros there, as in every unit; unreferenced slots keep their NaN.
class GpuProblem {
 public:
  explicit GpuProblem(const Problem& problem);
  // Whether problems made from now on have two blocks of three in rows, where the kernel attends those: from row 72 on, one after another
  // from the last to the first, with three rows of NaN after each that is short. In the pool these are NaN, then.
  static void put_keys_in_rows(bool in_rows) { in_rows_ = in_rows; }

  // Runs `work` over `tiles` (the problem's own without them) from the states there are; `begins`, `ends`: set on every item.
  void run(bool begins = false, bool ends = false);
  void run(const std::vector<Work>& work, const std::vector<Tile>& tiles);
  void prepare(const std::vector<Work>& work, const std::vector<Tile>& tiles);  // Device::prepare; they stay until the next run is over
  void set_states(const States& states);
  States states() const;
  Output finished(ElementType type);      // of the states
  Output results() const;                 // of items that ended
  void poison_results(ElementType type);  // NaN everywhere, and their type

 private:
  Step step_of(const std::vector<Work>& work, const std::vector<Tile>& tiles);
  void make_rows(std::vector<std::byte>& pool);

  static inline bool in_rows_ = false;

  const Problem& problem_;
  Device& device_;
  Buffer q_, units_, flags_, m_, l_, o_, out_, lse_, k_rows_, v_rows_, row_flags_;
  Pool pool_;
  ElementType result_type_;
  std::vector<int32_t> slots_;
  KeysInRows rows_;
};

States run_on_gpu(const Problem& problem);

// DESIGN section 6 where the weights of 16-bit types are rounded for the matrix unit: the straightforward evaluation that sets the bound
// does so too. Collects O and LSE from `output`.
void expect_right_on_gpu(const Problem& problem, const Output& output);

}  // namespace longspan::kernels
