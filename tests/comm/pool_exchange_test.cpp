// Blocks between pools on any number of ranks: in host memory, and on a GPU by MPI, by NCCL and by peer access. Every block's bytes say
// whose it is.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <random>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/transport.hpp"
#include "kernels/kernel.hpp"
#include "longspan/error.hpp"
#include "tests/support/test_devices.hpp"

namespace longspan::testing {
namespace {

constexpr int64_t kBlockBytes = 4096;
constexpr int kOwn = 24, kSlots = 400;

class PoolExchangeTest : public ::testing::TestWithParam<TestDevice> {
 protected:
  void SetUp() override {
    open_ = OpenDevice::of(GetParam(), world_);
    if (open_.device == nullptr) GTEST_SKIP() << open_.why_not;
  }
  static std::byte mark(int rank, int slot, int64_t at) { return static_cast<std::byte>(rank * 37 + slot * 11 + at % 13); }

  comm::Communicator world_{MPI_COMM_WORLD};
  OpenDevice open_;
};

INSTANTIATE_TEST_SUITE_P(Devices, PoolExchangeTest, ::testing::ValuesIn(kTestDevices),
                         [](const auto& info) { return name_of(info.param); });

// What rank `from` sends to rank `to` in `step`: scattered slots, a run of slots, one, or nothing. The same on all ranks.
std::vector<int32_t> sent(int from, int to, int step) {
  std::mt19937 random(static_cast<unsigned>(from * 1000 + to * 100 + step));
  std::vector<int32_t> slots(random() % 4 == 0 ? 0 : 1 + random() % 12);
  const bool run = random() % 2 == 0;
  const auto first = static_cast<int32_t>(random() % 12);
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = run ? first + static_cast<int32_t>(i) : static_cast<int32_t>(random() % kOwn);
  return slots;
}

TEST_P(PoolExchangeTest, BlocksArriveWhereTheyBelong) {
  const int rank = world_.rank(), ranks = world_.size();
  const kernels::Buffer memory = open_.device->allocate(kSlots * kBlockBytes);
  std::vector<std::byte> host(kSlots * kBlockBytes, std::byte{0xee});
  for (int slot = 0; slot < kOwn; ++slot)
    for (int64_t at = 0; at < kBlockBytes; ++at) host[static_cast<size_t>(slot * kBlockBytes + at)] = mark(rank, slot, at);
  open_.device->upload(host.data(), kSlots * kBlockBytes, memory.get());
  const auto exchange = open_.transport->between_pools(world_, memory.get(), kBlockBytes);
  exchange->set_timeout(60);

  constexpr int kSteps = 12;
  std::vector<std::vector<std::pair<int32_t, std::pair<int, int32_t>>>> expected(kSteps);  // slot here <- rank, slot there
  int64_t received = 0, given = 0;
  const auto start = [&](int step) {
    // Two steps are in flight: even and odd ones have slots of their own, from the far end where they shall not lie in one run.
    std::vector<comm::PoolExchange::Message> receives, sends;
    int32_t next = kOwn + (step % 2) * 180;
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer == rank) continue;
      comm::PoolExchange::Message in{peer, {}};
      for (int32_t slot : sent(peer, rank, step)) {
        in.slots.push_back(next);
        expected[static_cast<size_t>(step)].push_back({next, {peer, slot}});
        next += 1;
      }
      if (step % 3 == 1) {
        std::reverse(in.slots.begin(), in.slots.end());
        auto& all = expected[static_cast<size_t>(step)];
        for (size_t i = 0; i < in.slots.size(); ++i) all[all.size() - in.slots.size() + i].first = in.slots[i];
      }
      received += static_cast<int64_t>(in.slots.size()) * kBlockBytes;
      receives.push_back(in);
      sends.push_back({peer, sent(rank, peer, step)});
      given += static_cast<int64_t>(sends.back().slots.size()) * kBlockBytes;
    }
    exchange->start(step, receives, sends);
  };
  start(0);
  for (int step = 0; step < kSteps; ++step) {
    if (step + 1 < kSteps) start(step + 1);
    if (step % 2 == 0)
      while (!exchange->received(step)) exchange->progress();
    exchange->finish_receives(step);
    open_.device->download(memory.get(), kSlots * kBlockBytes, host.data());
    for (const auto& [slot, from] : expected[static_cast<size_t>(step)])
      for (int64_t at = 0; at < kBlockBytes; ++at)
        ASSERT_EQ(host[static_cast<size_t>(slot * kBlockBytes + at)], mark(from.first, from.second, at))
            << "step " << step << " slot " << slot;
  }
  for (int step = 0; step < kSteps; ++step) exchange->finish_sends(step);
  EXPECT_EQ(exchange->bytes_received(), received);
  EXPECT_EQ(exchange->bytes_sent(), given);
}

