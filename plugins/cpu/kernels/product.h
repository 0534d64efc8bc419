// Product of few rows with one packed side of a page: out[r][l] += Σ_v w[r][v] · x[v][l], with x
// never written out.
//
//   x[v][l] = code[v][l] · scale[g][v] + min[g][v] + Σ_j vf[j][v] · s[j] · lf[j][l] + outliers,
//
// where g is the group of lane l. Scales are folded into w, so that codes meet one multiplication;
// mins and low rank become sums over v alone. K: w = q, out = scores. V: w = weights, out = acc.
#pragma once

#include "cpu/kernels/codes.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/metadata.h"
#include "cpu/kernels/side.h"

namespace gear::cpu::GEAR_ISA {

// Rows that share each unpacked code.
inline constexpr int kProductRows = kWidth == 16 ? 8 : 4;

// Memory of a product.
struct ProductScratch {
  float* scales;  // [groups, V]
  float* mins;    // [groups, V]
  float* folded;  // [groups, kProductRows, V]
};

// folded[g][r][v] = w[r][v] · scale[g][v]; offsets[g][r] = Σ_v w[r][v] · min[g][v].
template <int kRows>
static inline void fold_metadata(const Side& side, ConstMatrix weights,
                                 const ProductScratch& scratch, float (*offsets)[kProductRows]) {
  const int vectors = side.vectors;
  const int groups = side.at.groups;
  for (int group = 0; group < groups; ++group) {
    const float* scales = scratch.scales + group * vectors;
    const float* mins = scratch.mins + group * vectors;
    float* folded = scratch.folded + group * kRows * vectors;
    Floats sums[kRows] = {};
    for (int v = 0; v < vectors; v += kWidth) {
      const Floats scale = load_floats(scales + v);
      const Floats min = load_floats(mins + v);
      for (int row = 0; row < kRows; ++row) {
        const Floats weight = load_floats(weights.at + row * weights.stride + v);
        store(folded + row * vectors + v, weight * scale);
        sums[row] += weight * min;
      }
    }
    for (int row = 0; row < kRows; ++row) offsets[group][row] = reduce_add(sums[row]);
  }
}

// Registers of lanes that share each load of a weight; they lie in one unit.
inline constexpr int kProductRegisters = kWidth == kLineWords ? 1 : 2;

// Independent sums per row and register, so that there are enough to hide an addition's latency.
template <int kRows>
inline constexpr int kProductChains = kRows * kProductRegisters > 3   ? 1
                                      : kRows * kProductRegisters > 2 ? 2
                                                                      : 4;

template <int kRows>
using ProductSums = Floats[kRows][kProductRegisters][kProductChains<kRows>];

// Sums of Σ_v folded[r][v] · code[v][l ..], over the 4 vectors of each unit in turn.
template <int kBits, int kRows>
static inline void multiply_units(const CodePlanes& planes, int first_unit, int unit_step, int part,
                                  const float* folded, int vectors, ProductSums<kRows>& sums) {
  for (int v = 0, unit = first_unit; v < vectors; v += 4, unit += unit_step) {
    Words codes[kProductRegisters];
    for (int i = 0; i < kProductRegisters; ++i) {
      codes[i] = load_unit<kBits>(planes, unit, part + i * kWidth);
    }
    for_each_vector([&](auto vector) {
      constexpr int kVector = decltype(vector)::value;
      constexpr int kChain = kVector % kProductChains<kRows>;
      Floats x[kProductRegisters];
      for (int i = 0; i < kProductRegisters; ++i) x[i] = unit_vector<kVector>(codes[i]);
      for (int row = 0; row < kRows; ++row) {
        const float weight = folded[row * vectors + v + kVector];
        for (int i = 0; i < kProductRegisters; ++i) sums[row][i][kChain] += weight * x[i];
      }
    });
  }
}

// out[r][l] += offsets[g][r] + Σ_v folded[g][r][v] · code[v][l].
template <int kBits, int kRows>
static inline void multiply_codes(const Side& side, const int32_t* page, const float* all_folded,
                                  const float (*offsets)[kProductRows], Matrix out) {
  const auto* words = reinterpret_cast<const uint32_t*>(page);
  const CodePlanes planes{words + side.at.codes, words + side.at.codes_high};
  const int lanes = side.lanes;
  const int vectors = side.vectors;
  for (int l = 0; l < lanes; l += kProductRegisters * kWidth) {
    const int group = l / side.config.group_size;
    ProductSums<kRows> sums = {};
    multiply_units<kBits, kRows>(planes, l / kLineWords, lanes / kLineWords, l % kLineWords,
                                 all_folded + group * kRows * vectors, vectors, sums);
    for (int row = 0; row < kRows; ++row) {
      float* target = out.at + row * out.stride + l;
      for (int i = 0; i < kProductRegisters; ++i, target += kWidth) {
        Floats sum = load_floats(target) + offsets[group][row];
        for (const Floats chain : sums[row][i]) sum += chain;
        store(target, sum);
      }
    }
  }
}

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
    const float scale = factor_scale(side, page, j);
    float along[kRows];
    for (int row = 0; row < kRows; ++row) along[row] = reduce_add(sums[row]) * scale;
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

// out [rows, L] += weights [rows, V] · x [V, L].
static inline void multiply_side(const Side& side, const int32_t* page, ConstMatrix weights,
                                 Matrix out, int rows, const ProductScratch& scratch) {
  decode_metadata(side, page, scratch.scales, scratch.mins);
  for_row_blocks<kProductRows>(rows, [&](int row, auto count) {
    constexpr int kRows = decltype(count)::value;
    const ConstMatrix block{weights.at + row * weights.stride, weights.stride};
    const Matrix target{out.at + row * out.stride, out.stride};
    float offsets[kMaxGroups][kProductRows];
    fold_metadata<kRows>(side, block, scratch, offsets);
    with_bits(side.bits, [&](auto bits) {
      multiply_codes<decltype(bits)::value, kRows>(side, page, scratch.folded, offsets, target);
    });
    if (side.config.rank > 0) multiply_low_rank<kRows>(side, page, block, target);
    if (side.config.outliers > 0) multiply_outliers<kRows>(side, page, block, target);
  });
}

}  // namespace gear::cpu::GEAR_ISA
