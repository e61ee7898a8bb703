#include "doctor/check.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "doctor/compute_rate.hpp"
#include "doctor/memory_rate.hpp"

namespace longspan::doctor {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

TEST(Spread, NamesTheSlowestRank) {
  const Spread rates = spread_of({5, 4, 9}, Better::higher);
  EXPECT_EQ(rates.least, 4);
  EXPECT_EQ(rates.median, 5);
  EXPECT_EQ(rates.most, 9);
  EXPECT_EQ(rates.worst_rank, 1);
  EXPECT_EQ(spread_of({5, 4, 9}, Better::lower).worst_rank, 2);
  EXPECT_EQ(spread_of({4, 2}, Better::higher).median, 3);
  EXPECT_EQ(spread_of({7, 7}, Better::lower).worst_rank, 0) << "the first of equal ones";
}

TEST(Spread, LeavesOutRanksWithoutAFigure) {
  const Spread spread = spread_of({kNone, 3, kNone, 1}, Better::higher);
  EXPECT_EQ(spread.worst_rank, 3);
  EXPECT_EQ(spread.median, 2);
  EXPECT_EQ(spread_of({kNone}, Better::higher).worst_rank, -1);
  EXPECT_EQ(spread_of({}, Better::higher).worst_rank, -1);
}

TEST(Judge, SlowIsToldAndBeyondTheToleranceIsUnfit) {
  const auto verdict = [](std::vector<double> values, Better better, double tolerance = 2) {
    return judge(spread_of(values, better), better, tolerance);
  };
  EXPECT_EQ(verdict({10, 10, 9}, Better::higher), Verdict::ok);
  EXPECT_EQ(verdict({10, 10, 7}, Better::higher), Verdict::slow);
  EXPECT_EQ(verdict({10, 10, 5}, Better::higher), Verdict::unfit);
  EXPECT_EQ(verdict({10, 10, 50}, Better::higher), Verdict::ok) << "faster than the others is no fault";
  EXPECT_EQ(verdict({1, 1, 1.5}, Better::lower), Verdict::slow);
  EXPECT_EQ(verdict({1, 1, 2}, Better::lower), Verdict::unfit);
  EXPECT_EQ(verdict({1, 1, 2}, Better::lower, 10), Verdict::slow);
  EXPECT_EQ(verdict({1, 1, 1.2}, Better::lower, 1.1), Verdict::unfit);
  EXPECT_EQ(verdict({10, 10, 0}, Better::higher, 1e9), Verdict::unfit) << "nothing at all";
  EXPECT_EQ(verdict({0, 0}, Better::lower), Verdict::ok);
  EXPECT_EQ(verdict({kNone}, Better::lower), Verdict::ok);
}

TEST(Rates, ArePositive) {
  kernels::cpu::ThreadPool threads(2);
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16, ElementType::float32}) {
    const ComputeRate rate = compute_rate(type, 8, threads, 0);
    EXPECT_GT(rate.full, 0);
    EXPECT_GT(rate.partial, 0);
  }
  for (const int64_t bytes : {int64_t{0}, int64_t{1} << 20}) {
    const MemoryRate rate = memory_rate(bytes, threads);
    EXPECT_GT(rate.read, 0) << "memory that does not keep its contents";
    EXPECT_GT(rate.copy, 0);
  }
}

}  // namespace
}  // namespace longspan::doctor
