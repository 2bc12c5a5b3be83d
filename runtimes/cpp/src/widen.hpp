// Half-precision numbers as fp32; both ways are exact.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace skrr {

inline float float_of_bits(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen_bf16(std::uint16_t bits) { return float_of_bits(std::uint32_t{bits} << 16); }

inline float widen_fp16(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1F;
  const std::uint32_t fraction = bits & 0x3FF;
  if (exponent == 0x1F) return float_of_bits(sign | 0x7F800000 | fraction << 13);  // infinity and NaN
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) / 16777216.0f;  // zero and subnormals are multiples of 2^-24
  return sign != 0 ? -tiny : tiny;
}

inline void widen(const std::uint16_t* halves, std::size_t count, bool bf16, float* result) {
  for (std::size_t i = 0; i < count; ++i) result[i] = bf16 ? widen_bf16(halves[i]) : widen_fp16(halves[i]);
}

}  // namespace skrr
