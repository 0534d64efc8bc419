// Codes in and out of their planes (CODE_UNIT, CODE_WORD, CODE_SHIFT in gear_trt/spec/layout.py).
//
// A unit is 16 lanes by four vectors, one code per byte of a 64-byte line; a line of a b-bit plane
// interleaves 8 / b units inside each byte.
#pragma once

#include <type_traits>

#include "cpu/kernels/simd.h"

namespace gear::cpu::GEAR_ISA {

inline constexpr int kLineWords = 16;

// Where the units of a plane lie: unit = quad · blocks + block, of 4 vectors and 16 lanes each.
struct CodePlanes {
  const uint32_t* low;   // all bits; of 3-bit codes the low two
  const uint32_t* high;  // bit 2 of 3-bit codes
};

static inline Words shift_right(Words x, int count) {
  return x >> (Words{} + static_cast<uint32_t>(count));
}

// The codes of one unit in lanes part .. part + kWidth − 1, one per byte.
template <int kBits>
static inline Words load_unit(const CodePlanes& planes, int unit, int part) {
  constexpr int kPlaneBits = kBits == 3 ? 2 : kBits;
  constexpr int kUnits = 8 / kPlaneBits;
  constexpr uint32_t kMask = ((1u << kPlaneBits) - 1) * 0x01010101u;
  const Words line = load<Words>(planes.low + unit / kUnits * kLineWords + part);
  if constexpr (kBits == 8) return line;
  const Words low = shift_right(line, kPlaneBits * (unit % kUnits)) & kMask;
  if constexpr (kBits != 3) return low;
  const Words high = load<Words>(planes.high + unit / 8 * kLineWords + part);
  return low | (shift_right(high, unit % 8) & 0x01010101u) << 2;
}

// The codes of vector kVector of a unit as floats.
template <int kVector>
static inline Floats unit_vector(Words codes) {
  return to_floats(reinterpret_cast<Ints>((codes >> (8 * kVector)) & 0xffu));
}

// Calls body with 0, 1, 2, 3 as compile-time constants.
template <typename Body>
static inline void for_each_vector(Body&& body) {
  body(std::integral_constant<int, 0>());
  body(std::integral_constant<int, 1>());
  body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 3>());
}

// Calls body with kBits as a compile-time constant.
template <typename Body>
static inline void with_bits(int bits, Body&& body) {
  switch (bits) {
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    default:
      return body(std::integral_constant<int, 8>());
  }
}

}  // namespace gear::cpu::GEAR_ISA
