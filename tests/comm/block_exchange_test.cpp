#include "comm/block_exchange.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace longspan::comm {
namespace {

using testing::HasSubstr;
using Message = BlockExchange::Message;
using Piece = BlockExchange::Piece;

// A pool of blocks of which pieces are handed out at random places.
class Pool {
 public:
  Pool(int64_t blocks, int64_t block_bytes)
      : block_bytes_(block_bytes), bytes_(static_cast<size_t>(blocks * block_bytes), std::byte{0xee}) {}

  std::byte* at(int64_t block) { return bytes_.data() + block * block_bytes_; }

  // `count` blocks in `pieces` or so pieces (some of none), with gaps between most of them and in no order.
  std::vector<Piece> cut(int64_t count, int pieces, std::mt19937& random) {
    std::vector<Piece> cuts;
    while (count > 0) {
      const int64_t size = pieces <= 1 ? count : static_cast<int64_t>(random() % static_cast<unsigned>(count + 1));
      cuts.push_back({at(next_), size});
      next_ += size + (random() % 3 ? 1 : 0);
      count -= size;
      --pieces;
    }
    std::shuffle(cuts.begin(), cuts.end(), random);
    return cuts;
  }

  int64_t block_bytes() const { return block_bytes_; }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  int64_t block_bytes_;
  int64_t next_ = 0;
  std::vector<std::byte> bytes_;
};

std::byte value(int tag, int from, int to, int64_t byte) {
  return static_cast<std::byte>((tag * 101 + from * 17 + to * 5 + byte * 3 + byte / 251) & 0x7f);  // never 0xee
}

void fill(const Message& message, int64_t block_bytes, int tag, int from, int to) {
  int64_t byte = 0;
  for (const Piece& piece : message.pieces)
    for (int64_t i = 0; i < piece.blocks * block_bytes; ++i) piece.address[i] = value(tag, from, to, byte++);
}

// Bytes of the message that are not what `fill` put in on the other side.
int64_t wrong(const Message& message, int64_t block_bytes, int tag, int from, int to) {
  int64_t byte = 0, errors = 0;
  for (const Piece& piece : message.pieces)
    for (int64_t i = 0; i < piece.blocks * block_bytes; ++i) errors += piece.address[i] != value(tag, from, to, byte++);
  return errors;
}

struct Traffic {
  int64_t block_bytes = 8;
  int64_t part_bytes = kPieceBytes;
  int steps = 5;
  int most_blocks = 40;
  int pieces = 6;
};

// Every rank sends a random number of blocks (often none) to every other one in every step, with all steps in flight at a time; what
// a rank does not receive must stay as it was.
void exchange_random_traffic(const Communicator& world, const Traffic& traffic) {
  const int ranks = world.size(), self = world.rank();
  std::mt19937 shared(7);                               // the plan, alike on all ranks
  std::mt19937 own(static_cast<unsigned>(100 + self));  // how a rank cuts its messages is its own business
  BlockExchange exchange(world, traffic.block_bytes, traffic.part_bytes);
  exchange.set_timeout(60);
  const int64_t space = int64_t{traffic.steps} * ranks * (traffic.most_blocks + 2 * traffic.pieces + 8);
  Pool incoming(space, traffic.block_bytes), outgoing(space, traffic.block_bytes);

  std::vector<std::vector<Message>> receives(static_cast<size_t>(traffic.steps)), sends(receives);
  int64_t bytes_in = 0, bytes_out = 0;
  for (int tag = 0; tag < traffic.steps; ++tag)
    for (int from = 0; from < ranks; ++from)
      for (int to = 0; to < ranks; ++to) {
        const int64_t blocks = shared() % 3 == 0 ? 0 : static_cast<int64_t>(shared() % static_cast<unsigned>(traffic.most_blocks + 1));
        if (from == to) continue;
        if (to == self)
          receives[static_cast<size_t>(tag)].push_back({from, incoming.cut(blocks, traffic.pieces, own)}),
              bytes_in += blocks * traffic.block_bytes;
        if (from == self)
          sends[static_cast<size_t>(tag)].push_back({to, outgoing.cut(blocks, traffic.pieces, own)}),
              bytes_out += blocks * traffic.block_bytes;
      }
  std::vector<int> order(static_cast<size_t>(traffic.steps));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::shuffle(order.begin(), order.end(), own);  // ranks start the steps in different orders
  for (int tag : order) {
    const auto t = static_cast<size_t>(tag);
    for (const Message& message : sends[t]) fill(message, traffic.block_bytes, tag, self, message.peer);
    std::shuffle(receives[t].begin(), receives[t].end(), own);
    exchange.start(tag, receives[t], sends[t]);
    exchange.progress();
  }
  std::shuffle(order.begin(), order.end(), own);
  for (int tag : order) {
    exchange.finish_receives(tag);
    EXPECT_TRUE(exchange.received(tag));
    for (const Message& message : receives[static_cast<size_t>(tag)])
      EXPECT_EQ(wrong(message, traffic.block_bytes, tag, message.peer, self), 0) << "step " << tag << " from " << message.peer;
  }
  for (int tag : order) exchange.finish_sends(tag);
  EXPECT_EQ(exchange.bytes_received(), bytes_in);
  EXPECT_EQ(exchange.bytes_sent(), bytes_out);
  EXPECT_EQ(world.sum(exchange.bytes_received()), world.sum(exchange.bytes_sent()));

  // Blocks outside the received pieces are untouched.
  int64_t touched = 0;
  for (const std::byte b : incoming.bytes()) touched += b != std::byte{0xee};
  EXPECT_EQ(touched, bytes_in);
}

TEST(BlockExchange, RandomPiecesCutDifferentlyOnBothSides) { exchange_random_traffic(Communicator(MPI_COMM_WORLD), {}); }

TEST(BlockExchange, WholeMessagesInOnePiece) { exchange_random_traffic(Communicator(MPI_COMM_WORLD), {.block_bytes = 512, .pieces = 1}); }

TEST(BlockExchange, ManyStepsInFlight) {
  exchange_random_traffic(Communicator(MPI_COMM_WORLD), {.block_bytes = 16, .steps = 60, .most_blocks = 9, .pieces = 3});
}

// 3 blocks a part (50 bytes are no multiple of 16), so that most messages have several parts and pieces lie across their borders.
TEST(BlockExchange, PartsOfAFewBlocks) {
  exchange_random_traffic(Communicator(MPI_COMM_WORLD), {.block_bytes = 16, .part_bytes = 50, .steps = 8});
}

TEST(BlockExchange, PartsSmallerThanABlock) {
  exchange_random_traffic(Communicator(MPI_COMM_WORLD), {.block_bytes = 24, .part_bytes = 1, .steps = 3, .most_blocks = 10});
}

// Above every eager limit: data flows only while both sides poll.
TEST(BlockExchange, LongMessages) {
  exchange_random_traffic(Communicator(MPI_COMM_WORLD),
                          {.block_bytes = 65536, .part_bytes = 1 << 20, .steps = 2, .most_blocks = 24, .pieces = 9});
}

TEST(BlockExchange, NothingToMove) {
  const Communicator world(MPI_COMM_WORLD);
  BlockExchange exchange(world, 64);
  EXPECT_TRUE(exchange.received(3));
  exchange.finish_receives(3);
  std::byte block[64];
  std::vector<Message> nothing;
  for (int peer = 0; peer < world.size(); ++peer)
    if (peer != world.rank()) nothing.push_back({peer, {{block, 0}, {nullptr, 0}}}), nothing.push_back({peer, {}});
  exchange.start(3, nothing, nothing);
  exchange.start(3, {}, {});
  exchange.finish_receives(3);
  exchange.finish_sends(3);
  EXPECT_TRUE(exchange.received(3));
  EXPECT_EQ(exchange.bytes_received() + exchange.bytes_sent(), 0);
}

TEST(BlockExchange, TagsCanBeUsedAgain) {
  const Communicator world(MPI_COMM_WORLD);
  if (world.size() < 2) GTEST_SKIP() << "needs 2 ranks";
  const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
  BlockExchange exchange(world, 4);
  for (int round = 0; round < 100; ++round) {
    std::byte in[8] = {}, out[8] = {};
    const Message receive{previous, {{in, 2}}}, send{next, {{out, 2}}};
    fill(send, 4, round, world.rank(), next);
    exchange.start(1 << 20, {receive}, {send});
    while (!exchange.received(1 << 20)) exchange.progress();
    EXPECT_EQ(wrong(receive, 4, round, previous, world.rank()), 0);
    exchange.finish_sends(1 << 20);
  }
  EXPECT_EQ(exchange.bytes_sent(), 800);
}

// Two exchanges with the same tags and peers at a time.
TEST(BlockExchange, ExchangesDoNotMix) {
  const Communicator world(MPI_COMM_WORLD);
  if (world.size() < 2) GTEST_SKIP() << "needs 2 ranks";
  const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
  BlockExchange keys(world, 8), states(world, 8);
  std::byte key_in[8], key_out[8], state_in[8], state_out[8];
  const Message key_send{next, {{key_out, 1}}}, key_receive{previous, {{key_in, 1}}};
  const Message state_send{next, {{state_out, 1}}}, state_receive{previous, {{state_in, 1}}};
  fill(key_send, 8, 1, world.rank(), next);
  fill(state_send, 8, 2, world.rank(), next);
  if (world.rank() % 2) {
    keys.start(5, {key_receive}, {key_send});
    states.start(5, {state_receive}, {state_send});
  } else {
    states.start(5, {state_receive}, {state_send});
    keys.start(5, {key_receive}, {key_send});
  }
  states.finish_receives(5);
  keys.finish_receives(5);
  EXPECT_EQ(wrong(key_receive, 8, 1, previous, world.rank()), 0);
  EXPECT_EQ(wrong(state_receive, 8, 2, previous, world.rank()), 0);
  states.finish_sends(5);
  keys.finish_sends(5);
}

Problem problem_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.problems().front();
  }
  return {.code = ExitCode::ok, .what = "nothing was thrown"};
}

