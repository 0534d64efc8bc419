// Sums of products of codes and weights, both bytes: each 32-bit lane adds up four at a time.
//
// With VNNI one instruction does it. Without, two products are added up in 16 bits, where only
// kDotRun additions fit before a total has to be taken. The portable set has no dot products and
// multiplies codes as floats.
#pragma once

#include "cpu/kernels/simd.h"

namespace gear::cpu::GEAR_ISA {

// |x| of every signed byte.
static inline Words byte_magnitudes(Words x) {
  typedef int8_t Bytes __attribute__((vector_size(4 * kWidth)));
  const Bytes bytes = reinterpret_cast<Bytes>(x);
  return reinterpret_cast<Words>(bytes < 0 ? -bytes : bytes);
}

enum class Weights { kSigned, kUnsigned };

// The largest weight, and with it what rounding may use.
template <Weights kWeights>
inline constexpr int kLargestWeight = kWeights == Weights::kSigned ? 127 : 255;

template <int kBits, Weights kWeights>
inline constexpr int kLargestProduct = ((1 << kBits) - 1) * kLargestWeight<kWeights>;

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

inline constexpr bool kHasDots = true;
using DotSums = Ints;

template <int kBits, Weights kWeights>
inline constexpr int kDotRun = INT32_MAX / (4 * kLargestProduct<kBits, kWeights>);

// sums + Σ over the bytes of each lane of first · second, first unsigned, second signed.
static inline DotSums add_products(DotSums sums, Words first, Words second) {
#ifdef __AVX512VNNI__
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums),
                                                    reinterpret_cast<__m512i>(first),
                                                    reinterpret_cast<__m512i>(second)));
#else
  return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums),
                                                        reinterpret_cast<__m256i>(first),
                                                        reinterpret_cast<__m256i>(second)));
#endif
}

static inline Ints dot_totals(DotSums sums) { return sums; }

#elif defined(__AVX2__)

inline constexpr bool kHasDots = true;
typedef int16_t DotSums __attribute__((vector_size(4 * kWidth)));

// 0 for 8-bit codes: not even two products fit.
template <int kBits, Weights kWeights>
inline constexpr int kDotRun = INT16_MAX / (2 * kLargestProduct<kBits, kWeights>);

static inline DotSums add_products(DotSums sums, Words first, Words second) {
#ifdef __AVX512BW__
  return sums + reinterpret_cast<DotSums>(_mm512_maddubs_epi16(reinterpret_cast<__m512i>(first),
                                                               reinterpret_cast<__m512i>(second)));
#else
  return sums + reinterpret_cast<DotSums>(_mm256_maddubs_epi16(reinterpret_cast<__m256i>(first),
                                                               reinterpret_cast<__m256i>(second)));
#endif
}

static inline Ints dot_totals(DotSums sums) {
  const DotSums ones = DotSums{} + 1;
#ifdef __AVX512BW__
  return reinterpret_cast<Ints>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(ones)));
#else
  return reinterpret_cast<Ints>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(sums), reinterpret_cast<__m256i>(ones)));
#endif
}

#else

// Declared only: nothing calls them.
inline constexpr bool kHasDots = false;
using DotSums = Ints;

template <int kBits, Weights kWeights>
inline constexpr int kDotRun = 0;

DotSums add_products(DotSums sums, Words first, Words second);

Ints dot_totals(DotSums sums);

#endif

// Codes of up to 7 bits may stand on either side; of 8 bits they are the unsigned ones.
template <Weights kWeights>
static inline DotSums add_dots(DotSums sums, Words codes, Words weights) {
  return kWeights == Weights::kSigned ? add_products(sums, codes, weights)
                                      : add_products(sums, weights, codes);
}

// Whether codes of kBits bits are multiplied as integers.
template <int kBits>
inline constexpr bool kMultipliesBytes = kHasDots && kDotRun<kBits, Weights::kSigned> > 0;

}  // namespace gear::cpu::GEAR_ISA
