// Product of few rows with the codes of a side, as floats.
#pragma once

#include "cpu/kernels/codes.h"
#include "cpu/kernels/fold.h"

namespace gear::cpu::GEAR_ISA {

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

// out[r][l] += offset[g][r] + Σ_v folded[g][r][v] · code[v][l], for one page of a batch.
template <int kBits, int kRows>
static inline void multiply_page_as_floats(const Side& side, const CodePlanes& planes,
                                           const float* all_folded, const float* offsets,
                                           Matrix out) {
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
        Floats sum = load_floats(target) + offsets[group * kRows + row];
        for (const Floats chain : sums[row][i]) sum += chain;
        store(target, sum);
      }
    }
  }
}

template <int kBits, int kRows>
static inline void multiply_codes_as_floats(const Side& side, const PageBatch& batch,
                                            const BatchWeights& weights, const BatchOut& out,
                                            const ProductScratch& scratch) {
  Fold fold{};
  fold_metadata<kRows>(side, batch.count, weights, scratch, 0.0f, fold);
  for (int page = 0; page < batch.count; ++page) {
    const int first = page * side.at.groups * kRows;
    const CodePlanes planes = code_planes(side, batch.pages[page], batch.next[page]);
    multiply_page_as_floats<kBits, kRows>(side, planes, scratch.folded + first * side.vectors,
                                          fold.offset.at + first, out.of(page));
  }
}

}  // namespace gear::cpu::GEAR_ISA
