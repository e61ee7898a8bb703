#include "longspan/element_type.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace longspan {
namespace {

// A half by its definition.
double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f, mantissa = bits & 0x3ff;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  return exponent ? sign * std::ldexp(1024 + mantissa, exponent - 25) : sign * std::ldexp(mantissa, -24);
}

double bfloat16_value(uint16_t bits) {
  const int exponent = bits >> 7 & 0xff, mantissa = bits & 0x7f;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 255) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  return exponent ? sign * std::ldexp(128 + mantissa, exponent - 134) : sign * std::ldexp(mantissa, -133);
}

struct Conversion {
  ElementType type;
  double (*value)(uint16_t);
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
  uint16_t infinity;
};
const Conversion kConversions[] = {{ElementType::float16, half_value, float_from_float16, float16_from_float, 0x7c00},
                                   {ElementType::bfloat16, bfloat16_value, float_from_bfloat16, bfloat16_from_float, 0x7f80}};

TEST(ElementType, EveryPatternWidensToItsValueAndComesBack) {
  for (const Conversion& conversion : kConversions) {
    for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
      const auto bits = static_cast<uint16_t>(pattern);
      const float wide = conversion.widen(bits);
      const double value = conversion.value(bits);
      if (std::isnan(value)) {
        ASSERT_TRUE(std::isnan(wide)) << name_of(conversion.type) << " " << pattern;
        ASSERT_TRUE(std::isnan(conversion.widen(conversion.narrow(wide)))) << name_of(conversion.type) << " " << pattern;
      } else {
        ASSERT_EQ(wide, value) << name_of(conversion.type) << " " << pattern;
        ASSERT_EQ(std::signbit(wide), (bits & 0x8000) != 0);
        ASSERT_EQ(conversion.narrow(wide), bits) << name_of(conversion.type) << " " << pattern;
      }
    }
  }
}

// Between any two neighbours: the middle goes to the even one, and what is nearer to one of them goes there.
TEST(ElementType, RoundsToNearestTiesToEven) {
  for (const Conversion& conversion : kConversions) {
    for (uint16_t sign : {uint16_t{0}, uint16_t{0x8000}}) {
      for (uint16_t magnitude = 0; magnitude < conversion.infinity; ++magnitude) {
        const auto low = static_cast<uint16_t>(magnitude | sign), high = static_cast<uint16_t>((magnitude + 1) | sign);
        // The upper neighbour of the largest finite number counts as if the exponents went on.
        const double a = conversion.value(low);
        const double b =
            magnitude + 1 == conversion.infinity ? 2 * a - conversion.value(static_cast<uint16_t>(low - 1)) : conversion.value(high);
        const auto middle = static_cast<float>((a + b) / 2);  // exact: one bit more than either
        ASSERT_EQ(middle, (a + b) / 2);
        const float inside = std::nextafter(middle, 0.0f);
        const float outside =
            std::nextafter(middle, sign ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity());
        ASSERT_EQ(conversion.narrow(middle), magnitude % 2 == 0 ? low : high) << name_of(conversion.type) << " " << low;
        ASSERT_EQ(conversion.narrow(inside), low) << name_of(conversion.type) << " " << low;
        ASSERT_EQ(conversion.narrow(outside), high) << name_of(conversion.type) << " " << low;
      }
    }
  }
}

TEST(ElementType, OverflowAndNotANumber) {
  EXPECT_EQ(float16_from_float(65519.996f), 0x7bff);
  EXPECT_EQ(float16_from_float(65520.0f), 0x7c00);
  EXPECT_EQ(float16_from_float(-1e30f), 0xfc00);
  EXPECT_EQ(float16_from_float(1e-30f), 0);
  EXPECT_EQ(bfloat16_from_float(std::numeric_limits<float>::max()), 0x7f80);
  for (uint32_t payload : {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0xff800001u, 0xffffffffu}) {
    const float nan = std::bit_cast<float>(payload);
    EXPECT_TRUE(std::isnan(float_from_bfloat16(bfloat16_from_float(nan)))) << payload;
    EXPECT_TRUE(std::isnan(float_from_float16(float16_from_float(nan)))) << payload;
  }
}

TEST(ElementType, NamesAndArrays) {
  for (ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    EXPECT_EQ(element_type_named(name_of(type)), type);
    unsigned char array[12];
    for (size_t i = 0; i < 3; ++i) store_element(array, type, i, 0.5f - static_cast<float>(i));
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(load_element(array, type, i), 0.5f - static_cast<float>(i));
  }
  EXPECT_FALSE(element_type_named("float64"));
  EXPECT_FALSE(element_type_named(""));
}

}  // namespace
}  // namespace longspan
