// What bench exchange counts: bytes moved are bytes planned, under every pattern, in one step and in several.
#include "bench/exchange.hpp"

#include <gtest/gtest.h>

#include "bench/rows.hpp"
#include "kernels/cpu/device.hpp"

namespace longspan::bench {
namespace {

Job job_of(const std::string& text, std::optional<int64_t> memory = std::nullopt) {
  Job job{.pattern = pattern::Pattern::parse(text),
          .shape = {.tokens = 5'000, .heads = 4, .kv_heads = 2, .head_dim = 16, .type = ElementType::bfloat16},
          .documents = Documents({0, 3'001, 3'001, 5'000}),
          .memory = memory};
  return job;
}

TEST(BenchExchange, MovesWhatIsPlanned) {
  const comm::Communicator ranks(MPI_COMM_WORLD);
  kernels::cpu::CpuDevice device(1);
  comm::MpiTransport transport;
  for (const char* text : {"causal", "causal & window(300)", "causal & (window(127) | fixed(512, 128))", "block_random(128, 2, 1)",
                           "bigbird(64, 3, 3, 1, 0)", "0: causal; *: causal & window(0)", "segment(128)"}) {
    SCOPED_TRACE(text);
    PreparedJob job(ranks, job_of(text));
    SyntheticRows rows(job.job().shape);
    const ExchangeMeasure measure = measure_exchange(ranks, job, rows, device, transport, 2);
    ASSERT_EQ(measure.ranks.size(), static_cast<size_t>(ranks.size()));
    EXPECT_EQ(measure.seconds.size(), 2u);
    EXPECT_EQ(measure.contiguous_seconds.size(), 2u);
    int64_t received = 0, sent = 0;
    for (const ExchangeOfRank& rank : measure.ranks) {
      EXPECT_EQ(rank.bytes_received, rank.planned_bytes_received);
      EXPECT_EQ(rank.bytes_received, rank.bytes_lower_bound);
      EXPECT_LE(rank.bytes_received, rank.bytes_ring);
      EXPECT_GE(rank.messages_received, rank.steps);
      EXPECT_EQ(rank.messages_received > 0, rank.bytes_received > 0);
      EXPECT_LE(rank.messages_received, rank.steps * (ranks.size() - 1));
      received += rank.bytes_received, sent += rank.bytes_sent;
    }
    EXPECT_EQ(received, sent);
    EXPECT_EQ(measure.message_bytes > 0, received > 0);
    EXPECT_EQ(measure.link_seconds > 0, received > 0);
    EXPECT_EQ(received > 0, ranks.size() > 1 && std::string(text) != "segment(128)");
    if (ranks.hosts() == 1) {
      EXPECT_EQ(measure.bytes_between_hosts(), 0);
      EXPECT_FALSE(measure.network_bytes);
    }
  }
}

TEST(BenchExchange, SeveralStripesAndSteps) {
  const comm::Communicator ranks(MPI_COMM_WORLD);
  kernels::cpu::CpuDevice device(1);
  comm::MpiTransport transport;
  PreparedJob job(ranks, job_of("causal", 3 << 20));
  SyntheticRows rows(job.job().shape);
  const ExchangeMeasure measure = measure_exchange(ranks, job, rows, device, transport, 3);
  for (const ExchangeOfRank& rank : measure.ranks) EXPECT_EQ(rank.bytes_received, rank.planned_bytes_received);
  // And the job itself, after and before its exchange was measured, moves the same.
  const engine::Record record = job.run({std::make_shared<SyntheticRows>(rows), std::make_shared<Discard>()}, device, transport);
  EXPECT_EQ(record.bytes_received, measure.ranks[static_cast<size_t>(ranks.rank())].bytes_received);
}

}  // namespace
}  // namespace longspan::bench
