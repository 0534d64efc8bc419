// One register of the instruction set that this file is compiled for, as compiler vectors.
//
// Functions of kernels/*.h have internal linkage: each object holds code for one instruction set
// and one contraction mode, and the linker must not merge them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "core/half.h"

namespace gear::cpu::GEAR_ISA {

// FP32 lanes of a register, and how many registers there are.
#if defined(__AVX512F__)
inline constexpr int kWidth = 16;
inline constexpr int kRegisters = 32;
#elif defined(__AVX2__)
inline constexpr int kWidth = 8;
inline constexpr int kRegisters = 16;
#else
inline constexpr int kWidth = 4;
#ifdef __ARM_NEON
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

template <typename Vector>
static inline Vector load(const void* source) {
  Vector x;
  memcpy(&x, source, sizeof(x));
  return x;
}

template <typename Vector>
static inline void store(void* target, Vector x) {
  memcpy(target, &x, sizeof(x));
}

static inline Floats load_floats(const float* source) { return load<Floats>(source); }

// x − 0 is x for every x, −0 included, so that no instruction but the broadcast remains.
static inline Floats broadcast(float x) { return x - Floats{}; }

static inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// a < b ? a : b, which is what the instruction computes; GCC does not find it.
static inline Floats minimum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(
      _mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a < b ? a : b;
#endif
}

static inline Floats maximum(Floats a, Floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

static inline Floats absolute(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(x) & 0x7fffffffu);
}

static inline Floats clip(Floats x, float low, float high) {
  return minimum(maximum(x, broadcast(low)), broadcast(high));
}

// Lane numbers 0, 1, 2, ...
static inline Ints iota() {
  Ints lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  return lanes;
}

// Adding and taking away 1.5 · 2^23 rounds to an integer, ties to even, for |x| < 2^22. What is
// left in the low bits of the sum is that integer in two's complement.
inline constexpr float kRoundingBias = 12582912.0f;

static inline Floats round_even(Floats x) { return (x + kRoundingBias) - kRoundingBias; }

// Lane i of the result is lane index_of(i) of `low` and `high`, counted through both.
template <typename IndexOf>
static inline Floats shuffle(Floats low, Floats high, IndexOf index_of) {
#ifdef __clang__
  Floats result;
  for (int i = 0; i < kWidth; ++i) {
    const int index = index_of(i);
    result[i] = index < kWidth ? low[index] : high[index - kWidth];
  }
  return result;
#else
  Ints index;
  for (int i = 0; i < kWidth; ++i) index[i] = index_of(i);
  return __builtin_shuffle(low, high, index);
#endif
}

// Lane i of the result is lane i ^ kDistance.
template <int kDistance>
static inline Floats swap_lanes(Floats x) {
  return shuffle(x, x, [](int i) { return i ^ kDistance; });
}

template <typename Combine>
static inline float reduce(Floats x, Combine combine) {
  if constexpr (kWidth > 8) x = combine(x, swap_lanes<8 % kWidth>(x));
  if constexpr (kWidth > 4) x = combine(x, swap_lanes<4 % kWidth>(x));
  x = combine(x, swap_lanes<2>(x));
  x = combine(x, swap_lanes<1>(x));
  return x[0];
}

// Combines registers in pairs: lanes with the bit kDistance clear become the first one's, lanes
// with it set the second one's, each combined with its neighbour kDistance away.
template <int kDistance, int kCount, typename Combine>
static inline void halve(Floats* x, Combine combine) {
  for (int i = 0; i < kCount / 2; ++i) {
    const Floats low = x[2 * i];
    const Floats high = x[2 * i + 1];
    const Floats own =
        shuffle(low, high, [](int lane) { return lane & kDistance ? kWidth + lane : lane; });
    const Floats other = shuffle(
        low, high, [](int lane) { return (lane & kDistance ? kWidth : 0) + (lane ^ kDistance); });
    x[i] = combine(own, other);
  }
}

// Registers that `reduce_each` takes at a time.
inline constexpr int kReduceBatch = kWidth < 8 ? kWidth : 8;

static inline constexpr int padded_to_batch(int count) {
  return (count + kReduceBatch - 1) / kReduceBatch * kReduceBatch;
}

// target[i] = what `reduce` makes of register_of(i): cheaper for many registers than for one, for
// every pass halves their number. The target is padded to kReduceBatch.
template <typename Combine, typename RegisterOf>
static inline void reduce_each(int count, float* target, Combine combine, RegisterOf register_of) {
  for (int first = 0; first < count; first += kReduceBatch) {
    Floats batch[kReduceBatch];
    for (int i = 0; i < kReduceBatch; ++i) {
      batch[i] = first + i < count ? register_of(first + i) : Floats{};
    }
    halve<1, kReduceBatch>(batch, combine);
    halve<2, kReduceBatch / 2>(batch, combine);
    if constexpr (kReduceBatch > 4) halve<4 % kWidth, kReduceBatch / 4>(batch, combine);
    if constexpr (kWidth > 8) batch[0] = combine(batch[0], swap_lanes<8 % kWidth>(batch[0]));
    memcpy(target + first, batch, sizeof(float) * kReduceBatch);
  }
}

static inline Floats add(Floats a, Floats b) { return a + b; }

static inline float reduce_add(Floats x) { return reduce(x, add); }

static inline float reduce_max(Floats x) { return reduce(x, maximum); }

static inline float reduce_min(Floats x) { return reduce(x, minimum); }

static inline Floats load_halves(const void* source) {
#if defined(__AVX512F__)
  // Zero-masked forms: GCC 12 takes the plain ones for reads of uninitialized registers.
  return reinterpret_cast<Floats>(_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(source)));
#elif defined(__F16C__)
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(load<__m128i>(source)));
#elif defined(__ARM_NEON)
  return reinterpret_cast<Floats>(vcvt_f32_f16(load<float16x4_t>(source)));
