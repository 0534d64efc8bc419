// bfloat16 held as bits: the upper half of an FP32.
#pragma once

#include "core/half.h"

namespace gear {

GEAR_INLINE float bfloat16_to_float(uint16_t x) {
  return bits_float(static_cast<uint32_t>(x) << 16);
}

// The two in a word, the first one in its low bits.
GEAR_INLINE float first_bfloat16(uint32_t word) { return bits_float(word << 16); }
GEAR_INLINE float second_bfloat16(uint32_t word) { return bits_float(word & 0xffff0000); }

}  // namespace gear