TEST(BlockExchange, TimeOutNamesTheAwaitedPeers) {
  const Communicator world(MPI_COMM_WORLD);
  if (world.size() < 2) GTEST_SKIP() << "needs 2 ranks";
  BlockExchange exchange(world, 16);
  std::vector<std::byte> memory(static_cast<size_t>(world.size()) * 48);
  // Everybody else promises rank 0 three blocks in step 9; the last rank keeps its promise.
  if (world.rank() == 0) {
    std::vector<Message> receives;
    for (int peer = 1; peer < world.size(); ++peer) receives.push_back({peer, {{memory.data() + peer * 48, 3}}});
    exchange.set_timeout(world.size() == 2 ? 0.2 : 0.5);
    exchange.start(9, receives, {});
    const Problem problem = problem_of([&] { exchange.finish_receives(9); });
    const int silent = world.size() - 2;
    if (silent == 0) {
      EXPECT_EQ(problem.what, "nothing was thrown");
    } else {
      EXPECT_EQ(problem.code, ExitCode::communication);
      EXPECT_THAT(problem.what, testing::AllOf(HasSubstr("time-out"), HasSubstr("step 9")));
      EXPECT_EQ(problem.seen, std::to_string(silent * 48) + " bytes still to come from " +
                                  (silent == 1 ? "rank 1" : "ranks 1-" + std::to_string(silent)));
      EXPECT_EQ(problem.from, "rank 0");
      EXPECT_FALSE(exchange.received(9));
    }
    EXPECT_EQ(exchange.bytes_received(), 48);
  } else if (world.rank() == world.size() - 1) {
    exchange.start(9, {}, {{0, {{memory.data(), 3}}}});
    exchange.finish_sends(9);
  }
  world.barrier();
}

