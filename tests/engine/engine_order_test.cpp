// In which order ranks start what travels, and when.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "engine_run.hpp"
#include "tests/support/test_devices.hpp"

namespace longspan::testing {
namespace {

// Between host pools, but as NCCL has it where launches are made one after another: the start of a step returns when all its peers have
// started it too. Each pair of ranks tells each other what it starts; two orders would be a difference, or wait for ever.
class OrderedTransport : public comm::Transport {
 public:
  explicit OrderedTransport(const comm::Communicator& ranks) : ranks_(ranks.handle(), comm::kPieceBytes) {}
  std::string name() const override { return "MPI, in one order"; }
  std::unique_ptr<comm::PoolExchange> between_pools(const comm::Communicator& ranks, std::byte* pool, int64_t block_bytes) override {
    return std::make_unique<Exchange>(ranks_, exchanges_++, comm::MpiTransport().between_pools(ranks, pool, block_bytes));
  }

 private:
  class Exchange : public SameExchange {
   public:
    Exchange(const comm::Communicator& ranks, int number, std::unique_ptr<comm::PoolExchange> inner)
        : SameExchange(std::move(inner)), ranks_(ranks), number_(number) {}
    void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
      inner_->start(tag, receives, sends);
      std::set<int> peers;
      for (const auto* messages : {&receives, &sends})
        for (const Message& message : *messages)
          if (!message.slots.empty()) peers.insert(message.peer);
      const std::array<int, 2> mine{number_, tag};
      std::vector<std::array<int, 2>> theirs(peers.size());
      std::vector<MPI_Request> requests(2 * peers.size());
      size_t i = 0;
      for (int peer : peers) {
        MPI_Irecv(theirs[i].data(), 2, MPI_INT, peer, 0, ranks_.handle(), &requests[2 * i]);
        MPI_Isend(mine.data(), 2, MPI_INT, peer, 0, ranks_.handle(), &requests[2 * i + 1]);
        ++i;
      }
      MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
      for (const std::array<int, 2>& started : theirs) EXPECT_EQ(started, mine) << "exchange and step that a peer has started";
    }
    bool takes_sends_ahead() const override { return false; }
    bool starts_in_one_order() const override { return true; }

   private:
    const comm::Communicator& ranks_;
    int number_;
  };
  comm::Communicator ranks_;
  int exchanges_ = 0;
};

TEST(EngineOrderTest, AllRanksStartTheirStepsInOneOrder) {
  const comm::Communicator world(MPI_COMM_WORLD);
  if (world.size() < 2) GTEST_SKIP() << "one rank has nobody to agree with";
  CpuWithSpareThreads cpu(2);
  // Some keys come late on some ranks: the others have started what they may by then.
  class Slow : public WholeInput {
   public:
    Slow(Problem& problem, int rank) : WholeInput(problem), rank_(rank) {}
    void read_v(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
      std::this_thread::sleep_for(std::chrono::milliseconds((rank_ * 7 + begin / plan::kBlock) % 3 == 0 ? 3 : 0));
      WholeInput::read_v(begin, count, head, heads, out);
    }

   private:
    int rank_;
  };
  for (const std::string& text : patterns()) {
    for (int ranks_per_host : {2, 3, world.size()}) {  // the last: one host, keys several steps ahead
      if (ranks_per_host > world.size() || (ranks_per_host < world.size() && world.size() < 3)) continue;
      for (int64_t blocks_of_room : {0, 6}) {
        SCOPED_TRACE(text + ", " + std::to_string(ranks_per_host) + " ranks a host, room " + std::to_string(blocks_of_room));
        Problem problem(shape_of(ElementType::bfloat16, 4, 4), Documents::from_lengths({5000, 100, 20}), text);
        OrderedTransport ordered(world);
        Slow input(problem, world.rank());
        const Outcome outcome = attend_on(
            cpu, ordered, world, problem,
            {.blocks_of_room = blocks_of_room, .stripes = 3, .ranks_per_host = ranks_per_host, .exchange = plan::ExchangeKind::node}, {},
            &input);
        testing::expect_exact(world, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, 97, false);
      }
    }
  }
}

// Each rank's first key block, which nobody else needs, comes when this rank has started messages, and not before.
TEST(EngineOrderTest, KeysTravelWhileOthersAreLoaded) {
  static constexpr int64_t kOwnTokens = 6 * plan::kBlock;
  comm::Communicator world(MPI_COMM_WORLD);
  if (world.size() < 2) GTEST_SKIP() << "one rank has no keys that travel";
  std::atomic<bool> started = false, in_time = true;
  class Watched : public comm::Transport {
   public:
    explicit Watched(std::atomic<bool>& started) : started_(started) {}
    std::string name() const override { return "MPI, watched"; }
    std::unique_ptr<comm::PoolExchange> between_pools(const comm::Communicator& ranks, std::byte* pool, int64_t block_bytes) override {
      return std::make_unique<Exchange>(comm::MpiTransport().between_pools(ranks, pool, block_bytes), started_);
    }

   private:
    class Exchange : public SameExchange {
     public:
      Exchange(std::unique_ptr<comm::PoolExchange> inner, std::atomic<bool>& started) : SameExchange(std::move(inner)), started_(started) {}
      void start(int tag, const std::vector<Message>& receives, const std::vector<Message>& sends) override {
        SameExchange::start(tag, receives, sends);
        if (!receives.empty() || !sends.empty()) started_ = true;
      }

     private:
      std::atomic<bool>& started_;
    };
    std::atomic<bool>& started_;
  } transport(started);
  class Held : public WholeInput {
   public:
    Held(Problem& problem, std::atomic<bool>& started, std::atomic<bool>& in_time)
        : WholeInput(problem), started_(started), in_time_(in_time) {}
    void read_k(int64_t begin, int64_t count, int head, int heads, std::byte* out) override {
      const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      while (begin % kOwnTokens == 0 && !started_ && in_time_) {
        if (std::chrono::steady_clock::now() > limit) in_time_ = false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      WholeInput::read_k(begin, count, head, heads, out);
    }

   private:
    std::atomic<bool>&started_, &in_time_;
  };
  Shape shape = shape_of(ElementType::bfloat16);
  shape.tokens = world.size() * kOwnTokens;
  Problem problem(shape, Documents::single(shape.tokens), "causal & window(200)", 5);
  Held input(problem, started, in_time);
  kernels::cpu::CpuDevice cpu(1);
  const Outcome outcome = attend_on(cpu, transport, world, problem, {.partition = plan::PartitionKind::contiguous}, {}, &input);
  EXPECT_TRUE(in_time) << "nothing was on its way while keys were loaded";
  expect_exact(world, problem, outcome.tokens, shape.type, outcome.output.o, outcome.output.lse, 7);
}

}  // namespace
}  // namespace longspan::testing
