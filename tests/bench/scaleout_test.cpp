#include "bench/scaleout.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bench/rows.hpp"
#include "comm/transport.hpp"
#include "kernels/cpu/device.hpp"
#include "kernels/gpus.hpp"

namespace longspan::bench {
namespace {

TEST(BenchScaleout, CountsOfRanks) {
  EXPECT_EQ(rank_counts(1), std::vector<int>{1});
  EXPECT_EQ(rank_counts(2), (std::vector<int>{1, 2}));
  EXPECT_EQ(rank_counts(7), (std::vector<int>{1, 2, 4, 7}));
  EXPECT_EQ(rank_counts(8), (std::vector<int>{1, 2, 4, 8}));
}

TEST(BenchScaleout, FirstDocuments) {
  const Documents documents({0, 100, 100, 250, 300});
  EXPECT_EQ(first_documents(documents, 300).offsets(), documents.offsets());
  EXPECT_EQ(first_documents(documents, 250).offsets(), (std::vector<int64_t>{0, 100, 100, 250}));
  EXPECT_EQ(first_documents(documents, 120).offsets(), (std::vector<int64_t>{0, 100, 100, 120}));
  EXPECT_EQ(first_documents(documents, 1).offsets(), (std::vector<int64_t>{0, 1}));
}

TEST(BenchScaleout, MemoryBesideRows) {
  const Job job{.pattern = pattern::Pattern::parse("causal"),
                .shape = {.tokens = 2 << 20, .heads = 16, .kv_heads = 4, .head_dim = 128, .type = ElementType::bfloat16},
                .documents = Documents({0, 2 << 20}),
                .output_type = ElementType::bfloat16};
  // Of a token 2·4·128·2 bytes of keys, 16·128·2 of queries, 16·(128·2 + 4) of results; and 10 GiB of small jobs.
  constexpr int64_t kKeys = 2048, kRows = kKeys + 4096 + 4160, kSmall = int64_t{10} << 30;
  constexpr int64_t kTokens = 1 << 20, kLeast = kTokens * (kRows + kKeys) + kSmall;
  EXPECT_EQ(memory_beside_rows(job, kTokens, kTokens, kLeast), kTokens * kKeys);
  EXPECT_EQ(memory_beside_rows(job, kTokens, kTokens, kLeast + 5), kTokens * kKeys + 5);
  EXPECT_EQ(memory_beside_rows(job, kTokens, kTokens + 3, kLeast + 3 * kRows), kTokens * kKeys);
  for (int64_t memory : {kLeast - 1, int64_t{0}}) {
    try {
      memory_beside_rows(job, kTokens, kTokens, memory);
      FAIL() << memory;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      EXPECT_THAT(error.what(), testing::HasSubstr("10.1 GiB of rows and results, 2.0 of keys, 10.0 for small jobs"));
      EXPECT_THAT(error.what(), testing::HasSubstr("1048576 tokens on one rank"));
      EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("--mode weak"))) << "of twice as many";
    }
  }
}

