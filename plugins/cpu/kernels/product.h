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

// out [rows, L] += weights [rows, V] · x [V, L], for every page of a batch.
static inline void multiply_side(const Side& side, const PageBatch& batch,
                                 const BatchWeights& weights, const BatchOut& out, int rows,
                                 const ProductScratch& scratch) {
  decode_batch(side, batch, scratch);
  for_row_blocks<kProductRows>(rows, [&](int row, auto count) {
    constexpr int kRows = decltype(count)::value;
    const BatchWeights block{weights.rows_from(row)};
    const BatchOut target{out.rows_from(row)};
    with_bits(side.bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      if constexpr (kMultipliesBytes<kBits>) {
        multiply_codes_as_bytes<kBits, kRows>(side, batch, block, target, scratch);
      } else {
        multiply_codes_as_floats<kBits, kRows>(side, batch, block, target, scratch);
      }
    });
    for (int page = 0; page < batch.count; ++page) {
      const int32_t* at = batch.pages[page];
      if (side.config.rank > 0) {
        multiply_low_rank<kRows>(side, at, block.of(page), target.of(page));
      }
      if (side.config.outliers > 0) {
        multiply_outliers<kRows>(side, at, block.of(page), target.of(page));
      }
    }
  });
}

}  // namespace gear::cpu::GEAR_ISA
