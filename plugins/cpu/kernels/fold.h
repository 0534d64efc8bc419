// Scales and mins of a side, folded into the rows that multiply it, so that codes meet one
// multiplication and no addition:
//
//   folded[g][r][v] = w[r][v] · scale[g][v],   offset[g][r] = Σ_v w[r][v] · (min + middle · scale).
//
// What is left of the product is Σ_v folded[g][r][v] · (code[v][l] − middle).
#pragma once

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/metadata.h"
#include "cpu/kernels/side.h"

namespace gear::cpu::GEAR_ISA {

// Rows that share each unpacked code.
inline constexpr int kProductRows = kWidth == 16 ? 8 : 4;

// Memory of a product, of every page of a batch in turn.
struct ProductScratch {
  float* scales;   // [groups, V]
  float* mins;     // [groups, V]
  float* folded;   // [groups, kProductRows, V]
  uint8_t* bytes;  // [groups, kProductRows, V rounded up to kByteStride]
};

// A number for every page, group and row: [count, groups, rows of the block], in whole registers.
struct alignas(64) PerRow {
  float at[kPageBatch * kMaxGroups * kProductRows];
};

// What folding finds.
struct Fold {
  PerRow offset;
  PerRow peak;  // largest |folded|
};

// Rows of weights of every page of a batch: page p's are `step` elements after those of page p − 1.
struct BatchWeights {
  ConstMatrix first;
  int step;

  ConstMatrix of(int page) const { return {first.at + page * step, first.stride}; }
  BatchWeights rows_from(int row) const {
    return {{first.at + row * first.stride, first.stride}, step};
  }
};

// Likewise what the product of every page is added to.
struct BatchOut {
  Matrix first;
  int step;

  Matrix of(int page) const { return {first.at + page * step, first.stride}; }
  BatchOut rows_from(int row) const {
    return {{first.at + row * first.stride, first.stride}, step};
  }
};

template <int kRows>
static inline void fold_group(const Side& side, ConstMatrix weights, const ProductScratch& scratch,
                              int group, float middle, Floats* all_offsets, Floats* all_peaks) {
  const int vectors = side.vectors;
  const float* scales = scratch.scales + group * vectors;
  const float* mins = scratch.mins + group * vectors;
  float* folded = scratch.folded + group * kRows * vectors;
  Floats offsets[kRows] = {};
  Floats peaks[kRows] = {};
  for (int v = 0; v < vectors; v += kWidth) {
    const Floats scale = load_floats(scales + v);
    const Floats mean = load_floats(mins + v) + middle * scale;
    for (int row = 0; row < kRows; ++row) {
      const Floats weight = load_floats(weights.at + row * weights.stride + v);
      const Floats product = weight * scale;
      store(folded + row * vectors + v, product);
      offsets[row] += weight * mean;
      peaks[row] = maximum(peaks[row], absolute(product));
    }
  }
  for (int row = 0; row < kRows; ++row) {
    all_offsets[group * kRows + row] = offsets[row];
    all_peaks[group * kRows + row] = peaks[row];
  }
}

// Folds the metadata of a batch, which decode_batch left in the scratch memory. Groups of all its
// pages are numbered through.
template <int kRows>
static inline void fold_metadata(const Side& side, int pages, const BatchWeights& weights,
                                 const ProductScratch& scratch, float middle, Fold& fold) {
  Floats offsets[kPageBatch * kMaxGroups * kRows];
  Floats peaks[kPageBatch * kMaxGroups * kRows];
  const int groups = side.at.groups;
  for (int group = 0; group < pages * groups; ++group) {
    fold_group<kRows>(side, weights.of(group / groups), scratch, group, middle, offsets, peaks);
  }
  const int count = pages * groups * kRows;
  reduce_each(count, fold.offset.at, add, [&](int i) { return offsets[i]; });
  reduce_each(count, fold.peak.at, maximum, [&](int i) { return peaks[i]; });
}

static inline void decode_batch(const Side& side, const PageBatch& batch,
                                const ProductScratch& scratch) {
  for (int page = 0; page < batch.count; ++page) {
    const int first = page * side.at.groups * side.vectors;
    decode_metadata(side, batch.pages[page], scratch.scales + first, scratch.mins + first);
  }
}

}  // namespace gear::cpu::GEAR_ISA