TEST(BenchScaleout, PointsAreWhole) {
  const comm::Communicator world(MPI_COMM_WORLD);
  kernels::cpu::CpuDevice device(1);
  ScaleoutOptions options{.times = 2, .probe_seconds = 0.002, .link_bytes = 1 << 16};
  // On the device they must not be written by anybody but its kernels.
  options.rows = [&](const PreparedJob& job) {
    return synthetic_rows(job.job().shape, job.job().output_type, size_of(job.tokens()), device, options.rows_in)->of(job.tokens());
  };
  options.transport = [](const comm::Communicator&) { return std::make_unique<comm::MpiTransport>(); };
  for (const char* text : {"causal & window(200)", "bigbird(64, 3, 3, 1, 0)"}) {
    options.rows_in = options.rows_in == RowsIn::host ? RowsIn::device : RowsIn::host;
    Job job{.pattern = pattern::Pattern::parse(text),
            .shape = {.tokens = 3'000, .heads = 4, .kv_heads = 2, .head_dim = 16, .type = ElementType::float32},
            .documents = Documents({0, 700, 3'000}),
            .output_type = ElementType::float32};
    for (int count : rank_counts(world.size())) {
      for (int64_t tokens : {job.shape.tokens, std::max<int64_t>(1, job.shape.tokens * count / world.size())}) {
        SCOPED_TRACE(std::string(text) + " on " + std::to_string(count) + " ranks, " + std::to_string(tokens) + " tokens");
        const auto point = measure_scaleout(world, count, job, tokens, device, 1, options);
        ASSERT_EQ(point.has_value(), world.rank() < count);
        if (!point) continue;
        EXPECT_EQ(point->ranks, count);
        EXPECT_EQ(point->tokens, tokens);
        EXPECT_EQ(point->whole, tokens == job.shape.tokens);
        EXPECT_EQ(point->seconds.size(), 2u);
        EXPECT_GT(point->typical, 0);
        EXPECT_GT(point->flop, 0);
        EXPECT_EQ(point->kv_bytes_moved, point->kv_bytes_planned);
        EXPECT_EQ(point->kv_bytes_moved, point->kv_bytes_lower_bound);
        EXPECT_EQ(point->kv_bytes_moved > 0, count > 1);
        EXPECT_GE(point->imbalance, 1 - 1e-9);
        EXPECT_GE(point->exposed, 0);
        EXPECT_LE(point->exposed, 1);
        EXPECT_GT(point->rates.full_quarter, 0);
        EXPECT_GT(point->rates.partial_quarter, 0);
        EXPECT_GT(point->rates.key_bytes_per_second, 0);
        EXPECT_TRUE(std::isfinite(point->rates.hidden_byte) && std::isfinite(point->rates.link_slowdown));
        EXPECT_TRUE(std::isfinite(point->rates.exposed_byte) && point->rates.exposed_byte >= 0);
        if (count == 1) {
          EXPECT_EQ(point->rates.hidden_byte, 0) << "nobody to move keys to";
          EXPECT_EQ(point->rates.link_slowdown, 1);
          EXPECT_EQ(point->rates.exposed_byte, 0);
        }
        if (world.rank() == 0) {
          EXPECT_TRUE(std::isfinite(point->predicted.seconds));
          EXPECT_GT(point->predicted.seconds, 0);
          EXPECT_TRUE(std::isfinite(point->prediction_error()));
          EXPECT_GT(point->predicted.memory, 0);
        }
      }
    }
  }
}

// By ranks that may share a GPU.
TEST(BenchScaleout, SharedKeysAreReadWhereTheyLie) {
  const comm::Communicator world(MPI_COMM_WORLD);
  if (world.size() == 1) GTEST_SKIP() << "one rank has nobody to share with";
  const kernels::Gpus gpus = kernels::find_gpus();
  std::string why_not = gpus.why_none;
  if (world.max(why_not.empty() ? 0 : 1) > 0) GTEST_SKIP() << why_not;
  const kernels::Gpu& gpu = gpus.usable[static_cast<size_t>(world.local_rank()) % gpus.usable.size()];
  const std::unique_ptr<kernels::Device> device = kernels::open_gpu(gpu);
  why_not = comm::why_no_peer_access(world, gpu.ordinal);
  if (why_not.empty() && !device->attends_rows(ElementType::bfloat16, 64, 1)) why_not = "no kernel here reads keys in rows";
  if (world.max(why_not.empty() ? 0 : 1) > 0) GTEST_SKIP() << why_not;
  ScaleoutOptions options{.times = 2, .probe_seconds = 0.002, .link_bytes = 1 << 16, .rows_in = RowsIn::device};
  options.rows = [&](const PreparedJob& job) {
    return synthetic_rows(job.job().shape, job.job().output_type, size_of(job.tokens()), *device, RowsIn::device)->of(job.tokens());
  };
  options.transport = [&](const comm::Communicator&) { return comm::peer_transport(gpu.ordinal); };
  for (const bool share : {false, true}) {
    const Job job{.pattern = pattern::Pattern::parse("bigbird(64, 3, 3, 1, 0)"),
                  .shape = {.tokens = 20'000, .heads = 4, .kv_heads = 2, .head_dim = 64, .type = ElementType::bfloat16},
                  .documents = Documents::single(20'000),
                  .on_gpu = true,
                  .share_keys = share};
    const auto point = measure_scaleout(world, world.size(), job, job.shape.tokens, *device, 1, options);
    ASSERT_TRUE(point);
    EXPECT_EQ(point->ranks_that_share_keys, share ? world.size() : 0);
    EXPECT_EQ(point->kv_bytes_moved, point->kv_bytes_planned);
    EXPECT_GT(point->kv_bytes_moved, 0);
  }
}

TEST(BenchScaleout, SetUpErrorsReachAllRanks) {
  const comm::Communicator world(MPI_COMM_WORLD);
  kernels::cpu::CpuDevice device(1);
  ScaleoutOptions options{.times = 1, .probe_seconds = 0.002, .link_bytes = 1 << 16};
  options.rows = [](const PreparedJob&) -> JobRows { throw Error({.code = ExitCode::io, .what = "no such rows"}); };
  options.transport = [](const comm::Communicator&) { return std::make_unique<comm::MpiTransport>(); };
  const Job job{.pattern = pattern::Pattern::parse("causal"),
                .shape = {.tokens = 1'000, .heads = 1, .kv_heads = 1, .head_dim = 16, .type = ElementType::float32},
                .documents = Documents::single(1'000)};
  try {
    measure_scaleout(world, (world.size() + 1) / 2, job, 1'000, device, 1, options);
    FAIL() << "nothing was thrown";
  } catch (const comm::AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::io);
  }
}

}  // namespace
}  // namespace longspan::bench
