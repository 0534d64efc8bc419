// Codes of a page as halves without arithmetic: 1024 + code · 2^shift, by one mask and one
// exponent.
//
// A line of 64 bytes holds 8 / bits units of 16 lanes × 4 quads (docs/layout.md). A lane of a warp
// reads words 2g and 2g + 1 of a line, of the quad group t of a step of 16 quads: a fragment of
// mma_m16n8k16 for each unit in them, in the order of fragments.h.
//
//   value of a code = factor · half − constant, centred: constant = 1024 · factor + centre.
//
// In shared memory bits 5 and 6 of a byte's offset are exchanged with the number of its quad group,
// so that the four quad groups of a load lie in different banks.
#pragma once

#include "cuda/attention/fragments.h"

namespace gear::cuda {

inline constexpr int kLineBytes = 64;

// The code that stands for nearly 0: the middle of the range is multiplied exactly, apart.
template <int kBits>
inline constexpr float kCentre = 1 << (kBits - 1);

GEAR_HOST_DEVICE constexpr int plane_bits(int bits) { return bits == 3 ? 2 : bits; }

// Lines of a quad group of a plane with `lanes` lanes; 0 where quad groups share lines.
GEAR_HOST_DEVICE constexpr int lines_of_quad_group(int lanes, int bits) {
  return lanes * bits % 128 == 0 ? lanes * bits / 128 : 0;
}

// Only planes whose quad groups have 1, 2, 4 or 8 lines are swizzled.
GEAR_HOST_DEVICE constexpr bool is_swizzled(int lines) {
  return lines > 0 && lines <= 8 && (lines & (lines - 1)) == 0;
}

// Shift from an offset in chunks of 16 bytes to the number of its quad group; 31 for planes that
// are not swizzled.
GEAR_HOST_DEVICE constexpr int swizzle_shift(int lines) {
  if (!is_swizzled(lines)) return 31;
  int shift = 2;
  while (1 << shift < 4 * lines) ++shift;
  return shift;
}

// One side's planes in a page, for one lane.
struct Codes {
  const unsigned char* low;   // all bits; of 3-bit codes the low two
  const unsigned char* high;  // bit 2 of 3-bit codes
  int blocks;                 // of 16 lanes
  int swizzle;                // of this lane's offsets
  // The fast path: where the lane finds lines 0 and 1 of its quad group, and the step to the next
  // 16 quads.
  const unsigned char* line[2];
  int step_bytes;
};

// `first_line` of every quad group is line 0; `is_staged` tells where the page lies.
GEAR_DEVICE Codes make_codes(const unsigned char* low, const unsigned char* high, int lanes,
                             int bits, int first_line, bool is_staged) {
  const int t = lane_quad();
  const int lines = lines_of_quad_group(lanes, bits);
  Codes codes;
  codes.low = low;
  codes.high = high;
  codes.blocks = lanes / 16;
  codes.swizzle = is_staged && is_swizzled(lines) ? t << 5 : 0;
  for (int i = 0; i < 2; ++i) {
    const int offset = (t * lines + first_line + i) * kLineBytes + 8 * lane_row();
    codes.line[i] = low + (offset ^ codes.swizzle);
  }
  codes.step_bytes = 4 * lines * kLineBytes;
  return codes;
}

// The even and the odd codes of two words as a fragment; kShift is where their bits lie in a byte.
template <int kBits, int kShift>
GEAR_DEVICE void code_fragment(uint2 words, uint32_t (&a)[4]) {
  constexpr uint32_t kMask = (((1u << kBits) - 1) << kShift) * 0x00010001u;
  constexpr uint32_t kExponent = 0x64006400;
  constexpr int kAndOr = (0xf0 & 0xcc) | 0xaa;
  a[0] = lop3<kAndOr>(words.x, kMask, kExponent);
  a[1] = lop3<kAndOr>(words.y, kMask, kExponent);
  a[2] = lop3<kAndOr>(words.x >> 8, kMask, kExponent);
  a[3] = lop3<kAndOr>(words.y >> 8, kMask, kExponent);
}

// Codes of one unit, one a byte: any bits, any number of blocks.
template <int kBits>
GEAR_DEVICE uint2 unit_codes(const Codes& codes, int unit) {
  constexpr int kPlane = plane_bits(kBits);
  constexpr int kUnits = 8 / kPlane;
  constexpr uint32_t kMask = ((1u << kPlane) - 1) * 0x01010101u;
  const int place = 8 * lane_row();
  uint2 words = *reinterpret_cast<const uint2*>(
      codes.low + ((unit / kUnits * kLineBytes + place) ^ codes.swizzle));
  const int shift = kPlane * (unit % kUnits);
  words.x = words.x >> shift & kMask;
  words.y = words.y >> shift & kMask;
  if constexpr (kBits == 3) {
    const uint2 high =
        *reinterpret_cast<const uint2*>(codes.high + (unit / 8 * kLineBytes + place));
    words.x |= (high.x >> unit % 8 & 0x01010101u) << 2;
    words.y |= (high.y >> unit % 8 & 0x01010101u) << 2;
  }
  return words;
}

// Whether quad groups of 4-bit and 2-bit planes have lines of their own.
template <int kBits, bool kAligned>
inline constexpr bool kByLines = kAligned && (kBits == 2 || kBits == 4);

// Fragments of blocks 2 · pair and 2 · pair + 1 in step `step` of 16 quads.
template <int kBits, bool kAligned>
GEAR_DEVICE void load_fragments(const Codes& codes, int step, int pair, uint32_t (&a)[2][4]) {
  if constexpr (kByLines<kBits, kAligned>) {
    const int line = pair * kBits / 4;
    const uint2 words = *reinterpret_cast<const uint2*>(codes.line[line % 2] +
                                                        step * codes.step_bytes + line / 2 * 128);
    if (kBits == 4 || pair % 2 == 0) {
      code_fragment<kBits, 0>(words, a[0]);
      code_fragment<kBits, kBits>(words, a[1]);
    } else {
      code_fragment<kBits, 4>(words, a[0]);
      code_fragment<kBits, 4 + kBits % 4>(words, a[1]);
    }
  } else {
    const int unit = (4 * step + lane_quad()) * codes.blocks + 2 * pair;
    code_fragment<8, 0>(unit_codes<kBits>(codes, unit), a[0]);
    if (2 * pair + 1 < codes.blocks) code_fragment<8, 0>(unit_codes<kBits>(codes, unit + 1), a[1]);
  }
}

// factor and constant of block `block` of what load_fragments gives.
template <int kBits, bool kAligned>
GEAR_DEVICE float code_factor(int block) {
  if constexpr (kByLines<kBits, kAligned>) {
    return 1.0f / static_cast<float>(1 << kBits * (block % (8 / kBits)));
  }
  return 1.0f;
}

template <int kBits, bool kAligned>
GEAR_DEVICE float code_constant(int block) {
  return 1024.0f * code_factor<kBits, kAligned>(block) + kCentre<kBits>;
}

}  // namespace gear::cuda