TEST(BlockExchange, TimeOutOfASendNamesTheReceiver) {
  const Communicator world(MPI_COMM_WORLD);
  if (world.size() < 2) GTEST_SKIP() << "needs 2 ranks";
  BlockExchange exchange(world, 1 << 20);
  std::vector<std::byte> memory(8 << 20);
  if (world.rank() == 1) {  // above the eager limit, so that it cannot leave before it is wanted
    exchange.set_timeout(0.2);
    exchange.start(2, {}, {{0, {{memory.data(), 8}}}});
    const Problem problem = problem_of([&] { exchange.finish_sends(2); });
    EXPECT_EQ(problem.seen, std::to_string(8 << 20) + " bytes still to be taken by rank 0");
  }
  world.barrier();
  if (world.rank() == 0) exchange.start(2, {{1, {{memory.data(), 8}}}}, {});
  exchange.set_timeout(60);
  exchange.finish_receives(2);
  exchange.finish_sends(2);
  EXPECT_EQ(world.sum(exchange.bytes_sent()), 8 << 20);
}

TEST(BlockExchange, WrongLengthsAreErrors) {
  const Communicator world(MPI_COMM_WORLD);
  if (world.size() < 2) GTEST_SKIP() << "needs 2 ranks";
  std::byte memory[64];
  for (const int64_t sent : {1, 4}) {  // 2 expected
    BlockExchange exchange(world, 16);
    exchange.set_timeout(60);
    if (world.rank() == 1) {
      exchange.start(0, {}, {{0, {{memory, sent}}}});
      exchange.finish_sends(0);
    } else if (world.rank() == 0) {
      exchange.start(0, {{1, {{memory, 2}}}}, {});
      const Problem problem = problem_of([&] { exchange.finish_receives(0); });
      EXPECT_EQ(problem.code, ExitCode::communication) << problem.what;
      EXPECT_THAT(problem.what, HasSubstr("rank 1"));
      EXPECT_THAT(problem.seen, HasSubstr(sent < 2 ? "16 bytes" : "TRUNCATE"));
      EXPECT_EQ(exchange.bytes_received(), 0);
    }
    world.barrier();
  }
}

