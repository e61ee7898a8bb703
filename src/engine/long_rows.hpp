// Long rows (DESIGN section 5.4): their queries go to the ranks that hold the keys, and the states of the pieces come home and are
// merged in ascending order of keys.
//
//   row 0 looks at all keys, 4 ranks:   rank 0 sends its Q to 1, 2, 3;  each attends over its own keys;
//                                       rank 0 merges ((s0 + s1) + s2) + s3
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "comm/block_exchange.hpp"
#include "engine/data.hpp"
#include "kernels/device.hpp"
#include "pattern/pattern.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::engine {

class LongRows {
 public:
  LongRows(const comm::Communicator& ranks, const plan::Shared& shared, const pattern::BoundPattern& pattern, const plan::Blocks& blocks,
           int rank, kernels::Device& device);
  void set_timeout(double seconds) { exchange_.set_timeout(seconds); }

  // Where the rows of a stripe's pieces lie in its buffers: one set of queries for a block, one set of states for a block and a piece of
  // keys.
  struct Layout {
    std::map<int64_t, int64_t> q_row;                          // by block
    std::map<std::pair<int64_t, int64_t>, int64_t> state_row;  // by block and first key block
    int64_t q_rows = 0, state_rows = 0;
  };
  Layout layout(const plan::Stripe& stripe) const;

  // Brings the queries of the stripe's pieces on this rank into q [q_rows][heads][head_dim], host memory; sends those of own long rows.
  void bring_queries(const plan::Stripe& stripe, const Layout& layout, Input& input, std::byte* q);
  // Sends the states [state_rows][heads] home and merges what comes home. m, l, o: the device's memory, here and below.
  void bring_states_home(const plan::Stripe& stripe, const Layout& layout, float* m, float* l, float* o);
  // Writes the merged states of own long rows of `block` into a stripe's states at `row`; false if there are none.
  bool put_states(int64_t block, int64_t row, float* m, float* l, float* o) const;
  bool has_states(int64_t block) const;

  void progress() { exchange_.progress(); }
  int64_t bytes_received() const { return exchange_.bytes_received(); }

 private:
  int64_t states_of(const plan::LongRow& row) const;  // rows × heads of the group
  int64_t packed_bytes(
      const plan::LongRow& row) const;  // of its states: m [rows][group heads], l the same, o [rows][group heads][head_dim]
  kernels::StateBlock block_of(const plan::LongRow& row, int64_t state_row, float* m, float* l, float* o) const;

  const plan::Shared& shared_;
  const pattern::BoundPattern& pattern_;
  const plan::Blocks& blocks_;
  int rank_;
  comm::BlockExchange exchange_;  // in pieces of 4 bytes
  kernels::Device& device_;
  std::vector<std::vector<int32_t>> heads_;  // of each head group
  std::map<int, float*> merged_;             // packed states by long row, own ones
  // Allocations are few, and given back at the end: that waits for all that a GPU does, keys on their way too.
  std::vector<kernels::Buffer> states_;  // where merged_ lies
  kernels::Buffer passing_;
  int64_t passing_bytes_ = 0;
};

}  // namespace longspan::engine
