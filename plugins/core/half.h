// FP16 held as bits, and rounding of FP32 to it in a chosen direction, never to infinity.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/inline.h"

namespace gear {

inline constexpr float kHalfMax = 65504.0f;

GEAR_INLINE uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

GEAR_INLINE float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

GEAR_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  const uint32_t rebias = 112u << 23;
  if (magnitude >= 0x7c00u << 13) return bits_float(sign | (magnitude + 2 * rebias));
  if (magnitude >= 0x0400u << 13) return bits_float(sign | (magnitude + rebias));
  // Subnormal: the mantissa under an exponent of 2^-14, less that exponent's one.
  const float value = bits_float(magnitude + (113u << 23)) - 0x1p-14f;
  return bits_float(sign | float_bits(value));
}

// Nearest, ties to even; saturates at ±65504.
GEAR_INLINE uint16_t half_nearest(float x) {
  const float clipped = x > kHalfMax ? kHalfMax : x < -kHalfMax ? -kHalfMax : x;
  const uint32_t bits = float_bits(clipped);
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t sign = (bits >> 16) & 0x8000;
  // A subnormal's last place is 2^-24, which is that of FP32 numbers in [0.5, 1).
  const bool is_subnormal = magnitude < 113u << 23;
  const uint32_t rounded = is_subnormal
                               ? float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f)
                               : (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  return static_cast<uint16_t>(sign | rounded);
}

// Largest FP16 that is not above x; saturates at ±65504.
GEAR_INLINE uint16_t half_down(float x) {
  const uint16_t half = half_nearest(x);
  if (!(half_to_float(half) > x) || half == 0xfbff) return half;
  if (half == 0x0000) return 0x8001;
  return half & 0x8000 ? half + 1 : half - 1;
}

// Smallest FP16 that is not below x; saturates at ±65504.
GEAR_INLINE uint16_t half_up(float x) { return half_down(-x) ^ 0x8000; }

}  // namespace gear