#else
  const Words half = __builtin_convertvector(load<Halves>(source), Words);
  const Words magnitude = (half & 0x7fffu) << 13;
  const Words rebias = Words{} + (112u << 23);
  const Words subnormal = reinterpret_cast<Words>(
      reinterpret_cast<Floats>(magnitude + (113u << 23)) - broadcast(0x1p-14f));
  const Words normal = magnitude + (magnitude >= (0x7c00u << 13) ? 2 * rebias : rebias);
  const Words value = magnitude >= (0x0400u << 13) ? normal : subnormal;
  return reinterpret_cast<Floats>((half & 0x8000u) << 16 | value);
#endif
}

static inline Floats load_bfloat16(const void* source) {
  const Words words = __builtin_convertvector(load<Halves>(source), Words);
  return reinterpret_cast<Floats>(words << 16);
}

static inline float load_half(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#elif defined(__ARM_NEON)
  __fp16 x;
  memcpy(&x, &half, sizeof(x));
  return x;
#else
  return half_to_float(half);
#endif
}

static inline Floats load_unsigned_bytes(const uint8_t* source) {
#if defined(__AVX512F__)
  return to_floats(
      reinterpret_cast<Ints>(_mm512_maskz_cvtepu8_epi32(0xffff, load<__m128i>(source))));
#elif defined(__AVX2__)
  return to_floats(reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadu_si64(source))));
#elif defined(__ARM_NEON)
  const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(load<uint32_t>(source)));
  return reinterpret_cast<Floats>(vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes)))));
#else
  Floats x;
  for (int i = 0; i < kWidth; ++i) x[i] = source[i];
  return x;
#endif
}

static inline Floats load_signed_bytes(const int8_t* source) {
#if defined(__AVX512F__)
  return to_floats(
      reinterpret_cast<Ints>(_mm512_maskz_cvtepi8_epi32(0xffff, load<__m128i>(source))));
#elif defined(__AVX2__)
  return to_floats(reinterpret_cast<Ints>(_mm256_cvtepi8_epi32(_mm_loadu_si64(source))));
#elif defined(__ARM_NEON)
  const int8x8_t bytes = vreinterpret_s8_u32(vdup_n_u32(load<uint32_t>(source)));
  return reinterpret_cast<Floats>(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))));
