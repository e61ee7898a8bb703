// The keys of other ranks, on their way and here: which steps' are asked for and when, what is passed on inside the host, and when a unit
// leaves the pool.
//
//   step                     0        1        2        3
//   asked for (2 ahead)      1, 2     3                           before it is computed; step 0 has own keys only
//   leaves the pool                   keys 1   keys 2   keys 3    after it, unless a later stripe keeps them, they are held to pass on,
//                                                                 or all stay for the run that follows
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "engine/key_pool.hpp"
#include "engine/schedule.hpp"
#include "kernels/device.hpp"
#include "plan/blocks.hpp"
#include "plan/rank_plan.hpp"

namespace longspan::engine {

// What is fetched, by whom. All of it outlives the fetches.
struct FetchPlan {
  const comm::Communicator& ranks;
  const plan::Shared& shared;
  const plan::RankPlan& plan;
  const plan::Blocks& blocks;
  const Schedule& schedule;
  const std::vector<int>& host_of_rank;
};

class Fetches {
 public:
  // Starts to read units again from the input into their slots: for each run, [blocks][kv_heads] of it. Asked for when keys do not stay.
  using ReadAgain = std::function<std::future<void>(std::vector<UnitRun> runs, std::vector<std::vector<int32_t>> slots)>;
  // For any number of runs, one after another; each starts with begin(). `device` and `transport` outlive this.
  Fetches(const FetchPlan& what, kernels::Device& device, comm::Transport& transport);

  // A run: everything of the one before has been finished. `timeout`: seconds without any message before a wait gives up; 0: never.
  void begin(double timeout, bool keep, ReadAgain read_again);

  KeyPool& pool() { return pool_; }
  const KeyPool& pool() const { return pool_; }
  // Steps of the job as (stripe, step of it), in the order they run. Below, t counts them.
  const std::vector<std::pair<size_t, int>>& order() const { return order_; }

  // Before anything is sent in a run: others read own blocks in the rows that the pool leaves them in, where they can; or in the pool.
  bool send_from_rows() {
    const kernels::KeysInRows& own = pool_.in_rows();
    return reads_rows_ && exchange_->send_from_rows({own.k, own.v, own.rows});
  }
  void send_from_pool() {
    if (reads_rows_) exchange_->send_from_rows({});
  }

  // In this run only what comes of these blocks (null: of any) has to be looked through for NaN and ∞: no other is in a tile with a mask,
  // and the device attends rows. They are the same in every run that has some, and outlive this.
  void look_through(const Intervals* masked) { masked_ = masked; }

  // The first fetches are those of the steps that are ahead of the first one, and of the first step at all in which keys travel.
  //
  // Makes the next of them ready: slots, messages, memory for them; false when all are. May come before this rank's own keys are here.
  bool prepare_one_of_first();
  // Own blocks by the first of them that sends each: part p is what goes out with the fetch of step p and with none before, and what lies
  // between its blocks, if that is little: files are read in long runs.
  const std::vector<Intervals>& first_sent();
  // The same without what lies between them, and what only later steps send.
  struct Sent {
    std::vector<Intervals> first;
    Intervals later;
    int64_t blocks = 0;  // of all of these
  };
  const Sent& sent();
  // Those that send nothing but the first `parts` of these, which are here. No time-out yet: peers may load for as long as it takes.
  void start_first(size_t parts);
  void start_first();       // all of them, once all own keys are here
  void start(size_t last);  // those of all steps up to `last`, in order
  void accept(size_t t);    // if the step's keys are here: what finish() has to do then. The step before it is being computed
  // Whether all of the step's keys are here, and the device knows, so that finish() has nothing to do; and what is asked for then may come
  // beside the step after it.
  bool can_be_computed_early(size_t t) const;
  void finish(size_t t);             // waits until the step's keys are here
  void finish_passing_on(size_t t);  // and until others of the host have what they get of them
  // Slots of the resident units, come or not, [kv_heads][blocks].
  void slots_of(const Intervals& blocks, std::vector<int32_t>& slots);
  // Whether they are those that all units of the step will have when it is computed.
  bool has_places(size_t t);
  void prepare_release(size_t t);  // finds out which; while a step computes there is time for it
  void release(size_t t);          // after a step: lets go of the units that nobody needs any more, unless all stay for the next run;
                                   // in a while: when their slots are wanted, or this thread has time
  void finish_sends();             // of all steps
  void progress();                 // moves messages
  void let_it_begin();             // as comm::PoolExchange::let_it_begin, before a step is computed
  void note_arrivals();            // for in_flight(); where this rank has nothing else to do
  void hand_over();                // as comm::PoolExchange::hand_over, before this rank waits for others outside of here
  void abandon();                  // as comm::PoolExchange::abandon

  // Of this run.
  double in_flight() const { return in_flight_; }  // seconds during which keys were on their way, from when own ones were here
  int64_t bytes_received() const { return received_ever() - received_before_; }
  int64_t bytes_sent() const { return sent_ever() - sent_before_; }
  int64_t bytes_from_other_hosts() const { return bytes_from_other_hosts_; }
  int64_t bytes_read_again() const { return bytes_read_again_; }
  bool units_stayed() const { return stayed_; }  // in their slots, since the run before

