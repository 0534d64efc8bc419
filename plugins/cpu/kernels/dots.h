// Sums of products of codes and weights, both bytes: each 32-bit lane adds up four at a time.
//
// With VNNI one instruction does it, and so with Arm's dot products, which without I8MM want both
// signed or both unsigned. Else two products are added up in 16 bits, where only kDotRun additions
// fit before a total has to be taken. The portable set has no dot products and multiplies codes as
// floats.
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

// A product has an unsigned and a signed side. Codes of up to 7 bits may be either; of 8 bits they
// are the unsigned one.
template <Weights kWeights>
static inline Words unsigned_side(Words codes, Words weights) {
  return kWeights == Weights::kSigned ? codes : weights;
}

template <Weights kWeights>
static inline Words signed_side(Words codes, Words weights) {
  return kWeights == Weights::kSigned ? weights : codes;
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

inline constexpr bool kHasDots = true;
using DotSums = Ints;

template <int kBits, Weights kWeights>
inline constexpr int kDotRun = INT32_MAX / (4 * kLargestProduct<kBits, kWeights>);

// sums + Σ over the bytes of each lane of code · weight.
template <Weights kWeights>
static inline DotSums add_dots(DotSums sums, Words codes, Words weights) {
  const Words first = unsigned_side<kWeights>(codes, weights);
  const Words second = signed_side<kWeights>(codes, weights);
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

template <Weights kWeights>
static inline DotSums add_dots(DotSums sums, Words codes, Words weights) {
  const Words first = unsigned_side<kWeights>(codes, weights);
  const Words second = signed_side<kWeights>(codes, weights);
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

#elif defined(__ARM_FEATURE_DOTPROD)

inline constexpr bool kHasDots = true;
using DotSums = Ints;

#ifdef __ARM_FEATURE_MATMUL_INT8
inline constexpr int kMostDotBits = 8;
#else
inline constexpr int kMostDotBits = 7;
#endif

template <int kBits, Weights kWeights>
inline constexpr int kDotRun =
    kBits > kMostDotBits ? 0 : INT32_MAX / (4 * kLargestProduct<kBits, kWeights>);

template <Weights kWeights>
static inline DotSums add_dots(DotSums sums, Words codes, Words weights) {
  if constexpr (kWeights == Weights::kUnsigned) {
    return reinterpret_cast<Ints>(vreinterpretq_s32_u32(
        vdotq_u32(reinterpret_cast<uint32x4_t>(sums), reinterpret_cast<uint8x16_t>(codes),
                  reinterpret_cast<uint8x16_t>(weights))));
  }
#ifdef __ARM_FEATURE_MATMUL_INT8
  return reinterpret_cast<Ints>(vusdotq_s32(reinterpret_cast<int32x4_t>(sums),
                                            reinterpret_cast<uint8x16_t>(codes),
                                            reinterpret_cast<int8x16_t>(weights)));
#else
  return reinterpret_cast<Ints>(vdotq_s32(reinterpret_cast<int32x4_t>(sums),
                                          reinterpret_cast<int8x16_t>(codes),
                                          reinterpret_cast<int8x16_t>(weights)));
#endif
}

static inline Ints dot_totals(DotSums sums) { return sums; }

#else

// Declared only: nothing calls them.
inline constexpr bool kHasDots = false;
using DotSums = Ints;

template <int kBits, Weights kWeights>
inline constexpr int kDotRun = 0;

template <Weights kWeights>
DotSums add_dots(DotSums sums, Words codes, Words weights);

Ints dot_totals(DotSums sums);

#endif

// Whether codes of kBits bits are multiplied as integers.
template <int kBits>
inline constexpr bool kMultipliesBytes = kHasDots && kDotRun<kBits, Weights::kSigned> > 0;

}  // namespace gear::cpu::GEAR_ISA
