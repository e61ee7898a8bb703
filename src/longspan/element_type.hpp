// Element types of Q, K, V and O, and their conversion to and from float32, bit by bit (no compiler extension needed).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace longspan {

enum class ElementType : uint8_t { float32, float16, bfloat16 };

constexpr size_t size_of(ElementType type) { return type == ElementType::float32 ? 4 : 2; }
constexpr std::string_view name_of(ElementType type) {
  return type == ElementType::float32 ? "float32" : type == ElementType::float16 ? "float16" : "bfloat16";
}
constexpr std::optional<ElementType> element_type_named(std::string_view name) {
  for (ElementType type : {ElementType::float32, ElementType::float16, ElementType::bfloat16})
    if (name_of(type) == name) return type;
  return std::nullopt;
}

inline float float_from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN (its quiet bit is set so that truncation cannot make it infinite).
inline uint16_t bfloat16_from_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float float_from_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal or zero: exact in float32
  return sign ? -magnitude : magnitude;
}

inline uint16_t float16_from_float(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more round to infinity
  if (magnitude >= 0x38800000) {                                             // normal in float16
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
  }
  // Subnormal: adding 0.5 puts float16's last place (2^-24) into float32's last place, so the addition itself rounds to even.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
}

// Element `index` of an array of `type` at `data`.
inline float load_element(const void* data, ElementType type, size_t index) {
  if (type == ElementType::float32) {
    float value;
    std::memcpy(&value, static_cast<const std::byte*>(data) + 4 * index, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, static_cast<const std::byte*>(data) + 2 * index, 2);
  return type == ElementType::float16 ? float_from_float16(bits) : float_from_bfloat16(bits);
}

inline void store_element(void* data, ElementType type, size_t index, float value) {
  if (type == ElementType::float32) {
    std::memcpy(static_cast<std::byte*>(data) + 4 * index, &value, 4);
    return;
  }
  const uint16_t bits = type == ElementType::float16 ? float16_from_float(value) : bfloat16_from_float(value);
  std::memcpy(static_cast<std::byte*>(data) + 2 * index, &bits, 2);
}

}  // namespace longspan
