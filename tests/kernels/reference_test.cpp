#include "kernels/reference/reference.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace longspan::kernels::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Reference, TwoKeysByHand) {
  // Scores 0 and ln 3 at scale 1: weights 1/4 and 3/4.
  const std::vector<float> q{1, 0}, keys{0, 5, std::log(3.0f), 7}, values{4, 8, 0, -8};
  std::array<double, 2> o;
  const double lse = attend_row<double>(q, keys, values, 1.0, o);
  EXPECT_NEAR(lse, std::log(4.0), 1e-7);
  EXPECT_NEAR(o[0], 1, 1e-6);
  EXPECT_NEAR(o[1], -4, 1e-6);
  std::array<float, 2> narrow;
  EXPECT_NEAR((attend_row<float>(q, keys, values, 1.0f, narrow)), std::log(4.0), 1e-6);
  EXPECT_NEAR(narrow[1], -4, 1e-5);
}

TEST(Reference, ScaleAndOneKey) {
  const std::vector<float> q{2, 3}, key{5, 7}, value{11, 13};
  std::array<double, 2> o;
  EXPECT_DOUBLE_EQ(attend_row<double>(q, key, value, 0.5, o), 15.5);
  EXPECT_EQ(o, (std::array<double, 2>{11, 13}));
}

TEST(Reference, NoKeysAndHugeScores) {
  const std::vector<float> q{1e4f}, keys{1, -1}, values{3, 5};
  std::array<double, 1> o{7};
  EXPECT_EQ(attend_row<double>(q, {}, {}, 1.0, o), -kInfinity);
  EXPECT_EQ(o[0], 0);
  EXPECT_EQ(attend_row<double>(q, keys, values, 1.0, o), 1e4);
  EXPECT_EQ(o[0], 3);
}

TEST(Reference, NotANumberSpreadsOverItsRow) {
  const std::vector<float> q{1}, keys{1, NAN}, values{3, 5};
  std::array<double, 1> o;
  EXPECT_TRUE(std::isnan(attend_row<double>(q, keys, values, 1.0, o)));
  EXPECT_TRUE(std::isnan(o[0]));
  const std::vector<float> lost{-INFINITY, -INFINITY};
  EXPECT_EQ(attend_row<double>(q, lost, values, 1.0, o), -kInfinity);
  EXPECT_EQ(o[0], 0);
}

}  // namespace
}  // namespace longspan::kernels::reference
