// Rows that lie in memory, as a GPU would take them: the device here is the CPU, and only says that it reaches them by itself.
#include "bench/rows.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "io/corpus.hpp"
#include "kernels/cpu/device.hpp"
#include "longspan/error.hpp"

namespace longspan::bench {
namespace {

class ReachesAll : public kernels::cpu::CpuDevice {
 public:
  using CpuDevice::CpuDevice;
  bool memory_is_host() const override { return false; }
  kernels::Reach reach(const void*) const override { return {.by_host = true, .straight = true}; }
  int spare_threads() const override { return 3; }
};

// Rows of Q and of KV head 1 of V, read and in place, are those that `q` and `v` give.
template <typename Read>
void expect_rows(engine::Input& rows, const Shape& shape, Interval tokens, bool together, Read read) {
  const auto count = tokens.length();
  const size_t head = static_cast<size_t>(shape.head_dim) * size_of(shape.type);
  std::vector<std::byte> q(static_cast<size_t>(count * shape.heads) * head), v(static_cast<size_t>(count) * head), expected_q(q),
      expected_v(v);
  read(tokens, expected_q.data(), expected_v.data());
  rows.read_q(tokens.begin, count, q.data());
  rows.read_v(tokens.begin, count, 1, 1, v.data());
  EXPECT_EQ(q, expected_q);
  EXPECT_EQ(v, expected_v);
  const std::byte *q_there = rows.q_in_place(tokens.begin, count), *v_there = rows.v_in_place(tokens.begin, count);
  ASSERT_EQ(q_there != nullptr, together);
  ASSERT_EQ(v_there != nullptr, together);
  if (!together) return;
  EXPECT_EQ(std::memcmp(q_there, expected_q.data(), expected_q.size()), 0);
  for (int64_t r = 0; r < count; ++r)
    EXPECT_EQ(std::memcmp(v_there + static_cast<size_t>(r * shape.kv_heads + 1) * head, &expected_v[static_cast<size_t>(r) * head], head),
              0);
}

TEST(Rows, SyntheticOnesRepeatWhereTheyTakeMemory) {
  const Shape shape{.tokens = 3000, .heads = 4, .kv_heads = 2, .head_dim = 24, .type = ElementType::float16};
  ReachesAll device(1);
  const auto rows = synthetic_rows(shape, shape.type, 1000, device, RowsIn::host)->of({{0, 3000}}).input;
  SyntheticRows table(shape);
  const auto read = [&](Interval tokens, std::byte* q, std::byte* v) {
    for (int64_t token = tokens.begin; token < tokens.end; ++token, q += 4 * 48, v += 48)
      table.read_q(token % 1000, 1, q), table.read_v(token % 1000, 1, 1, 1, v);
  };
  expect_rows(*rows, shape, {0, 1000}, true, read);
  expect_rows(*rows, shape, {2017, 2500}, true, read);
  expect_rows(*rows, shape, {990, 1010}, false, read);
  kernels::cpu::CpuDevice cpu(1);
  EXPECT_EQ(synthetic_rows(shape, shape.type, 1000, cpu, RowsIn::host)->of({{0, 3000}}).input->q_in_place(0, 1), nullptr);
}

TEST(Rows, HeldOnesAreTheFiles) {
  const io::CorpusReader reader(io::inspect_corpus({.file = std::string(LONGSPAN_TEST_DATA) + "/sample.h5"}));
  const Shape shape = reader.layout().shape;
  ASSERT_GT(shape.tokens, 200);
  ASSERT_GT(shape.kv_heads, 1);
  const auto read = [&](Interval tokens, std::byte* q, std::byte* v) {
    reader.read_q(tokens.begin, tokens.length(), q);
    reader.read_v(tokens.begin, tokens.length(), 1, 1, v);
  };
  ReachesAll device(1);
  HeldRows rows(reader, {{3, 50}, {90, 200}}, device);
  expect_rows(rows, shape, {3, 50}, true, read);
  expect_rows(rows, shape, {120, 200}, true, read);
  expect_rows(rows, shape, {7, 8}, true, read);
  kernels::cpu::CpuDevice cpu(1);
  HeldRows on_cpu(reader, {{3, 50}}, cpu);
  expect_rows(on_cpu, shape, {5, 40}, true, read);
}

// Of one job after another: the rows are the table's first ones, whatever tokens they stand for, and lie together.
TEST(Rows, ThoseOnTheDeviceGrowWithTheJobs) {
  const Shape shape{.tokens = 9000, .heads = 4, .kv_heads = 2, .head_dim = 24, .type = ElementType::float16};
  kernels::cpu::CpuDevice device(1);
  const auto source = synthetic_rows(shape, ElementType::float32, 10, device, RowsIn::device);
  SyntheticRows table(shape);
  for (const Intervals& tokens : {Intervals{{7, 9}}, Intervals{{100, 5000}, {6000, 6100}}, Intervals{{0, 3}}}) {
    const JobRows rows = source->of(tokens);
    int64_t local = 0;
    for (const Interval& run : tokens) {
      const auto read = [&](Interval asked, std::byte* q, std::byte* v) {
        table.read_q(local + asked.begin - run.begin, asked.length(), q);
        table.read_v(local + asked.begin - run.begin, asked.length(), 1, 1, v);
      };
      expect_rows(*rows.input, shape, run, true, read);
      expect_rows(*rows.input, shape, {run.end - 1, run.end}, true, read);
      const kernels::Device::ResultRows first = rows.output->in_place(tokens.front().begin, 1), here = rows.output->in_place(run.begin, 1);
      EXPECT_EQ(here.o - first.o, local * 4 * 24 * 4);
      EXPECT_EQ(here.lse - first.lse, local * 4);
      local += run.length();
    }
    EXPECT_THROW(rows.input->q_in_place(tokens.back().end, 1), Error);
    EXPECT_THROW(rows.output->write(0, 1, nullptr, nullptr), Error);
  }
}

}  // namespace
}  // namespace longspan::bench