TEST(BlockExchange, MisuseIsAnInternalError) {
  const Communicator world(MPI_COMM_WORLD);
  std::byte memory[64];
  BlockExchange exchange(world, 16);
  const auto code_of = [&](const std::vector<Message>& receives, int tag = 0) {
    return problem_of([&] { exchange.start(tag, receives, {}); }).code;
  };
  EXPECT_EQ(code_of({{world.rank(), {{memory, 1}}}}), ExitCode::internal) << "to itself";
  EXPECT_EQ(code_of({{world.size(), {{memory, 1}}}}), ExitCode::internal);
  EXPECT_EQ(code_of({{-1, {{memory, 1}}}}), ExitCode::internal);
  EXPECT_EQ(code_of({}, -1), ExitCode::internal);
  EXPECT_EQ(code_of({}, (1 << 20) + 1), ExitCode::internal);
  if (world.size() > 1) {
    const int peer = world.rank() == 0 ? 1 : 0;
    EXPECT_EQ(code_of({{peer, {{memory, 1}}}, {peer, {{memory + 16, 1}}}}), ExitCode::internal) << "two messages of a peer";
  }
  EXPECT_EQ(problem_of([&] { BlockExchange(world, 0); }).code, ExitCode::internal);
  EXPECT_EQ(problem_of([&] { BlockExchange(world, kPieceBytes + 1); }).code, ExitCode::internal);
}

}  // namespace
}  // namespace longspan::comm