// Runs of 33 MiB, which NCCL sends and, between two ranks, a copy engine copies by themselves, and short ones between them, scattered or
// not on either side.
TEST_P(PoolExchangeTest, LongAndShortRuns) {
  if (GetParam() == TestDevice::cpu || GetParam() == TestDevice::cpu_late || GetParam() == TestDevice::gpu)
    GTEST_SKIP() << "this exchange sends messages whole";
  if (world_.size() < 2) GTEST_SKIP() << "nobody to send to";
  constexpr int64_t kMiB = int64_t{1} << 20;
  const std::vector<int64_t> runs = {2, 33, 33, 1, 3, 34, 1};
  constexpr int kBlocks = 107;
  const int ranks = world_.size(), rank = world_.rank();
  const kernels::Buffer memory = open_.device->allocate(2 * kBlocks * kMiB);
  std::vector<std::byte> host(static_cast<size_t>(2 * kBlocks * kMiB), std::byte{0xee});
  for (int slot = 0; slot < kBlocks; ++slot)
    for (int64_t at = 0; at < kMiB; ++at) host[static_cast<size_t>(slot * kMiB + at)] = mark(rank, slot, at);
  open_.device->upload(host.data(), 2 * kBlocks * kMiB, memory.get());
  const auto exchange = open_.transport->between_pools(world_, memory.get(), kMiB);
  exchange->set_timeout(60);
  for (int step = 0; step < 3; ++step) {
    const int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks;
    const auto there = [&](int i) { return step == 0 ? i : i * 50 % kBlocks; };            // scattered at the sender
    const auto here = [&](int i) { return kBlocks + (step < 2 ? i : i * 31 % kBlocks); };  // and at the receiver
    comm::PoolExchange::Message in{from, {}, runs}, out{to, {}, runs};
    for (int i = 0; i < kBlocks; ++i) in.slots.push_back(here(i)), out.slots.push_back(there(i));
    exchange->start(step, {in}, {out});
    exchange->finish_receives(step);
    exchange->finish_sends(step);
    open_.device->download(memory.get(), 2 * kBlocks * kMiB, host.data());
    for (int i = 0; i < kBlocks; ++i)
      for (int64_t at = 0; at < kMiB; at += 4099)
        ASSERT_EQ(host[static_cast<size_t>(here(i) * kMiB + at)], mark(from, there(i), at)) << "step " << step << " block " << i;
    world_.barrier();
  }
  EXPECT_EQ(exchange->bytes_received(), 3 * kBlocks * kMiB);
}

TEST_P(PoolExchangeTest, ARankThatDoesNotSendIsNamed) {
  if (world_.size() < 2) GTEST_SKIP() << "nobody to wait for";
  if (GetParam() == TestDevice::gpu_nccl) GTEST_SKIP() << "NCCL's communicator is of no use after that";
  const kernels::Buffer memory = open_.device->allocate(kSlots * kBlockBytes);
  {
    const auto exchange = open_.transport->between_pools(world_, memory.get(), kBlockBytes);
    exchange->set_timeout(0.3);
    if (world_.rank() == 0) {
      exchange->start(0, {{1, {30, 31}}}, {});
      try {
        exchange->finish_receives(0);
        ADD_FAILURE() << "nothing was sent";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::communication);
        EXPECT_NE(std::string(error.what()).find("rank 1"), std::string::npos) << error.what();
      }
      world_.barrier();
      exchange->finish_receives(0);
    } else {
      world_.barrier();
      if (world_.rank() == 1) exchange->start(0, {}, {{0, {1, 2}}});
      exchange->finish_sends(0);
    }
  }
  world_.barrier();
}

