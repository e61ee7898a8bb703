// Moves blocks between pools, one message per peer and step, without blocking. A block lies in its rank's pool by slot: the pool may be
// host memory (MPI straight out of it) or a GPU's (peer access, NCCL, or MPI through pinned host memory); who asks does not see which.
// Knows nothing of what the blocks mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "comm/block_exchange.hpp"
#include "comm/communicator.hpp"

namespace longspan::comm {

class PoolExchange {
 public:
  virtual ~PoolExchange() = default;

  // Blocks in the order in which both sides count them. `runs`: how many of them belong together, one run after another, as both sides see
  // it (empty: all do). A long run may travel by itself, straight from or into the pool where its slots follow each other.
  struct Message {
    int peer = 0;
    std::vector<int32_t> slots;
    std::vector<int64_t> runs = {};
    // Where reads_from_peers(): a receive may name the slots at the peer. Then its send names none, only how many.
    std::vector<int32_t> slots_there = {};
    int64_t blocks = 0;
  };
  struct Step {
    std::vector<Message> receives, sends;
  };
  // These will be started (their messages without slots), `at_once` of them before the first is finished: memory that they need may be
  // made now, when nobody waits for it. `again`: all of them time after time, mostly with the same slots, so that what is made ready for
  // one may be kept for the next time.
  virtual void expect(const std::vector<Step>& steps, size_t at_once, bool again) {
    static_cast<void>(steps), static_cast<void>(at_once), static_cast<void>(again);
  }
  // Starts step `tag` (as BlockExchange::start). Receives of a step are started in one call, and its sends in one; when
  // `takes_sends_ahead()` they may come in an earlier one than its receives.
  virtual void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) = 0;
  // Whoever receives takes the blocks from where they lie at the peer, who need not look for them if the receiver knows. Receives may be
  // started in an earlier call than the sends of their step, before this rank has anything to send: they begin as each peer sends.
  virtual bool reads_from_peers() const { return false; }
  // There, a rank's blocks need not lie in its pool if they can be put together out of rows: four quarters, or one of them, the first two
  // being rows 0 … 63 and 64 … 127 of a column of one array, the others the same of another array; the column's bytes of each row, one
  // row's after the other.
  struct RowArrays {  // each [rows][columns][column_bytes]
    const std::byte *first = nullptr, *second = nullptr;
    int64_t rows = 0;
  };
  struct RowPlace {
    int32_t first_row = 0, rows = 0;  // of the 128, so many: 1…128, the rest is zero
    int column = 0;
    int quarter = 0;  // where a block is one
  };
  struct RowLayout {
    int columns = 0, column_bytes = 0;
    std::function<RowPlace(int peer, int32_t slot)> place;  // of the block that would be in this slot there
  };
  // Once, before anything is started, on all ranks: blocks that are received may come out of rows. Whether they can.
  virtual bool reads_rows(const RowLayout& layout) {
    static_cast<void>(layout);
    return false;
  }
  // There: what this rank sends from now on, to peers who name slots, comes out of these (without rows: out of its pool), and what is in
  // them stays until the steps are over; their memory is not given back before the exchange is destroyed. False where peers cannot open it:
  // then it is the pool again. Nothing is under way.
  virtual bool send_from_rows(const RowArrays& arrays) {
    static_cast<void>(arrays);
    return false;
  }
  // There: starts the receives of step `tag`, which is over, as they were when it was started last, without a look at them, if what was
  // made ready for them then is here still (expect(), `again`). Whether it is: else they are to be started as ever. Who asks knows that
  // they are the same.
  virtual bool receive_again(int tag) {
    static_cast<void>(tag);
    return false;
  }
  // Sends of later steps are welcome now: what a rank sends never changes, so one that is ahead need not make its peers wait.
  virtual bool takes_sends_ahead() const = 0;
  // All ranks must start the steps of all their exchanges in one order: a start may wait until the peers have started theirs.
  virtual bool starts_in_one_order() const { return false; }
  virtual void progress() = 0;
  // To be called before this rank's device begins to compute, which may take all of it for as long as that takes: the oldest step that is
  // on its way has its share of the device on return.
  virtual void let_it_begin() {}
  // On return everything that was started goes on by itself. To be called before this rank waits for others outside of this exchange: they
  // may be waiting for its blocks.
  virtual void hand_over() {}
  // The job ends here: what was started is not waited for any more, and memory that it uses can be given back. Nothing can be started then.
  virtual void abandon() {}
  virtual bool received(int tag) = 0;
  virtual void finish_receives(int tag) = 0;
  virtual void finish_sends(int tag) = 0;
  virtual void set_timeout(double seconds) = 0;
  virtual int64_t bytes_received() const = 0;
  virtual int64_t bytes_sent() const = 0;
};

}  // namespace longspan::comm
