// The engine on any number of ranks against the double reference: types, head layouts, patterns, partitions, memory that forces several
// stripes and steps, keys read again, long rows, and a run that goes on from finished stripes.
#include "engine/engine.hpp"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "../pattern/brute_force.hpp"
#include "engine_run.hpp"
#include "kernels/cpu/device.hpp"
#include "tests/support/test_devices.hpp"

namespace longspan::testing {
namespace {

class EngineTest : public ::testing::TestWithParam<TestDevice> {
 protected:
  void SetUp() override {
    device_ = OpenDevice::of(GetParam(), world_);
    if (!device_.device) GTEST_SKIP() << device_.why_not;
  }
  Outcome attend(const comm::Communicator& ranks, Problem& problem, const Setting& setting, const std::vector<bool>& done = {}) {
    if (setting.threads > 0) {
      kernels::cpu::CpuDevice cpu(setting.threads);
      comm::MpiTransport mpi;
      return attend_on(cpu, mpi, ranks, problem, setting, done);
    }
    return attend_on(*device_.device, *device_.transport, ranks, problem, setting, done);
  }
  // On this rank's device, whatever the other ranks do.
  Outcome attend_alone(const comm::Communicator& alone, Problem& problem, const Setting& setting) {
    comm::MpiTransport nothing_to_move;
    kernels::cpu::CpuDevice cpu(1);
    return attend_on(setting.threads > 0 ? static_cast<kernels::Device&>(cpu) : *device_.device, nothing_to_move, alone, problem, setting);
  }
  void expect_exact(const Problem& problem, const Outcome& outcome, int64_t every) {
    testing::expect_exact(world_, problem, outcome.tokens, problem.shape().type, outcome.output.o, outcome.output.lse, every,
                          is_gpu(GetParam()));
  }

