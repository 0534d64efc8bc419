// Product of few rows with one packed side of a page: out[r][l] += Σ_v w[r][v] · x[v][l], with x
// never written out.
//
//   x[v][l] = code[v][l] · scale[g][v] + min[g][v] + Σ_j vf[j][v] · s[j] · lf[j][l] + outliers,
//
// where g is the group of lane l. K: w = q, out = scores. V: w = weights, out = acc.
#pragma once

#include "cpu/kernels/byte_product.h"
#include "cpu/kernels/correction_product.h"
#include "cpu/kernels/float_product.h"

namespace gear::cpu::GEAR_ISA {

// out [rows, L] += weights [rows, V] · x [V, L]; `next` is the page that is needed after this one.
static inline void multiply_side(const Side& side, const int32_t* page, const int32_t* next,
                                 ConstMatrix weights, Matrix out, int rows,
                                 const ProductScratch& scratch) {
  const CodePlanes planes = code_planes(side, page, next);
  decode_metadata(side, page, scratch.scales, scratch.mins);
  for_row_blocks<kProductRows>(rows, [&](int row, auto count) {
    constexpr int kRows = decltype(count)::value;
    const ConstMatrix block{weights.at + row * weights.stride, weights.stride};
    const Matrix target{out.at + row * out.stride, out.stride};
    with_bits(side.bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      if constexpr (kMultipliesBytes<kBits>) {
        multiply_codes_as_bytes<kBits, kRows>(side, planes, block, target, scratch);
      } else {
        multiply_codes_as_floats<kBits, kRows>(side, planes, block, target, scratch);
      }
    });
    if (side.config.rank > 0) multiply_low_rank<kRows>(side, page, block, target);
    if (side.config.outliers > 0) multiply_outliers<kRows>(side, page, block, target);
  });
}

}  // namespace gear::cpu::GEAR_ISA