// Where ranks read from peers and know where blocks lie there: receives of several steps first, sends when this rank is so far; and again.
TEST_P(PoolExchangeTest, ReceivesMayBeStartedBeforeSends) {
  const kernels::Buffer memory = open_.device->allocate(kSlots * kBlockBytes);
  const auto exchange = open_.transport->between_pools(world_, memory.get(), kBlockBytes);
  if (!exchange->reads_from_peers()) GTEST_SKIP() << "this exchange does not read from peers";
  if (world_.size() < 2) GTEST_SKIP() << "nobody to send to";
  exchange->set_timeout(60);
  const int rank = world_.rank(), ranks = world_.size();
  const int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks;
  constexpr int kSteps = 3, kEach = 4;  // steps, blocks of a step
  static_assert(kOwn >= kSteps * kEach && kSlots >= kOwn + kSteps * kEach);
  for (int round = 0; round < 2; ++round) {
    std::vector<std::byte> host(kSlots * kBlockBytes, std::byte{0xee});
    open_.device->upload(host.data(), kSlots * kBlockBytes, memory.get());
    for (int step = 0; step < kSteps; ++step) {
      comm::PoolExchange::Message in{.peer = from};
      for (int i = 0; i < kEach; ++i) in.slots.push_back(kOwn + step * kEach + i), in.slots_there.push_back(step * kEach + kEach - 1 - i);
      exchange->start(step, {in}, {});
      EXPECT_FALSE(exchange->received(step)) << "nobody has sent";
    }
    world_.barrier();
    std::this_thread::sleep_for(std::chrono::milliseconds(20 * ((rank + round) % ranks)));  // some are late
    for (int slot = 0; slot < kOwn; ++slot)
      for (int64_t at = 0; at < kBlockBytes; ++at) host[static_cast<size_t>(slot * kBlockBytes + at)] = mark(rank + round, slot, at);
    open_.device->upload(host.data(), kOwn * kBlockBytes, memory.get());
    for (int step = 0; step < kSteps; ++step) exchange->start(step, {}, {{.peer = to, .blocks = kEach}});
    for (int step = 0; step < kSteps; ++step) exchange->finish_receives(step);
    open_.device->download(memory.get(), kSlots * kBlockBytes, host.data());
    for (int i = 0; i < kSteps * kEach; ++i)
      for (int64_t at = 0; at < kBlockBytes; ++at)
        ASSERT_EQ(host[static_cast<size_t>((kOwn + i) * kBlockBytes + at)],
                  mark(from + round, i / kEach * kEach + kEach - 1 - i % kEach, at))
            << "round " << round << " block " << i;
    for (int step = 0; step < kSteps; ++step) exchange->finish_sends(step);
  }
  EXPECT_EQ(exchange->bytes_received(), 2 * kSteps * kEach * kBlockBytes);
  EXPECT_EQ(exchange->bytes_sent(), 2 * kSteps * kEach * kBlockBytes);
}