#else
  Floats x;
  for (int i = 0; i < kWidth; ++i) x[i] = source[i];
  return x;
#endif
}

static inline Words load_and_repeat(const uint8_t* source, int bytes) {
  uint32_t word = 0;
  memcpy(&word, source, bytes);
  return Words{} + word;
}

// Two's-complement nibbles, first one in the lowest bits of the first byte.
static inline Floats load_nibbles(const uint8_t* source) {
  const Ints lanes = iota();
  Words words = load_and_repeat(source, kWidth < 8 ? 2 : 4);
  if constexpr (kWidth > 8) words = lanes < 8 ? words : load_and_repeat(source + 4, 4);
  const Ints on_top = reinterpret_cast<Ints>(words << reinterpret_cast<Words>(28 - lanes % 8 * 4));
  return to_floats(on_top >> 28);
}

// Nearest integers, ties to even, for |x| < 2^22.
static inline Ints to_nearest(Floats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_maskz_cvtps_epi32(0xffff, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x)));
#elif defined(__ARM_NEON)
  return reinterpret_cast<Ints>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(x)));
#else
  return __builtin_convertvector(round_even(x), Ints);
#endif
}

// Lanes of x[0], x[1], x[2], x[3] in order as bytes, signed or not, which they fit.
template <bool kSigned>
static inline Words pack_bytes(const Ints* x) {
#if defined(__AVX512F__)
  const auto pack = [](Ints low, Ints high) {
    return _mm512_packs_epi32(reinterpret_cast<__m512i>(low), reinterpret_cast<__m512i>(high));
  };
  // Packs work inside each quarter: word i of quarter j belongs into quarter i.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = pack(x[0], x[1]);
  const __m512i high = pack(x[2], x[3]);
  const __m512i bytes = kSigned ? _mm512_packs_epi16(low, high) : _mm512_packus_epi16(low, high);
  return reinterpret_cast<Words>(_mm512_maskz_permutexvar_epi32(0xffff, order, bytes));
#elif defined(__AVX2__)
  const auto pack = [](Ints low, Ints high) {
    return _mm256_packs_epi32(reinterpret_cast<__m256i>(low), reinterpret_cast<__m256i>(high));
  };
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i low = pack(x[0], x[1]);
  const __m256i high = pack(x[2], x[3]);
  const __m256i bytes = kSigned ? _mm256_packs_epi16(low, high) : _mm256_packus_epi16(low, high);
  return reinterpret_cast<Words>(_mm256_permutevar8x32_epi32(bytes, order));
#elif defined(__ARM_NEON)
  const auto pack = [](Ints low, Ints high) {
    return vcombine_s16(vqmovn_s32(reinterpret_cast<int32x4_t>(low)),
                        vqmovn_s32(reinterpret_cast<int32x4_t>(high)));
  };
  const int16x8_t low = pack(x[0], x[1]);
  const int16x8_t high = pack(x[2], x[3]);
  return kSigned ? reinterpret_cast<Words>(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)))
                 : reinterpret_cast<Words>(vcombine_u8(vqmovun_s16(low), vqmovun_s16(high)));
#else
  uint8_t bytes[4 * kWidth];
  for (int i = 0; i < 4 * kWidth; ++i) bytes[i] = static_cast<uint8_t>(x[i / kWidth][i % kWidth]);
  return load<Words>(bytes);
#endif
}

enum class Rounding { kNearest, kDown, kUp };

// FP16 bits of x, saturated at ±65504 (core/half.h).
template <Rounding kRounding = Rounding::kNearest>
static inline Halves to_halves(Floats x) {
#ifdef __F16C__
  constexpr int kMode = kRounding == Rounding::kNearest ? _MM_FROUND_TO_NEAREST_INT
                        : kRounding == Rounding::kDown  ? _MM_FROUND_TO_NEG_INF
                                                        : _MM_FROUND_TO_POS_INF;
  x = clip(x, -kHalfMax, kHalfMax);
#ifdef __AVX512F__
  return reinterpret_cast<Halves>(
      _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(x), kMode | _MM_FROUND_NO_EXC));
