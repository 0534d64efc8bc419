// CUDA's half types on the CPU: every operation rounds once, to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/half.h"
#include "cuda/emulator/vectors.h"

struct __half {
  uint16_t bits;
};

struct alignas(4) __half2 {
  __half x;
  __half y;
};

using half = __half;
using half2 = __half2;

namespace gear::emulator {

// IEEE: values from 65520 on become infinite (core/half.h saturates instead).
inline __half to_half(float x) {
  if (std::isnan(x)) return {0x7fff};
  if (std::fabs(x) >= 65520.0f) return {static_cast<uint16_t>(x < 0 ? 0xfc00 : 0x7c00)};
  return {half_nearest(x)};
}

// Rounds to odd on the way to FP32, so that the rounding to FP16 after it is the only one.
inline __half to_half(double x) {
  float nearest = static_cast<float>(x);
  if (std::isfinite(nearest) && static_cast<double>(nearest) != x && !(float_bits(nearest) & 1)) {
    nearest = std::nextafterf(nearest, static_cast<double>(nearest) < x ? INFINITY : -INFINITY);
  }
  return to_half(nearest);
}

inline float to_float(__half x) { return half_to_float(x.bits); }

// a · b + c: the product is exact, the sum is rounded to odd where it is not.
inline __half fused(__half a, __half b, __half c) {
  const double product = static_cast<double>(to_float(a)) * to_float(b);
  const double addend = to_float(c);
  double sum = product + addend;
  if (std::isfinite(sum)) {
    const double part = sum - product;
    const double rest = (product - (sum - part)) + (addend - part);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof(bits));
    if (rest != 0.0 && !(bits & 1)) sum = std::nextafter(sum, rest > 0 ? INFINITY : -INFINITY);
  }
  return to_half(sum);
}

}  // namespace gear::emulator

inline __half __float2half_rn(float x) { return gear::emulator::to_half(x); }
inline __half __float2half(float x) { return gear::emulator::to_half(x); }
inline float __half2float(__half x) { return gear::emulator::to_float(x); }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }

inline __half __hadd(__half a, __half b) {
  return gear::emulator::to_half(__half2float(a) + static_cast<double>(__half2float(b)));
}
inline __half __hsub(__half a, __half b) {
  return gear::emulator::to_half(__half2float(a) - static_cast<double>(__half2float(b)));
}
inline __half __hmul(__half a, __half b) {
  return gear::emulator::to_half(__half2float(a) * static_cast<double>(__half2float(b)));
}
inline __half __hfma(__half a, __half b, __half c) { return gear::emulator::fused(a, b, c); }

inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return __half2half2(__float2half_rn(x)); }
inline __half2 __floats2half2_rn(float low, float high) {
  return {__float2half_rn(low), __float2half_rn(high)};
}
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline float __low2float(__half2 x) { return __half2float(x.x); }
inline float __high2float(__half2 x) { return __half2float(x.y); }
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline float2 __half22float2(__half2 x) { return {__low2float(x), __high2float(x)}; }
inline __half2 __float22half2_rn(float2 x) { return __floats2half2_rn(x.x, x.y); }
