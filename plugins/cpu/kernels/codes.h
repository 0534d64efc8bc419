// Codes in and out of their planes (CODE_UNIT, CODE_WORD, CODE_SHIFT in gear_trt/spec/layout.py).
//
// A unit is 16 lanes by four vectors, one code per byte of a 64-byte line; a line of a b-bit plane
// interleaves 8 / b units inside each byte.
#pragma once

#include <type_traits>

#include "cpu/kernels/side.h"
#include "cpu/kernels/simd.h"

namespace gear::cpu::GEAR_ISA {

inline constexpr int kLineWords = 16;

// Where the units of a plane lie: unit = quad · blocks + block, of 4 vectors and 16 lanes each.
struct CodePlanes {
  const uint32_t* low;   // all bits; of 3-bit codes the low two
  const uint32_t* high;  // bit 2 of 3-bit codes
  int64_t ahead;         // words to the page that is needed next
};

// `next` is the page that is needed after this one.
static inline CodePlanes code_planes(const Side& side, const int32_t* page, const int32_t* next) {
  const auto* words = reinterpret_cast<const uint32_t*>(page);
  return {words + side.at.codes, words + side.at.codes_high, next - page};
}

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

// Codes of kBlocks consecutive units of one plane, shifted to the lowest bits of their bytes;
// `first` is a multiple of kBlocks. Asks for the same lines of the page that is needed next:
// requests all at once would pile up, and without them a page that has left the second-level cache
// costs half the time again.
template <int kPlaneBits, int kBlocks>
static inline void load_plane(const uint32_t* plane, int64_t ahead, int first, int part,
                              Words* codes) {
  constexpr int kUnits = 8 / kPlaneBits;
  constexpr int kLines = kBlocks < kUnits ? 1 : kBlocks / kUnits;
  constexpr uint32_t kMask = ((1u << kPlaneBits) - 1) * 0x01010101u;
  const uint32_t* line = plane + first / kUnits * kLineWords + part;
  Words words[kLines];
  for (int i = 0; i < kLines; ++i) {
    words[i] = load<Words>(line + i * kLineWords);
    __builtin_prefetch(line + ahead + i * kLineWords, 0, 2);
  }
  if constexpr (kBlocks < kUnits) words[0] = shift_right(words[0], kPlaneBits * (first % kUnits));
  for (int b = 0; b < kBlocks; ++b) {
    codes[b] = words[b / kUnits] >> (kPlaneBits * (b % kUnits)) & kMask;
  }
}

// Codes of kBlocks consecutive units, one per byte; `first` is a multiple of kBlocks.
template <int kBits, int kBlocks>
static inline void load_units(const CodePlanes& planes, int first, int part, Words* codes) {
  load_plane<kBits == 3 ? 2 : kBits, kBlocks>(planes.low, planes.ahead, first, part, codes);
  if constexpr (kBits == 3) {
    Words high[kBlocks];
    load_plane<1, kBlocks>(planes.high, planes.ahead, first, part, high);
    for (int b = 0; b < kBlocks; ++b) codes[b] |= high[b] << 2;
  }
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