 private:
  using Clock = std::chrono::steady_clock;
  using Messages = std::vector<comm::PoolExchange::Message>;
  // What an exchange moves at least: a unit, or a quarter of one, which is half a unit's keys or half its values. Example: of a unit in
  // slot 5 its first half is pieces 20 and 22, its second one 21 and 23; all of it is pieces 20 … 23, as its memory is.
  struct Pieces {
    int of_unit = 1;
    int64_t count(const UnitRun& run) const { return run.kv_heads * of_head(run); }
    int64_t of_head(const UnitRun& run) const { return run.halves.length() * of_unit / 2; }
    // Appends those of a run, KV head by KV head, its units being in these slots.
    void append(const UnitRun& run, std::span<const int32_t> slots, std::vector<int32_t>& pieces) const;
  };
  struct Inside {  // a step's messages inside the host
    size_t t;
    Messages receives, sends;
  };

  Messages outlines(const std::vector<PeerUnits>& peers) const;
  int64_t pieces_of(const PeerUnits& peer) const;
  // `append(run, slots)` appends those of a run's units.
  template <typename Append>
  Messages messages(const std::vector<PeerUnits>& peers, Append append) const;
  int64_t received_ever() const { return exchange_->bytes_received() + (inside_host_ ? inside_host_->bytes_received() : 0); }
  int64_t sent_ever() const { return exchange_->bytes_sent() + (inside_host_ ? inside_host_->bytes_sent() : 0); }
  const StepExchange& exchange_of(size_t t) const;
  Intervals sent_with(size_t t) const;  // own blocks
  void prepare(size_t t);
  const Messages& receives_of(size_t t, Messages& made);
  Inside inside_host(size_t t);
  void start_prepared(size_t t);
  bool send_ahead();  // of the next step, when it may be; whether it was
  void read_again(size_t t);
  // Blocks of another rank, in the order in which it has them.
  struct Home {
    Numbering blocks;
    std::vector<int32_t> first_rows;  // of each, among its rows, and how many rows there are
  };
  const Home& home(int rank);
  void name_slots_at_home(const std::vector<PeerUnits>& peers, Messages& receives);
  comm::PoolExchange::RowPlace row_place(int home_rank, int32_t piece);
  Messages sends_of(size_t t) const;
  void tell_device(size_t t);  // that the step's keys are here
  bool may_pass_on(size_t t);
  void pass_on(size_t last);
  using Released = std::vector<std::vector<Intervals>>;  // [class] sets of blocks, which may overlap: kept twice, released twice
  const Released& released_after(size_t t);
  void release_now();
  bool all_can_stay() const;
  size_t last_of_first() const;

  const plan::Shared& shared_;
  const plan::RankPlan& plan_;
  const plan::Blocks& blocks_;
  const Schedule& schedule_;
  const std::vector<int>& host_of_rank_;
  kernels::Device& device_;
  ReadAgain read_again_;
  Pieces pieces_;
  KeyPool pool_;
  std::unique_ptr<comm::PoolExchange> exchange_;     // with the homes
  std::unique_ptr<comm::PoolExchange> inside_host_;  // among the ranks of the host; where nothing is passed on there is none

  std::vector<std::pair<size_t, int>> order_;
  size_t prepared_ = 0, started_ = 0, sent_ = 0;  // steps before these are
  bool own_are_here_ = false;                     // own keys, all of them
  double timeout_ = 0;
  struct Ready {
    comm::PoolExchange::Step messages;  // without receives that have been started
    bool receives;
  };
  std::deque<Ready> ready_;  // of steps [started_, prepared_)
  struct Receives {
    Messages messages;
    std::vector<int64_t> units;
    std::vector<int32_t> slots;                        // of these
    std::optional<std::vector<int32_t>> masked_slots;  // of those that have to be looked through, once known
    int64_t bytes() const;
  };
  const std::vector<int32_t>& slots_to_look_through(Receives& receives) const;
  std::map<size_t, Receives> receives_before_;       // by step: of the run before, if another one follows; of so many bytes at most
  int64_t bytes_before_ = 0;                         // in there
  std::deque<Inside> inside_waiting_;                // until the step's units from elsewhere are here
  std::map<size_t, std::future<void>> key_reads_;    // by step
  std::map<size_t, std::vector<int32_t>> arriving_;  // by step: slots of units that messages fill
  std::vector<size_t> awaited_;                      // steps whose keys are on their way
  Clock::time_point awaited_since_;                  // the first of them
  std::map<int, Home> homes_;                        // of ranks that were asked for something
  bool reads_rows_ = false;                          // what others send may come out of rows
  const Intervals* masked_ = nullptr;                // null: all blocks may be
  std::vector<size_t> to_release_;                   // after these steps
  bool some_were_released_ = false;                  // in this run
  // All units that a run fetches are in slots of their own, asked for before its first step is over, and stay there for the next run: none
  // is released, taken or compared again.
  bool all_stay_ = false;
  bool stayed_ = false;                        // since the run before
  std::map<size_t, Released> released_after_;  // by step, once known; those that are over only if another run will follow
  bool keeps_ = false;
  std::vector<Intervals> first_sent_;  // once known
  std::optional<Sent> all_sent_;       // once asked for
  bool expects_ = false;               // the exchange has been told what will come
  double in_flight_ = 0;
  int64_t bytes_from_other_hosts_ = 0, bytes_read_again_ = 0;
  int64_t received_before_ = 0, sent_before_ = 0;  // in the runs before
};

}  // namespace longspan::engine
