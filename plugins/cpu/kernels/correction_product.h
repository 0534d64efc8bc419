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
  const int vectors = side.vectors;
  const int lanes = side.lanes;
  float vector_factor[kMaxVectorLength];
  float lane_factor[kMaxVectorLength];
  for (int j = 0; j < side.config.rank; ++j) {
    decode_factor(side, page, side.vector_factors, j, vectors, vector_factor);
    decode_factor(side, page, side.lane_factors, j, lanes, lane_factor);
    Floats sums[kRows] = {};
    for (int v = 0; v < vectors; v += kWidth) {
      const Floats factor = load_floats(vector_factor + v);
      for (int row = 0; row < kRows; ++row) {
        sums[row] += load_floats(weights.at + row * weights.stride + v) * factor;
      }
    }
    float along[padded_to_batch(kRows)];
    reduce_each(kRows, along, add, [&](int row) { return sums[row]; });
    const float scale = factor_scale(side, page, j);
    for (int row = 0; row < kRows; ++row) along[row] *= scale;
    for (int l = 0; l < lanes; l += kWidth) {
      const Floats factor = load_floats(lane_factor + l);
      for (int row = 0; row < kRows; ++row) {
        float* target = out.at + row * out.stride + l;
        store(target, load_floats(target) + along[row] * factor);
      }
    }
  }
}

// Rows side by side, so that one outlier is one addition for all of them.
template <int kRows>
struct RowVector {
  typedef float Lanes __attribute__((vector_size(kRows > 4 ? 32 : 16)));
};

// out[r][index] += w[r][v] · delta for every outlier (v, index).
template <int kRows>
static inline void multiply_outliers(const Side& side, const int32_t* page, ConstMatrix weights,
                                     Matrix out) {
  using Rows = typename RowVector<kRows>::Lanes;
  const auto* deltas = reinterpret_cast<const uint16_t*>(page + side.at.outlier_deltas);
  const auto* indices = reinterpret_cast<const uint8_t*>(page + side.at.outlier_indices);
  const int outliers = side.config.outliers;
  const int vectors = side.vectors;
  const int lanes = side.lanes;
  float values[kMaxVectorLength * kMaxOutliers];
  decode_halves(deltas, vectors * outliers, values);
  Rows sums[kMaxVectorLength];
  memset(sums, 0, sizeof(Rows) * lanes);
  for (int v = 0; v < vectors; ++v) {
    Rows weight = {};
    for (int row = 0; row < kRows; ++row) weight[row] = weights.at[row * weights.stride + v];
    for (int i = v * outliers; i < (v + 1) * outliers; ++i) sums[indices[i]] += weight * values[i];
  }
  for (int l = 0; l < lanes; ++l) {
    for (int row = 0; row < kRows; ++row) out.at[row * out.stride + l] += sums[l][row];
  }
}

}  // namespace gear::cpu::GEAR_ISA