#else
  return reinterpret_cast<Halves>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(x), kMode | _MM_FROUND_NO_EXC));
#endif
#else
#ifdef __ARM_NEON
  if constexpr (kRounding == Rounding::kNearest) {
    const auto clipped = reinterpret_cast<float32x4_t>(clip(x, -kHalfMax, kHalfMax));
    return reinterpret_cast<Halves>(vcvt_f16_f32(clipped));
  }
#endif
  Halves halves;
  for (int i = 0; i < kWidth; ++i) {
    halves[i] = kRounding == Rounding::kNearest ? half_nearest(x[i])
                : kRounding == Rounding::kDown  ? half_down(x[i])
                                                : half_up(x[i]);
  }
  return halves;
#endif
}

// bfloat16 bits of x: nearest, ties to even. A number too large becomes infinite; NaN stays NaN.
static inline Halves to_bfloat16(Floats x) {
  const Words bits = reinterpret_cast<Words>(x);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words quiet = bits >> 16 | 0x40u;
  const Words is_number = reinterpret_cast<Words>(x == x);
  return __builtin_convertvector((rounded & is_number) | (quiet & ~is_number), Halves);
}

// e^x for x <= 0, 0 where it would be subnormal. Relative error below 2e-7.
static inline Floats exp_of_negative(Floats x) {
#ifdef __AVX512F__
  // 2^n · 2^rest with |rest| <= 1/2; `scalef` needs no bound of x.
  const Floats exponent = reinterpret_cast<Floats>(_mm512_maskz_roundscale_ps(
      0xffff, reinterpret_cast<__m512>(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT));
#else
  x = maximum(x, broadcast(-88.0f));
  const Floats exponent = round_even(x * 1.44269504f);
#endif
  const Floats rest = (x - exponent * 0.693145752f) - exponent * 1.42860677e-6f;
  Floats power = broadcast(1.0f / 720.0f);
  power = power * rest + 1.0f / 120.0f;
  power = power * rest + 1.0f / 24.0f;
  power = power * rest + 1.0f / 6.0f;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
#ifdef __AVX512F__
  const Floats result = reinterpret_cast<Floats>(_mm512_maskz_scalef_ps(
      0xffff, reinterpret_cast<__m512>(power), reinterpret_cast<__m512>(exponent)));
#else
  const Ints shifted = __builtin_convertvector(exponent, Ints) << 23;
  const Floats result = reinterpret_cast<Floats>(reinterpret_cast<Ints>(power) + shifted);
#endif
  return x < -87.0f ? Floats{} : result;
}

static inline Floats tanh(Floats x) {
  const Floats decay = exp_of_negative(-2.0f * absolute(x));
  const Floats magnitude = (1.0f - decay) / (1.0f + decay);
  return x < 0.0f ? -magnitude : magnitude;
}

// One pass of `transpose`: swaps the bit kDistance of the row number with that of the lane number.
template <int kDistance, int kCount = kWidth>
static inline void transpose_pass(Floats* rows) {
  for (int i = 0; i < kCount; ++i) {
    if (i & kDistance) continue;
    const Floats low = rows[i];
    const Floats high = rows[i | kDistance];
    rows[i] = shuffle(
        low, high, [](int lane) { return lane & kDistance ? kWidth + (lane ^ kDistance) : lane; });
    rows[i | kDistance] = shuffle(
        low, high, [](int lane) { return lane & kDistance ? kWidth + lane : lane ^ kDistance; });
  }
}

// Transposes a square of kWidth rows of kWidth lanes.
static inline void transpose(Floats* rows) {
  transpose_pass<1>(rows);
  transpose_pass<2>(rows);
  if constexpr (kWidth > 4) transpose_pass<4 % kWidth>(rows);
  if constexpr (kWidth > 8) transpose_pass<8 % kWidth>(rows);
}

}  // namespace gear::cpu::GEAR_ISA
