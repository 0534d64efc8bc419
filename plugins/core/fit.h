// The range of a group after one pass of the fit (gear_trt/reference/fit.py), from sums over its
// values u = c + r in steps of the range before. Every FP32 operation is the reference's; products
// that are added to something are never contracted.
#pragma once

#include "core/inline.h"

namespace gear {

inline constexpr int kFitPasses = 3;
// Parts of a step in which r is counted.
inline constexpr int kFitUnits = 256;

// Of a group: integers below 2^24, exact in FP32 and in any order.
struct FitSums {
  float n;
  float c;
  float r;
  float cc;
  float cr;
  float rr;
};

struct Range {
  float low;
  float high;
};

GEAR_INLINE float uncontracted_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// n · product − a · b, of values in parts of 1 / units.
GEAR_INLINE float scaled_covariance(float n, float product, float a, float b, float units) {
  const int32_t integer = static_cast<int32_t>(n) * static_cast<int32_t>(product) -
                          static_cast<int32_t>(a) * static_cast<int32_t>(b);
  return static_cast<float>(integer) / units;
}

GEAR_INLINE Range fitted_range(Range range, const FitSums& sums, float top_code, int pass) {
  const float units = kFitUnits;
  const float step = (range.high - range.low) / top_code;
  const float spread = scaled_covariance(sums.n, sums.cc, sums.c, sums.c, 1.0f);
  const float lift = scaled_covariance(sums.n, sums.cr, sums.c, sums.r, units);
  const float noise = scaled_covariance(sums.n, sums.rr, sums.r, sums.r, units * units);
  const bool is_last = pass == kFitPasses - 1;
  const float divisor = is_last ? spread + lift : spread;
  const float gain = divisor > 0.0f ? (is_last ? lift + noise : lift) / divisor : 0.0f;
  const float shift = (sums.r / units - uncontracted_product(gain, sums.c)) / sums.n;
  const float low = range.low + uncontracted_product(step, shift);
  const float width = uncontracted_product(uncontracted_product(step, 1.0f + gain), top_code);
  return {low, low + width};
}

}  // namespace gear