// The same steps time after time, as they were announced: what is kept of one time must not show in the next, whose blocks have other
// bytes, nor in a time with other slots, or with some that are not known beforehand. Where they are the same, they need not be said.
TEST_P(PoolExchangeTest, StepsMayComeAgainAndMayChange) {
  if (world_.size() < 2) GTEST_SKIP() << "nobody to send to";
  const int rank = world_.rank(), ranks = world_.size();
  const int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks;
  const kernels::Buffer memory = open_.device->allocate(kSlots * kBlockBytes);
  const auto exchange = open_.transport->between_pools(world_, memory.get(), kBlockBytes);
  exchange->set_timeout(60);
  constexpr int kSteps = 3, kEach = 5, kTimes = 6;
  exchange->expect(std::vector<comm::PoolExchange::Step>(kSteps, {{{from, {}, {kEach}}}, {{to, {}, {kEach}}}}), 2, true);
  EXPECT_FALSE(exchange->receive_again(0)) << "nothing has come yet";
  for (int time = 0; time < kTimes; ++time) {
    const int change = time < 3 ? 0 : time - 2;  // the fourth time and on, each is another
    const bool named = exchange->reads_from_peers() && time != 4;
    const auto here = [&](int step, int i) { return kOwn + step * 20 + i * (1 + change % 2) + change; };
    const auto there = [&](int step, int i) { return (step * 7 + i * 3 + change) % kOwn; };
    std::vector<std::byte> host(kSlots * kBlockBytes, std::byte{0xee});
    for (int slot = 0; slot < kOwn; ++slot)
      for (int64_t at = 0; at < kBlockBytes; ++at) host[static_cast<size_t>(slot * kBlockBytes + at)] = mark(rank + 5 * time, slot, at);
    open_.device->upload(host.data(), kSlots * kBlockBytes, memory.get());
    for (int step = 0; step < kSteps; ++step) {
      comm::PoolExchange::Message in{.peer = from, .runs = {kEach}}, out{.peer = to, .runs = {kEach}};
      for (int i = 0; i < kEach; ++i) {
        in.slots.push_back(here(step, i));
        if (named)
          in.slots_there.push_back(there(step, i));
        else
          out.slots.push_back(there(step, i));
      }
      if (named) out.blocks = kEach;
      const bool as_before = exchange->reads_from_peers() && time == 2 && step != 1;
      if (as_before) {
        EXPECT_TRUE(exchange->receive_again(step));
      }
      exchange->start(step, as_before ? std::vector<comm::PoolExchange::Message>{} : std::vector{in}, {out});
    }
    for (int step = 0; step < kSteps; ++step) exchange->finish_receives(step);
    open_.device->download(memory.get(), kSlots * kBlockBytes, host.data());
    for (int step = 0; step < kSteps; ++step)
      for (int i = 0; i < kEach; ++i)
        for (int64_t at = 0; at < kBlockBytes; ++at)
          ASSERT_EQ(host[static_cast<size_t>(here(step, i) * kBlockBytes + at)], mark(from + 5 * time, there(step, i), at))
              << "time " << time << " step " << step << " block " << i;
    for (int step = 0; step < kSteps; ++step) exchange->finish_sends(step);
    world_.barrier();
  }
  EXPECT_EQ(exchange->bytes_received(), kTimes * kSteps * kEach * kBlockBytes);
}

