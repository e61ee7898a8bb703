// Long rows (DESIGN section 5.4): their queries go to the ranks that hold the keys, and the states of the pieces come home and are
// merged in ascending order of keys.
//
//   row 0 looks at all keys, 4 ranks:   rank 0 sends its Q to 1, 2, 3;  each attends over its own keys;
//                                       rank 0 merges ((s0 + s1) + s2) + s3
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
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
  // A run: everything of the one before has been finished. `timeout`: seconds without any message before a wait gives up; 0: never.
  void begin(double timeout);

  // Where the rows of a stripe's pieces lie in its buffers: one set of queries for a block, one set of states for a block and a part of a
  // piece of its keys.
  struct Layout {
    std::map<int64_t, int64_t> q_row;                          // by block
    std::map<std::pair<int64_t, int64_t>, int64_t> state_row;  // by block and first key block
    int64_t q_rows = 0, state_rows = 0;
  };
  const Layout& layout(const plan::Stripe& stripe) const { return layouts_.at(stripe.pieces.begin); }

  // Reads the queries of own long rows that the stripe's pieces have; a device that has them may still do so on return.
  void read_queries(const plan::Stripe& stripe, Input& input, std::byte* q);
  // The queries of the stripe's pieces to the ranks that compute them: sends those that read_queries() has read, and returns. Those of this
  // rank's pieces are in q [q_rows][heads][head_dim], host memory, after finish_queries(): of the heads that have such rows. It is in use
  // until send_states() has returned, since others may be late to take what they get. One stripe at a time.
  void start_queries(const plan::Stripe& stripe, std::byte* q);
  bool queries_are_here();  // those that come to this rank
  void finish_queries();
  // Memory for the states that travel, for the stripe that needs most. Before the first stripe, when nobody waits for it.
  void make_room(const std::vector<plan::Stripe>& stripes);
  // The device's memory: m, l [rows][heads], o [rows][heads][head_dim].
  struct States {
    float *m, *l, *o;
  };
  // Where the pieces have states of their own, as they do on a GPU that has them all in one stripe and in little memory (with what comes
  // of others a sixteenth of plan::Options::memory and 256 MiB at most, beside what the plan says): then they are merged when the rows'
  // results are wanted, and nobody waits for others' before that. Else they lie where those of the next stripe will.
  std::optional<States> own_states() const;
  // While the last step of a stripe of long rows runs (Device::work_waits_for_step), where pieces have states of their own: those of
  // others' rows leave the device when it has ended, and the host when progress() finds them there. So the next step need not wait.
  void pack_states(const plan::Stripe& stripe, const Layout& layout, const States& states);
  // After a stripe of long rows: its states of others' rows start home, those of own rows start coming.
  void send_states(const plan::Stripe& stripe, const Layout& layout, const States& states);
  // Then, with the same states, before anything is computed into them: merges what this rank has of own rows with what comes. Waits for
  // no other rank, and may come while a step runs (Device::work_waits_for_step), if pieces have states of their own and others' are here.
  bool states_are_here();
  void merge_states(const Layout& layout, const States& states);
  // On return what was packed goes on by itself. To be called before this rank waits for others elsewhere: they may be waiting for it.
  void hand_over();
  // Waits until others have what was sent. To be called before this rank may wait for the device's other work, on which theirs may bear:
  // they take states only while this rank makes progress.
  void finish_sending();
  // After the last stripe of long rows, before there are results: the plan has what travels and the results in the same memory. Where that
  // is the host's, what make_room() made goes, once others have what was sent.
  void give_room_back();
  // Blocks with own long rows; and once they are merged, the results of some of them, each with its first row in `results`.
  std::set<int64_t> own_blocks() const;
  void finish(const std::vector<std::pair<int64_t, int64_t>>& blocks, const kernels::Results& results) const;

  void progress();
  bool is_sending() const { return !sending_.empty() || !packed_.empty(); }
  bool is_moving() const { return exchange_.messages_in_flight() > 0; }                     // something, in or out
  int64_t bytes_received() const { return exchange_.bytes_received() - received_before_; }  // of this run

 private:
  int64_t states_of(const plan::LongRow& row) const;  // rows × heads of the group
  int64_t packed_bytes(
      const plan::LongRow& row) const;  // of its states: m [rows][group heads], l the same, o [rows][group heads][head_dim]
  const plan::LongRow& row_of(int64_t piece) const;
  int home_of(int64_t piece) const;
  // Those of a piece's parts, ascending, after the others.
  void append_parts(int64_t piece, const Layout& layout, const States& states, std::vector<kernels::StateBlock>& to) const;
  // Those of the stripe for others.
  std::vector<int64_t> leaving_of(const plan::Stripe& stripe) const;
  std::byte* send(std::span<const int64_t> pieces, std::byte* from);  // the end of them
  bool send_packed();                                                 // if they have left the device
  // Pieces that this rank has computed, their parts merged, packed one after the other; returns the bytes.
  int64_t pack(std::span<const int64_t> pieces, const Layout& layout, const States& states, std::byte* into);
  int64_t q_row_bytes() const {
    return int64_t{shared_.shape.heads} * shared_.shape.head_dim * static_cast<int64_t>(size_of(shared_.shape.type));
  }
  std::byte* queries_of(int64_t block, const Layout& layout, std::byte* q);
  void read_own(const std::set<int64_t>& own, const Layout& layout, Input& input, std::byte* q);
  void append_queries(const std::vector<bool>& heads, int64_t rows, std::byte* q, std::vector<comm::BlockExchange::Piece>& to) const;
  void merge_at_once(const Layout& layout, const States& states);
  void post(size_t first);
  int64_t place_together(size_t other) const;
  std::byte* coming(size_t other) const;

  const plan::Shared& shared_;
  const pattern::BoundPattern& pattern_;
  const plan::Blocks& blocks_;
  int rank_;
  kernels::Device& device_;
  std::map<int64_t, Layout> layouts_;        // by the first piece of a stripe
  std::vector<std::vector<int32_t>> heads_;  // of each head group
  std::vector<int32_t> all_heads_;           // 0, 1, …: of packed states
  int64_t received_before_ = 0;              // bytes
  struct Queries {                           // of a stripe, on their way
    int tag = 0;
    std::map<int64_t, std::vector<std::byte>> only_leaving;  // by own block of whose rows this rank computes none
  } queries_;
  // All memory is made before the first stripe and given back at the end: a GPU may wait for all that it does then, and so for other ranks.
  kernels::Buffer piece_states_;  // m, l and o of the pieces, if they have their own
  int64_t piece_states_count_ = 0;
  kernels::Buffer states_;            // merged ones of own long rows, packed
  std::map<int, int64_t> place_;      // of a long row in there, bytes
  std::map<int, float*> merged_;      // by long row: those that have been begun
  size_t together_ = 1;               // pieces that are copied to or from the device at once
  int64_t piece_bytes_ = 0;           // of the largest piece's states
  kernels::Buffer passing_;           // the device's: pieces on their way in or out
  kernels::Buffer leaving_, coming_;  // the host's: a stripe's pieces for other ranks; twice as many as come together
  std::vector<int> sending_;          // tags
  bool is_packed_ = false;            // the stripe whose states will be sent next
  std::vector<int64_t> packed_;       // pieces on their way to leaving_
  Interval pieces_;                   // of the stripe whose states were sent last
  std::vector<int64_t> others_;       // of them, those that other ranks have computed for this one
  comm::BlockExchange exchange_;      // in pieces of 4 bytes; last: what is on its way is cancelled before its memory goes
};

}  // namespace longspan::engine
