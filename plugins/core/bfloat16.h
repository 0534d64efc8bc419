// bfloat16 held as bits: the upper half of an FP32.
#pragma once

#include "core/half.h"

namespace gear {

GEAR_INLINE float bfloat16_to_float(uint16_t x) {
  return bits_float(static_cast<uint32_t>(x) << 16);
}

// Nearest, ties to even. A number too large becomes infinite; NaN stays NaN.
GEAR_INLINE uint16_t bfloat16_nearest(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Two in a word.
GEAR_INLINE float first_bfloat16(uint32_t word) { return bits_float(word << 16); }
GEAR_INLINE float second_bfloat16(uint32_t word) { return bits_float(word & 0xffff0000); }
GEAR_INLINE uint32_t pack_bfloat16(float first, float second) {
  return bfloat16_nearest(first) | static_cast<uint32_t>(bfloat16_nearest(second)) << 16;
}

}  // namespace gear