// Units of three heads, some of few rows. From time to time homes have them in their pools or as rows, and not all of them alike; what
// comes is the same.
TEST_P(PoolExchangeTest, BlocksMayComeOutOfRows) {
  if (world_.size() < 2) GTEST_SKIP() << "nobody to send to";
  constexpr int kUnits = 6, kHeads = 3, kSteps = 2, kEach = 7, kTimes = 5;
  constexpr std::array<int, kUnits + 1> kFirst{0, 128, 172, 300, 301, 429, 506};  // rows of each: 128, 44, 128, 1, 128, 77
  constexpr int kRows = kFirst.back();
  const int rank = world_.rank(), ranks = world_.size();
  const auto element = [](int of_rank, int time, int tensor, int row, int head, int at) {
    return static_cast<std::byte>(of_rank * 37 + time * 101 + tensor * 59 + row * 7 + head * 13 + at % 11);
  };
  for (const auto& [head_bytes, quarters] : {std::pair(256, 1), std::pair(256, 4), std::pair(128, 1), std::pair(512, 4)}) {
    SCOPED_TRACE(std::to_string(head_bytes) + " bytes, blocks of quarters: " + std::to_string(quarters));
    const int quarter_bytes = kernels::kTile / 2 * head_bytes, block_bytes = quarters * quarter_bytes, of_unit = 4 / quarters;
    const int own = kUnits * kHeads * of_unit, slots = own + kSteps * (ranks - 1) * kEach;
    // The block in a slot of a rank, byte for byte.
    const auto block = [&, bytes = head_bytes, count = quarters](int of_rank, int time, int slot) {
      std::vector<std::byte> all;
      const int unit = slot / of_unit, head = unit / kUnits, first = slot % of_unit * count;
      const auto begin = static_cast<size_t>(unit % kUnits);
      for (int quarter = first; quarter < first + count; ++quarter)
        for (int r = 0; r < kernels::kTile / 2; ++r)
          for (int at = 0, row = kFirst[begin] + quarter % 2 * (kernels::kTile / 2) + r; at < bytes; ++at)
            all.push_back(row < kFirst[begin + 1] ? element(of_rank, time, quarter / 2, row, head, at) : std::byte{0});
      return all;
    };
    const int64_t rows_bytes = int64_t{kRows} * kHeads * head_bytes, pool_bytes = int64_t{slots} * block_bytes;
    const kernels::Buffer pool = open_.device->allocate(pool_bytes), k = open_.device->allocate(rows_bytes),
                          v = open_.device->allocate(rows_bytes);
    const auto exchange = open_.transport->between_pools(world_, pool.get(), block_bytes);
    exchange->set_timeout(60);
    const auto place = [&](int, int32_t slot) {
      const auto unit = static_cast<size_t>(slot / of_unit % kUnits);
      return comm::PoolExchange::RowPlace{
          .first_row = kFirst[unit], .rows = kFirst[unit + 1] - kFirst[unit], .column = slot / of_unit / kUnits, .quarter = slot % of_unit};
    };
    if (!exchange->reads_rows({.columns = kHeads, .column_bytes = head_bytes, .place = place})) {
      EXPECT_FALSE(exchange->reads_from_peers());
      EXPECT_FALSE(exchange->send_from_rows({k.get(), v.get(), kRows}));
      GTEST_SKIP() << "this exchange has blocks in pools";
    }
    std::vector<comm::PoolExchange::Step> expected(kSteps);
    for (auto& step : expected)
      for (int peer = 0; peer < ranks; ++peer)
        if (peer != rank) step.receives.push_back({peer, {}, {kEach}}), step.sends.push_back({peer, {}, {kEach}});
    exchange->expect(expected, kSteps, true);
    for (int time = 0; time < kTimes; ++time) {
      const bool in_rows = time < 2 || (time + rank) % 2 == 0;
      std::vector<std::byte> host(static_cast<size_t>(pool_bytes), std::byte{0xee}), rows(static_cast<size_t>(rows_bytes), std::byte{0xdd});
      for (int tensor = 0; tensor < 2; ++tensor) {
        if (in_rows)
          for (int at = 0; at < kRows * kHeads * head_bytes; ++at)
            rows[static_cast<size_t>(at)] =
                element(rank, time, tensor, at / head_bytes / kHeads, at / head_bytes % kHeads, at % head_bytes);
        open_.device->upload(rows.data(), rows_bytes, tensor == 0 ? k.get() : v.get());
      }
      for (int slot = 0; slot < own && !in_rows; ++slot) std::ranges::copy(block(rank, time, slot), host.begin() + slot * block_bytes);
      open_.device->upload(host.data(), pool_bytes, pool.get());
      EXPECT_EQ(
          exchange->send_from_rows(in_rows ? comm::PoolExchange::RowArrays{k.get(), v.get(), kRows} : comm::PoolExchange::RowArrays{}),
          in_rows);
      const auto there = [&](int peer, int step, int i) { return (peer * 3 + step * 7 + i * 5) % own; };
      const auto here = [&](int peer, int step, int i) { return own + (step * (ranks - 1) + peer - (peer > rank ? 1 : 0)) * kEach + i; };
      world_.barrier();
      for (int step = 0; step < kSteps; ++step) {
        std::vector<comm::PoolExchange::Message> in, out;
        for (int peer = 0; peer < ranks; ++peer) {
          if (peer == rank) continue;
          comm::PoolExchange::Message& message = in.emplace_back(comm::PoolExchange::Message{.peer = peer});
          for (int i = 0; i < kEach; ++i) message.slots.push_back(here(peer, step, i)), message.slots_there.push_back(there(peer, step, i));
          out.push_back({.peer = peer, .blocks = kEach});
        }
        if (time == 4 && exchange->receive_again(step)) in.clear();
        exchange->start(step, in, out);
      }
      for (int step = 0; step < kSteps; ++step) exchange->finish_receives(step);
      open_.device->download(pool.get(), pool_bytes, host.data());
      for (int step = 0; step < kSteps; ++step)
        for (int peer = 0; peer < ranks; ++peer)
          for (int i = 0; i < kEach && peer != rank; ++i) {
            const auto at = host.begin() + here(peer, step, i) * block_bytes;
            ASSERT_TRUE(std::ranges::equal(block(peer, time, there(peer, step, i)), std::span(at, at + block_bytes)))
                << "time " << time << " step " << step << " peer " << peer << " block " << i;
          }
      for (int step = 0; step < kSteps; ++step) exchange->finish_sends(step);
    }
    EXPECT_EQ(exchange->bytes_received(), int64_t{kTimes} * kSteps * (ranks - 1) * kEach * block_bytes);
  }
}