  comm::Communicator world_{MPI_COMM_WORLD};
  OpenDevice device_;
};

INSTANTIATE_TEST_SUITE_P(Devices, EngineTest, ::testing::ValuesIn(kTestDevices), [](const auto& info) { return name_of(info.param); });

TEST_P(EngineTest, MatchesTheReference) {
  for (const std::string& text : patterns()) {
    for (const auto& lengths : {std::vector<int64_t>{1111}, {1}, {500, 30, 0, 60, 70, 333}}) {
      SCOPED_TRACE(text);
      Problem problem(shape_of(ElementType::float32), Documents::from_lengths(lengths), text);
      for (bool as_on_gpu : {false, true}) expect_exact(problem, attend(world_, problem, {.as_on_gpu = as_on_gpu}), 7);
    }
  }
}

TEST_P(EngineTest, TypesAndHeadLayouts) {
  for (ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    for (auto [heads, kv_heads, head_dim] : {std::array{1, 1, 8}, {9, 3, 64}, {4, 4, 40}, {6, 1, 128}}) {
      SCOPED_TRACE(std::string(name_of(type)) + " " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " +
                   std::to_string(head_dim));
      Problem problem(shape_of(type, heads, kv_heads, head_dim), Documents::from_lengths({600, 0, 77, 131}),
                      "causal & (window(150) | sink(3))");
      const Outcome outcome = attend(world_, problem, {});
      expect_exact(problem, outcome, 13);
    }
  }
}

// Whatever can be written, with every head_dim, shared out in whatever way.
TEST_P(EngineTest, RandomJobs) {
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    const auto seed = static_cast<unsigned>(head_dim);
    std::mt19937 random(seed);
    const auto one_of = [&](const auto& all) { return all[random() % all.size()]; };
    const auto [heads, kv_heads] = one_of(std::vector<std::pair<int, int>>{{1, 1}, {4, 2}, {6, 2}, {3, 3}});
    const ElementType type = one_of(std::vector{ElementType::float32, ElementType::float16, ElementType::bfloat16});
    const int64_t size = 1 + static_cast<int64_t>(random() % 1200);
    const Documents documents = Documents::from_lengths({size, 0, 1, static_cast<int64_t>(random() % 300)});
    const auto masks = pattern::brute::random_masks(documents, heads, kv_heads, random);
    const std::string text = pattern::brute::random_pattern(random, 2, size, masks).text;
    const pattern::Pattern parsed = pattern::Pattern::parse(text);
    Setting setting{.partition = one_of(std::vector{plan::PartitionKind::automatic, plan::PartitionKind::contiguous,
                                                    plan::PartitionKind::zigzag, plan::PartitionKind::balanced}),
                    .reproducible = random() % 3 == 0,
                    .twice = head_dim % 16 == 0,
                    .as_on_gpu = head_dim % 3 == 0};
    if (random() % 3 != 0) setting.blocks_of_room = 4, setting.keys_read_again = random() % 2 == 0;
    SCOPED_TRACE(text + " on " + std::to_string(size) + " tokens, " + std::to_string(heads) + "/" + std::to_string(kv_heads) +
                 " heads of " + std::to_string(head_dim) + ", " + std::string(name_of(type)));
    Problem problem(shape_of(type, heads, kv_heads, head_dim), documents,
                    pattern::BoundPattern(parsed, heads, kv_heads, documents, masks.sources_for(parsed, documents)), seed);
    const Outcome outcome = attend(world_, problem, setting);
    expect_exact(problem, outcome, 17);
    if (HasFatalFailure()) return;
  }
}

TEST_P(EngineTest, SmallMemoryMakesStripesAndStepsAndChangesNothing) {
  for (const std::string& text : patterns()) {
    for (plan::PartitionKind kind : {plan::PartitionKind::contiguous, plan::PartitionKind::zigzag, plan::PartitionKind::balanced}) {
      if (kind != plan::PartitionKind::contiguous && text != "causal" && text != "longformer(129, 2)") continue;
      for (bool again : {false, true}) {
        SCOPED_TRACE(text + (again ? ", keys read again, " : ", ") + std::string(plan::name_of(kind)));
        Problem problem(shape_of(ElementType::bfloat16, 4, 4), Documents::from_lengths({5000, 100, 20}), text);
        const Outcome outcome = attend(
            world_, problem,
            {.partition = kind, .keys_read_again = again, .blocks_of_room = 4, .twice = text == "causal", .as_on_gpu = text[0] != 'c'});
        expect_exact(problem, outcome, 97);
        if (text == "causal" && (again || world_.size() > 1)) {
          EXPECT_GE(world_.max(static_cast<int64_t>(outcome.plan.stripes.size())), 3);
          EXPECT_GE(world_.max(outcome.plan.most_steps()), 3);
        }
      }
    }
  }
}

// One thread where the memory is the host's, and two beside a GPU's: there the first results cannot leave here before the third queries
// are read.
TEST_P(EngineTest, ResultsLeaveWhileQueriesCome) {
  constexpr int64_t kStripes = 6, kStripeRows = 8 * plan::kBlock, kRows = kStripes * kStripeRows;
  const int64_t own = world_.rank() * kRows;
  std::mutex mutex;
  std::condition_variable read;
  int64_t latest = -1;  // stripe whose queries are read
  std::set<std::thread::id> readers, writers;
  bool in_vain = false;
  class Noted : public WholeInput {
   public:
    Noted(Problem& problem, std::function<void(int64_t)> note) : WholeInput(problem), note_(std::move(note)) {}
    void read_q(int64_t begin, int64_t count, std::byte* out) override { WholeInput::read_q(begin, count, out), note_(begin); }

   private:
    std::function<void(int64_t)> note_;
  };
  Problem problem(shape_of(ElementType::float16), Documents::single(kRows * world_.size()), "causal & window(64)");
  Noted input(problem, [&](int64_t begin) {
    const std::lock_guard lock(mutex);
    readers.insert(std::this_thread::get_id());
    latest = std::max(latest, (begin - own) / kStripeRows);
    read.notify_all();
  });
  const bool apart = !device_.device->memory_is_host();
  const Outcome outcome =
      attend_on(*device_.device, *device_.transport, world_, problem,
                {.partition = plan::PartitionKind::contiguous, .stripes = kStripes, .any_thread = true}, {}, &input, [&](int64_t begin) {
                  std::unique_lock lock(mutex);
                  writers.insert(std::this_thread::get_id());
                  const int64_t later = (begin - own) / kStripeRows + 2;
                  if (apart && later < kStripes && !in_vain)
                    in_vain = !read.wait_for(lock, std::chrono::seconds(10), [&] { return latest >= later; });
                });
  EXPECT_FALSE(in_vain);
  EXPECT_EQ(readers.size(), 1u);
  EXPECT_EQ(writers.size(), 1u);
  EXPECT_EQ(readers != writers, apart);
  EXPECT_EQ(outcome.output.stripes, (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
  expect_exact(problem, outcome, 97);
}

// Of rows that find little everywhere stripes have one step each, which a GPU begins before the end of the one before.
TEST_P(EngineTest, StripesOfOneStepFollowEachOther) {
  for (const std::string text : {"bigbird(32, 3, 2, 1, 7)", "block_random(128, 4, 3)", "causal & window(700)"}) {
    SCOPED_TRACE(text);
    Problem problem(shape_of(ElementType::bfloat16, 4, 2, is_gpu(GetParam()) ? 64 : 16),
                    Documents::single(plan::kBlock * 47 * world_.size() + 77), text);
    const Outcome outcome = attend(world_, problem, {.stripes = 5, .twice = true, .as_on_gpu = true});
    expect_exact(problem, outcome, 53);
    EXPECT_GE(outcome.plan.stripes.size(), 5u);
    if (text != "causal & window(700)" || world_.size() == 1) {
      for (const int steps : outcome.schedule.steps) EXPECT_EQ(steps, 1);
    }
  }
}

TEST_P(EngineTest, ReproducibleBitsDependOnNothing) {
  const comm::Communicator alone(MPI_COMM_SELF);
  for (const std::string& text : patterns()) {
    SCOPED_TRACE(text);
    Problem problem(shape_of(ElementType::float32, 4, 4), Documents::from_lengths({5000, 100, 20}), text);
    const Outcome one = attend_alone(alone, problem, {.reproducible = true, .threads = GetParam() == TestDevice::cpu ? 1 : 0});
    for (const Setting& setting :
         {Setting{.partition = plan::PartitionKind::contiguous, .reproducible = true},
          Setting{.partition = plan::PartitionKind::zigzag, .reproducible = true, .blocks_of_room = 6},
          Setting{.partition = plan::PartitionKind::balanced, .reproducible = true, .keys_read_again = true, .blocks_of_room = 6}}) {
      const Outcome many = attend(world_, problem, setting);
      for (const Interval& run : many.tokens) {
        EXPECT_EQ(many.output.rows(run), one.output.rows(run));
        EXPECT_EQ(many.output.lse_bits(run), one.output.lse_bits(run));
      }
    }
  }
}

TEST_P(EngineTest, SameJobSameBits) {
  Problem problem(shape_of(ElementType::float32), Documents::from_lengths({2500}), "longformer(129, 2) & !strided(5)");
  const Outcome first = attend(world_, problem, {.blocks_of_room = 5});
  const Outcome second = attend(world_, problem, {.blocks_of_room = 5, .threads = GetParam() == TestDevice::cpu ? 1 : 0});
  EXPECT_EQ(first.output.o, second.output.o);
}

TEST_P(EngineTest, UnreferencedKeysMayHoldAnything) {
  Problem problem(shape_of(ElementType::bfloat16, 4, 2, 32), Documents::from_lengths({700, 50, 61}), "causal & dilated_segment(64, 3, 1)");
  ASSERT_GT(problem.poison_unreferenced(), 0);
  const Outcome outcome = attend(world_, problem, {});
  expect_exact(problem, outcome, 5);
}

TEST_P(EngineTest, GoesOnFromFinishedStripesWithTheSameBits) {
  for (const std::string text : {"causal", "bigbird(32, 3, 2, 1, 7)", "longformer(129, 2)"}) {
    SCOPED_TRACE(text);
    Problem problem(shape_of(ElementType::float32), Documents::from_lengths({9000}), text);
    const Setting setting{.blocks_of_room = 9, .stripes = 16, .as_on_gpu = text[0] == 'b'};
    const Outcome whole = attend(world_, problem, setting);
    for (unsigned seed = 0; seed < 6; ++seed) {
      std::mt19937 random(seed * 100 + static_cast<unsigned>(world_.rank()));
      std::vector<bool> done(static_cast<size_t>(world_.max(static_cast<int64_t>(whole.plan.stripes.size()))));
      for (size_t s = 0; s < done.size(); ++s) done[s] = seed == 0 || random() % 2 == 0;
      const Outcome rest = attend(world_, problem, setting, done);
      const plan::Blocks blocks(problem.documents());
      for (int64_t stripe : rest.output.stripes) EXPECT_FALSE(done[static_cast<size_t>(stripe)]) << "a finished stripe is computed again";
      for (size_t s = 0; s < whole.plan.stripes.size(); ++s) {
        if (whole.plan.stripes[s].is_long()) continue;
        size_t number = s;
        for (size_t before = 0; before < s; ++before) number -= whole.plan.stripes[before].is_long() ? 1 : 0;
        if (number < done.size() && done[number]) continue;
        for (const Interval& run : whole.plan.stripes[s].query_blocks) {
          const Interval tokens{blocks.tokens(run.begin).begin, blocks.tokens(run.end - 1).end};
          EXPECT_EQ(rest.output.rows(tokens), whole.output.rows(tokens)) << "stripe " << s;
        }
      }
    }
  }
}

// Two levels: the same bits as flat, no more from other hosts than the plan says, and the least there can be where memory keeps the keys.
TEST_P(EngineTest, HostsFetchOnceAndPassOn) {
  if (world_.size() < 3) GTEST_SKIP() << "fewer than three ranks cannot be two hosts of which one has two";
  for (const std::string& text : patterns()) {
    for (int ranks_per_host : {2, 3}) {
      if (ranks_per_host >= world_.size()) continue;
      // Reproducible bits: keys of others come in the very first step then.
      for (const auto& [blocks_of_room, reproducible] : {std::pair<int64_t, bool>{0, false}, {6, false}, {0, true}}) {
        SCOPED_TRACE(text + ", " + std::to_string(ranks_per_host) + " ranks a host, room " + std::to_string(blocks_of_room));
        Problem problem(shape_of(ElementType::bfloat16, 4, 4), Documents::from_lengths({5000, 100, 20}), text);
        Setting setting{.reproducible = reproducible,
                        .blocks_of_room = blocks_of_room,
                        .stripes = 3,
                        .ranks_per_host = ranks_per_host,
                        .exchange = plan::ExchangeKind::flat};
        const Outcome flat = attend(world_, problem, setting);
        setting.exchange = plan::ExchangeKind::node;
        const Outcome node = attend(world_, problem, setting);
        expect_exact(problem, node, 97);
        for (const Interval& run : node.tokens) EXPECT_EQ(node.output.rows(run), flat.output.rows(run));

        EXPECT_EQ(flat.record.bytes_from_other_hosts, flat.schedule.bytes_from_other_hosts_if_flat);
        EXPECT_EQ(node.record.bytes_from_other_hosts, node.schedule.bytes_from_other_hosts);
        const int64_t if_flat = world_.sum(flat.schedule.bytes_from_other_hosts),
                      crossing = world_.sum(node.schedule.bytes_from_other_hosts);
        const int64_t least = world_.sum(node.schedule.least_bytes_to_host);
        EXPECT_LE(least, crossing);
        // A block that comes to a rank twice, for lack of room, has both times the halves that it passes on once.
        EXPECT_LE(crossing, (blocks_of_room == 0 || node.plan.halves.empty() ? 1 : 2) * if_flat);
        if (blocks_of_room == 0) {
          EXPECT_EQ(crossing, least);
        }
        if (text == "causal" && ranks_per_host == 2 && world_.size() >= 4) {
          EXPECT_TRUE(node.schedule.passes_on);
          EXPECT_LT(crossing, if_flat);
        }
      }
    }
  }
}

// Of blocks of 128 tokens those 64 travel that are looked at, also through a rank of the host that needs the other ones.
TEST_P(EngineTest, HalvesOfBlocksTravel) {
  if (world_.size() == 1) GTEST_SKIP() << "one rank holds all keys";
  for (const char* text : {"bigbird(64, 3, 1, 1, 5)", "block_random(64, 1, 3) | (causal & window(100))"}) {
    for (const int ranks_per_host : {0, 2}) {
      for (const int64_t blocks_of_room : {0, 6}) {
        SCOPED_TRACE(std::string(text) + ", " + std::to_string(ranks_per_host) + " ranks a host, room " + std::to_string(blocks_of_room));
        Problem problem(shape_of(ElementType::bfloat16), Documents::from_lengths({6000, 100, 20}), text);
        Setting setting{.blocks_of_room = blocks_of_room,
                        .stripes = 3,
                        .twice = ranks_per_host == 0,  // with what was kept for the second run
                        .ranks_per_host = ranks_per_host,
                        .exchange = plan::ExchangeKind::node,
                        .as_on_gpu = true};
        const Outcome outcome = attend(world_, problem, setting);
        expect_exact(problem, outcome, 211);
        ASSERT_FALSE(outcome.plan.halves.empty());
        int64_t blocks = 0;
        for (const plan::Stripe& stripe : outcome.plan.stripes)
          for (const auto& step : stripe.fetch)
            for (const Intervals& of_class : step) blocks += size_of(of_class);
        // Both KV heads are of one class or of one each.
        const auto heads = static_cast<int64_t>(outcome.plan.halves.size() == 1 ? 2 : 1);
        const int64_t whole = world_.sum(blocks * heads * outcome.plan.unit_bytes), moved = world_.sum(outcome.record.bytes_received);
        EXPECT_GT(moved, 0);
        EXPECT_LT(static_cast<double>(moved), 0.9 * static_cast<double>(whole));
        // A job that goes on fetches what its other stripes look at.
        std::vector<bool> done(static_cast<size_t>(world_.max(static_cast<int64_t>(outcome.plan.stripes.size()))));
        done[0] = true;
        const Outcome rest = attend(world_, problem, setting, done);
        EXPECT_LE(world_.sum(rest.record.bytes_received), moved);
        const plan::Blocks of(problem.documents());
        int64_t number = -1;
        for (const plan::Stripe& stripe : outcome.plan.stripes) {
          if (stripe.is_long() || ++number == 0) continue;
          for (const Interval& run : of.tokens(stripe.query_blocks)) EXPECT_EQ(rest.output.rows(run), outcome.output.rows(run));
        }
      }
    }
  }
}

TEST_P(EngineTest, LongRowsTravelRatherThanTheirKeys) {
  if (world_.size() == 1) GTEST_SKIP() << "one rank holds all keys";
  Problem problem(shape_of(ElementType::bfloat16, 4, 4, 16), Documents::from_lengths({8000}), "longformer(65, 1)");
  const Outcome outcome = attend(world_, problem, {});
  expect_exact(problem, outcome, 211);
  EXPECT_GT(world_.max(outcome.record.row_bytes_received), 0);
  // Nobody fetches more than its window's halo and the global block.
  EXPECT_LE(outcome.plan.bytes_moved, 4 * 3 * outcome.plan.unit_bytes);
}

// With the order of keys fixed, pieces of long rows are cut at fixed places, and their ranks fetch keys for them.
TEST_P(EngineTest, LongRowsWhosePiecesFetchKeys) {
  if (world_.size() == 1) GTEST_SKIP() << "one rank holds all keys";
  for (const int64_t blocks_of_room : {0, 6}) {
    for (const auto partition : {plan::PartitionKind::contiguous, plan::PartitionKind::zigzag}) {
      SCOPED_TRACE("room " + std::to_string(blocks_of_room));
      Problem problem(shape_of(ElementType::bfloat16, 8, 8, 64), Documents::from_lengths({8000}), "longformer(65, 300)");
      const Outcome outcome =
          attend(world_, problem, {.partition = partition, .reproducible = true, .blocks_of_room = blocks_of_room, .stripes = 4});
      expect_exact(problem, outcome, 97);
      EXPECT_GT(world_.max(outcome.record.row_bytes_received), 0);
      int64_t fetched = 0;
      for (const plan::Stripe& stripe : outcome.plan.stripes)
        for (const auto& step : stripe.fetch)
          for (const Intervals& blocks : step) fetched += stripe.is_long() ? size_of(blocks) : 0;
      EXPECT_GT(world_.max(fetched), 0);
    }
  }
}

// Two ranks, zigzag: rank 0 has tokens [0, 6500) and [19500, 26000), and rank 1 what is between. Each is home to the global rows of one
// long document and computes pieces of the other's. The job goes on, and the first stripe of both is done: where a rank waited there to be
// rid of its states before it takes the other's, both would wait for ever.
TEST_P(EngineTest, StatesAreTakenAlsoWhereAStripeIsDone) {
  if (world_.size() < 2) GTEST_SKIP() << "one rank holds all keys";
  Problem problem(shape_of(ElementType::bfloat16, 8, 8, 64), Documents::from_lengths({2000, 12000, 12000}), "longformer(65, 1)");
  const Setting setting{.partition = plan::PartitionKind::zigzag, .stripes = 16};
  const Outcome whole = attend(world_, problem, setting);
  const auto is_long = [](const plan::Stripe& stripe) { return stripe.is_long(); };
  ASSERT_EQ(std::count_if(whole.plan.stripes.begin(), whole.plan.stripes.end(), is_long), 1) << "pieces for both are in one";
  std::vector<bool> done(static_cast<size_t>(world_.max(static_cast<int64_t>(whole.plan.stripes.size()))));
  done[0] = true;
  const Outcome rest = attend(world_, problem, setting, done);
  EXPECT_GT(world_.max(rest.record.row_bytes_received), 0);
  int64_t number = -1;
  const plan::Blocks blocks(problem.documents());
  for (const plan::Stripe& stripe : whole.plan.stripes) {
    if (stripe.is_long() || ++number == 0) continue;
    for (const Interval& run : stripe.query_blocks) {
      const Interval tokens{blocks.tokens(run.begin).begin, blocks.tokens(run.end - 1).end};
      EXPECT_EQ(rest.output.rows(tokens), whole.output.rows(tokens)) << "stripe " << number;
    }
  }
}

}  // namespace
}  // namespace longspan::testing
