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
  // A message is sent straight out of (and received straight into) its pieces; nothing is packed or copied here. A block has
  // `block_bytes` (1 … 1 GiB). Works on its own duplicate of `communicator`, so that several exchanges may use the same tags:
  // collective to create and destroy. `part_bytes`: messages of more than that go in several parts (a test makes it small).
  explicit BlockExchange(const Communicator& communicator, int64_t block_bytes, int64_t part_bytes = kPieceBytes);
  // All steps are finished by then; what is not (an exception unwinds) is cancelled, not waited for.
  ~BlockExchange();
  BlockExchange(const BlockExchange&) = delete;
  BlockExchange& operator=(const BlockExchange&) = delete;

  struct Piece {
    std::byte* address = nullptr;  // first block
    int64_t blocks = 0;
  };
  struct Message {
    int peer = 0;
    std::vector<Piece> pieces;
  };
  // Posts all receives, then all sends of step `tag` (0 … 2^20; the same number on both sides; at most one message per peer, direction
  // and tag in flight). The memory stays untouched until the tag's finish_receives or finish_sends returns. A message has the same
  // number of blocks on both sides (one of none is not sent at all) and its peer is another rank; pieces that abut are joined.
  void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends);
  int64_t messages_in_flight() const;  // parts of messages that are posted and not done, both directions
  // Lets MPI work; cheap. Call often while computing.
  void progress();
  // True when the receives of `tag` have arrived (also when there were none). Does not block.
  bool received(int tag);
  bool sent(int tag);  // the same of its sends
  // Block until the receives (the sends) of `tag` are done. After the time-out without any message of any tag completing, throws
  // Error(communication) that names the peers still awaited. A message shorter or longer than announced is Error(communication) too.
  void finish_receives(int tag);
  void finish_sends(int tag);
  void set_timeout(double seconds);  // 300 at first; 0 waits for ever

  // Of the messages completed so far.
  int64_t bytes_received() const;
  int64_t bytes_sent() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longspan::comm