// What comes after a job was given up must find the memory it goes to, or none (AddressSanitizer would see it), and nothing of it gets into
// the next exchange between the same pools.
TEST_P(PoolExchangeTest, WhatIsOnItsWayMayBeAbandoned) {
  if (GetParam() == TestDevice::gpu_nccl) GTEST_SKIP() << "NCCL's communicator is of no use after that";
  if (world_.size() < 2) GTEST_SKIP() << "nobody to send to";
  const int rank = world_.rank(), ranks = world_.size();
  const int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks;
  const kernels::Buffer memory = open_.device->allocate(kSlots * kBlockBytes);
  std::vector<std::byte> host(kSlots * kBlockBytes, std::byte{0xee});
  for (int slot = 0; slot < kOwn; ++slot)
    for (int64_t at = 0; at < kBlockBytes; ++at) host[static_cast<size_t>(slot * kBlockBytes + at)] = mark(rank, slot, at);
  open_.device->upload(host.data(), kSlots * kBlockBytes, memory.get());
  for (int time = 0; time < 20; ++time) {
    EXPECT_THROW(
        {
          const auto exchange = open_.transport->between_pools(world_, memory.get(), kBlockBytes);
          world_.barrier();
          exchange->start(0, {{from, {30, 31, 40}}}, {});
          if (rank % 2 == 0) exchange->start(0, {}, {{to, {1, 2, 7}}});
          exchange->abandon();
          throw std::runtime_error("given up");
        },
        std::runtime_error);
    world_.barrier();
    const auto exchange = open_.transport->between_pools(world_, memory.get(), kBlockBytes);
    exchange->set_timeout(60);
    exchange->start(0, {{from, {50, 52}}}, {{to, {3, 9}}});
    exchange->finish_receives(0);
    exchange->finish_sends(0);
    EXPECT_EQ(exchange->bytes_received(), 2 * kBlockBytes);
    open_.device->download(memory.get(), kSlots * kBlockBytes, host.data());
    for (const auto& [here, there] : {std::pair(50, 3), std::pair(52, 9)})
      for (int64_t at = 0; at < kBlockBytes; ++at)
        ASSERT_EQ(host[static_cast<size_t>(here * kBlockBytes + at)], mark(from, there, at)) << "time " << time << " slot " << here;
  }
}

TEST(Nccl, ARankThatDoesNotComeIsNamed) {
  const comm::Communicator world(MPI_COMM_WORLD);
  const OpenDevice open = OpenDevice::of(TestDevice::gpu_nccl, world);
  if (open.device == nullptr) GTEST_SKIP() << open.why_not;
  const int absent = world.size() - 1;
  if (world.rank() == absent) {
    char id[128];
    world.broadcast(id, sizeof id);  // as if it came, and then it does not
  } else {
    try {
      comm::nccl_transport(world, kernels::find_gpus().usable.front().ordinal, world.rank() == 0 ? 3 : 0.1);
      ADD_FAILURE() << "NCCL came up without rank " << absent;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::communication);
      if (world.rank() == 0) {
        EXPECT_NE(std::string(error.what()).find(std::to_string(absent)), std::string::npos) << error.what();
      }
    }
  }
  world.barrier();
}

}  // namespace
}  // namespace longspan::testing
