// Scales, mins and factors of a page, decoded by a warp into its scratch, in the order of
// fragments.
//
//   x = scale · (code − centre) + mid,  mid = min + centre · scale
//
// so that the products with codes carry only what varies inside a group, and FP16 rounding of their
// operands meets nothing larger; Σ q · mid is summed apart and nearly exactly.
#pragma once

#include "cuda/attention/codes.h"

namespace gear::cuda {

// Four entries from `index` on, a multiple of four, of a field of `bits` 8 or 16.
template <bool kSigned>
GEAR_DEVICE float4 load_entries(const unsigned char* field, const unsigned char* supers, int bits,
                                int index) {
  if (bits == 16) {
    const uint2 words = *reinterpret_cast<const uint2*>(field + 2 * index);
    return make_float4(half_bits_to_float(words.x & 0xffff), half_bits_to_float(words.x >> 16),
                       half_bits_to_float(words.y & 0xffff), half_bits_to_float(words.y >> 16));
  }
  // A byte under the exponent of 2^23 is that number more than 2^23.
  constexpr uint32_t kFlip = kSigned ? 0x80808080u : 0;
  constexpr float kBase = 8388608.0f + (kSigned ? 128.0f : 0.0f);
  const uint32_t bytes = *reinterpret_cast<const uint32_t*>(field + index) ^ kFlip;
  const float super =
      half_bits_to_float(reinterpret_cast<const uint16_t*>(supers)[index / kSuperBlock]);
  const auto entry = [&](uint32_t selector) {
    return (__uint_as_float(__byte_perm(bytes, 0x4b000000u, selector)) - kBase) * super;
  };
  return make_float4(entry(0x7440), entry(0x7441), entry(0x7442), entry(0x7443));
}

struct Metadata {
  float4 scales;
  float4 mids;
};

GEAR_DEVICE Metadata load_metadata(const unsigned char* page, const SideLayout& at, int bits,
                                   float centre, int index) {
  Metadata x;
  x.scales = load_entries<false>(page + 4 * at.scales, page + 4 * at.super_scales, bits, index);
  const float4 mins = load_entries<true>(page + 4 * at.mins, page + 4 * at.super_mins, bits, index);
  x.mids = make_float4(fmaf(centre, x.scales.x, mins.x), fmaf(centre, x.scales.y, mins.y),
                       fmaf(centre, x.scales.z, mins.z), fmaf(centre, x.scales.w, mins.w));
  return x;
}

// Low-rank factors as halves, without their scale: elements index .. index + 3 in the order of
// fragments.
GEAR_DEVICE Quad load_factor_quad(const unsigned char* field, int bits, int index) {
  if (bits == 16) {
    const uint2 words = *reinterpret_cast<const uint2*>(field + 2 * index);
    return {first_halves(words.x, words.y), second_halves(words.x, words.y)};
  }
  // Offset binary under the exponent of 1024.
  Quad x;
  float base;
  if (bits == 8) {
    const uint32_t bytes = *reinterpret_cast<const uint32_t*>(field + index) ^ 0x80808080u;
    x = {bytes & 0x00ff00ff, bytes >> 8 & 0x00ff00ff};
    base = 1024.0f + 128.0f;
  } else {
    const uint32_t nibbles = *reinterpret_cast<const uint16_t*>(field + index / 2) ^ 0x8888u;
    x = {(nibbles & 0xf) | (nibbles & 0xf00) << 8, (nibbles >> 4 & 0xf) | (nibbles & 0xf000) << 4};
    base = 1024.0f + 8.0f;
  }
  const __half2 bases = __float2half2_rn(base);
  return {word_of(__hsub2(halves_of(x.even | 0x64006400), bases)),
          word_of(__hsub2(halves_of(x.odd | 0x64006400), bases))};
}

// Elements index and index + 1, index a multiple of two.
GEAR_DEVICE uint32_t load_factor_pair(const unsigned char* field, int bits, int index) {
  if (bits == 16) return *reinterpret_cast<const uint32_t*>(field + 2 * index);
  uint32_t x;
  float base;
  if (bits == 8) {
    const uint32_t bytes = *reinterpret_cast<const uint16_t*>(field + index) ^ 0x8080u;
    x = (bytes & 0xff) | (bytes & 0xff00) << 8;
    base = 1024.0f + 128.0f;
  } else {
    const uint32_t nibbles = field[index / 2] ^ 0x88u;
    x = (nibbles & 0xf) | (nibbles & 0xf0) << 12;
    base = 1024.0f + 8.0f;
  }
  return word_of(__hsub2(halves_of(x | 0x64006400), __float2half2_rn(base)));
}

// Scale of a pair of token and channel factors.
GEAR_DEVICE float factor_scale(const unsigned char* page, const SideLayout& at, int bits,
                               int index) {
  if (bits == 16) return 1.0f;
  return half_bits_to_float(reinterpret_cast<const uint16_t*>(page + 4 * at.factor_scales)[index]);
}

}  // namespace gear::cuda
