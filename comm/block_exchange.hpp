// Moves blocks of bytes between ranks, one message per peer and step, without blocking: start a step, go on computing and poll now
// and then, finish it before its blocks are used. Knows nothing of what the blocks mean.
//
//   rank 0 sends blocks at a, b, c to rank 1:   Message{peer 1, {{a, 1}, {b, 2}}}   (c follows b in memory: one piece of 2)
//   rank 1 receives them at x, y, z:             Message{peer 0, {{x, 3}}}           (pieces may be cut differently, totals agree)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.hpp"

namespace longspan::comm {

class BlockExchange {
 public:
  // A message is sent straight out of (and received straight into) `base` + offset·block_bytes; nothing is packed or copied here.
  BlockExchange(const Communicator& communicator, int64_t block_bytes);
  ~BlockExchange();

  struct Piece {
    std::byte* address = nullptr;  // first block
    int64_t blocks = 0;
  };
  struct Message {
    int peer = 0;
    std::vector<Piece> pieces;
  };
  // Posts all receives, then all sends of step `tag` (0 … 2^20; the same number on both sides; at most one message per peer, direction
  // and tag in flight). The memory stays untouched until finish(tag) returns. Messages of more than 1 GiB go in several parts.
  void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends);
  // Lets MPI work; cheap. Call often while computing.
  void progress();
  // True when the receives of `tag` have arrived. Does not block.
  bool received(int tag);
  // Blocks until the receives (and, with `sends`, the sends) of `tag` are done. After `time-out` seconds without any message completing,
  // throws Error(communication) that names the peers still awaited.
  void finish_receives(int tag);
  void finish_sends(int tag);
  void set_timeout(double seconds);

  int64_t bytes_received() const;
  int64_t bytes_sent() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longspan::comm
