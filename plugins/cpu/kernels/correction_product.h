// Product of few rows with the corrections of a side: low rank and outliers.
#pragma once

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/metadata.h"
#include "cpu/kernels/side.h"

namespace gear::cpu::GEAR_ISA {

// out[r][l] += Σ_j (Σ_v w[r][v] · vf[j][v]) · s[j] · lf[j][l].
template <int kRows>
static inline void multiply_low_rank(const Side& side, const int32_t* page, ConstMatrix weights,
                                     Matrix out) {
  const int rank = side.config.rank;
  Floats sums[kMaxRank * kRows];
  for (int j = 0; j < rank; ++j) {
    alignas(64) float factor[kMaxVectorLength];
    decode_factor(side, page, side.vector_factors, j, side.vectors, factor);
    Floats along[kRows] = {};
    for (int v = 0; v < side.vectors; v += kWidth) {
      const Floats x = load_floats(factor + v);
      for (int row = 0; row < kRows; ++row) {
        along[row] += load_floats(weights.at + row * weights.stride + v) * x;
      }
    }
    const float scale = factor_scale(side, page, j);
    for (int row = 0; row < kRows; ++row) sums[j * kRows + row] = along[row] * scale;
  }
  float products[padded_to_batch(kMaxRank * kRows)];
  reduce_each(rank * kRows, products, add, [&](int i) { return sums[i]; });
  for (int j = 0; j < rank; ++j) {
    alignas(64) float factor[kMaxVectorLength];
    decode_factor(side, page, side.lane_factors, j, side.lanes, factor);
    for (int l = 0; l < side.lanes; l += kWidth) {
      const Floats x = load_floats(factor + l);
      for (int row = 0; row < kRows; ++row) {
        float* target = out.at + row * out.stride + l;
        store(target, load_floats(target) + products[j * kRows + row] * x);
      }
    }
  }
}

// Rows of a matrix side by side, so that one outlier is one addition for all of them: column c of
// all rows lies at slot(c). Registers of columns become registers of rows in place, which puts
// columns in the order that `slot` tells.
template <int kRows>
struct Interleaved {
  static constexpr int kPadded = kRows > 4 ? 8 : 4;
  typedef float Column __attribute__((vector_size(4 * kPadded)));

  static constexpr int slot(int column) {
    const int in_register = column % kWidth;
    return (column / kWidth * kPadded + in_register % kPadded) * kWidth / kPadded +
           in_register / kPadded;
  }

  static void transpose_block(Floats* rows) {
    transpose_pass<1, kPadded>(rows);
    transpose_pass<2, kPadded>(rows);
    if constexpr (kPadded > 4 && kWidth > 4) transpose_pass<4 % kWidth, kPadded>(rows);
  }

  void load(ConstMatrix source, int columns) {
    for (int c = 0; c < columns; c += kWidth) {
      Floats rows[kPadded] = {};
      for (int row = 0; row < kRows; ++row) {
        rows[row] = load_floats(source.at + row * source.stride + c);
      }
      transpose_block(rows);
      memcpy(at + c, rows, sizeof(rows));
    }
  }

  void add_to(Matrix target, int columns) const {
    for (int c = 0; c < columns; c += kWidth) {
      Floats rows[kPadded];
      memcpy(rows, at + c, sizeof(rows));
      transpose_block(rows);
      for (int row = 0; row < kRows; ++row) {
        float* to = target.at + row * target.stride + c;
        store(to, load_floats(to) + rows[row]);
      }
    }
  }

  alignas(64) Column at[kMaxVectorLength];
};

// Where the columns of all positions of a vector lie.
template <int kRows>
struct Slots {
  constexpr Slots() : of{} {
    for (int i = 0; i < kMaxVectorLength; ++i) {
      of[i] = static_cast<uint8_t>(Interleaved<kRows>::slot(i));
    }
  }
  uint8_t of[kMaxVectorLength];
};

// sums[index] += column(v) · delta for every outlier (v, index).
template <int kRows, int kOutliers>
static inline void add_outliers_to(Interleaved<kRows>& sums, const Interleaved<kRows>& columns,
                                   const uint8_t* indices, const float* deltas, int vectors) {
  static constexpr Slots<kRows> kSlots;
  for (int v = 0; v < vectors; ++v, indices += kOutliers, deltas += kOutliers) {
    const auto column = columns.at[kSlots.of[v]];
    for (int i = 0; i < kOutliers; ++i) sums.at[kSlots.of[indices[i]]] += column * deltas[i];
  }
}

// out[r][index] += w[r][v] · delta for every outlier (v, index).
template <int kRows>
static inline void multiply_outliers(const Side& side, const int32_t* page, ConstMatrix weights,
                                     Matrix out) {
  const auto* indices = reinterpret_cast<const uint8_t*>(page + side.at.outlier_indices);
  alignas(64) float deltas[kMaxVectorLength * kMaxOutliers];
  decode_halves(page + side.at.outlier_deltas, side.vectors * side.config.outliers, deltas);
  Interleaved<kRows> columns;
  Interleaved<kRows> sums;
  columns.load(weights, side.vectors);
  memset(sums.at, 0, sizeof(sums.at[0]) * side.lanes);
  if (side.config.outliers == 2) {
    add_outliers_to<kRows, 2>(sums, columns, indices, deltas, side.vectors);
  } else {
    add_outliers_to<kRows, kMaxOutliers>(sums, columns, indices, deltas, side.vectors);
  }
  sums.add_to(out, side.lanes);
}

}  // namespace gear::cpu::GEAR_ISA
