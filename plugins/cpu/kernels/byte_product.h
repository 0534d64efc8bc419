// Product of few rows with the codes of a side, as integers.
//
// The folded weights of a row become bytes times a step. Codes are small, but their mean is not,
// and a rounded weight times that mean would be the larger part of the error: so the mean is taken
// from the unrounded weights, and the bytes meet only what the codes differ from it,
//
//   Σ_v folded[v] · (code[v] − middle) ≈ step · Σ_v byte[v] · code[v] − middle · step · Σ_v
//   byte[v].
//
// What is left is the rounding of the weights times the codes' spread. Where that would come near
// the error of the codes themselves, a second term of bytes holds what the first one left over.
// Softmax weights are not negative, so V's bytes need no sign and have a bit more.
#pragma once

#include "cpu/kernels/codes.h"
#include "cpu/kernels/dots.h"
#include "cpu/kernels/fold.h"

namespace gear::cpu::GEAR_ISA {

inline constexpr int kByteStride = 4 * kWidth;

static inline int byte_stride(const Side& side) {
  return (side.vectors + kByteStride - 1) / kByteStride * kByteStride;
}

// Codes between whose ends the values of a group lie.
template <int kBits>
inline constexpr float kMiddleCode = ((1 << kBits) - 1) / 2.0f;

// Weights are rounded by step / √12, codes by 1 / √12; codes of b bits deviate from their middle by
// 0.23 · 2^b where the values of a group are bell-shaped. One term's error is then
//
//   peak / rms(weights) · 0.23 · 2^b / kLargestWeight
//
// of the codes' own. The ratio of peak to rms is at most the root of the number of vectors: for
// b <= 3 and for V no ratio, for K of 4 bits one up to kLargestPeak keeps that below a fifth. For
// 8 bits none does.
inline constexpr float kLargestPeak = 6.0f;

// One term of a batch's folded weights: bytes [pages, groups, kRows, stride] times steps.
struct ByteTerm {
  const uint8_t* bytes;
  PerRow step;
  PerRow offset;  // what every lane of the product gets once
};

// bytes[v] = the integer nearest to folded[v] · inverse.
template <Weights kWeights, bool kIsWhole>
static inline void round_row(const float* folded, int vectors, float inverse, uint8_t* bytes) {
  for (int first = 0; first < vectors; first += 4 * kWidth) {
    Ints rounded[4] = {};
    for (int i = 0; i < 4; ++i) {
      if (!kIsWhole && first + i * kWidth >= vectors) break;
      rounded[i] = to_nearest(load_floats(folded + first + i * kWidth) * inverse);
    }
    store(bytes + first, pack_bytes<kWeights == Weights::kSigned>(rounded));
  }
}

template <Weights kWeights>
static inline Floats sum_lanes(const uint8_t* bytes, int count) {
  const Words ones = Words{} + 0x01010101u;
  DotSums sums = {};
  for (int v = 0; v < count; v += 4 * kWidth) {
    sums = add_dots<kWeights>(sums, ones, load<Words>(bytes + v));
  }
  return to_floats(dot_totals(sums));
}

// Rounds `count` rows of folded weights, whose peaks are given, and takes the codes' middle from
// what the bytes will meet.
template <int kBits, Weights kWeights>
static inline void round_weights(const Side& side, int count, const ProductScratch& scratch,
                                 const Fold& fold, ByteTerm& term) {
  const int stride = byte_stride(side);
  PerRow inverse;
  for (int i = 0; i < count; i += kWidth) {
    const Floats step = load_floats(fold.peak.at + i) * (1.0f / kLargestWeight<kWeights>);
    store(term.step.at + i, step);
    store(inverse.at + i, step > 0.0f ? 1.0f / step : Floats{});
  }
  const bool is_whole = side.vectors % kByteStride == 0;
  for (int i = 0; i < count; ++i) {
    const float* folded = scratch.folded + i * side.vectors;
    uint8_t* bytes = scratch.bytes + i * stride;
    if (is_whole) {
      round_row<kWeights, true>(folded, side.vectors, inverse.at[i], bytes);
    } else {
      round_row<kWeights, false>(folded, side.vectors, inverse.at[i], bytes);
    }
  }
  PerRow sum;
  reduce_each(count, sum.at, add,
              [&](int i) { return sum_lanes<kWeights>(scratch.bytes + i * stride, stride); });
  for (int i = 0; i < count; i += kWidth) {
    const Floats middle = kMiddleCode<kBits> * load_floats(term.step.at + i);
    store(term.offset.at + i, load_floats(fold.offset.at + i) - middle * load_floats(sum.at + i));
  }
  term.bytes = scratch.bytes;
}

static inline Floats square_lanes(const uint8_t* bytes, int count) {
  Ints sums = {};
  for (int v = 0; v < count; v += 4 * kWidth) {
    const Words magnitudes = byte_magnitudes(load<Words>(bytes + v));
    sums += dot_totals(add_dots<Weights::kUnsigned>(DotSums{}, magnitudes, magnitudes));
  }
  return to_floats(sums);
}

// Whether a row of signed bytes is too coarse for one term.
static inline bool is_coarse(const uint8_t* bytes, int rows, int vectors, int stride) {
  PerRow square;
  reduce_each(rows, square.at, add,
              [&](int i) { return square_lanes(bytes + i * stride, stride); });
  constexpr float kLeastRms = kLargestWeight<Weights::kSigned> / kLargestPeak;
  const float least = kLeastRms * kLeastRms * vectors;
  for (int i = 0; i < rows; ++i) {
    if (square.at[i] < least && square.at[i] > 0.0f) return true;
  }
  return false;
}

// What a term left over becomes what the next one rounds.
template <Weights kWeights>
static inline void keep_rest(const Side& side, int count, const ProductScratch& scratch,
                             const ByteTerm& term, Fold& fold) {
  const int stride = byte_stride(side);
  for (int i = 0; i < count; ++i) {
    float* folded = scratch.folded + i * side.vectors;
    const uint8_t* bytes = scratch.bytes + i * stride;
    const float step = term.step.at[i];
    for (int v = 0; v < side.vectors; v += kWidth) {
      const Floats rounded = kWeights == Weights::kSigned
                                 ? load_signed_bytes(reinterpret_cast<const int8_t*>(bytes) + v)
                                 : load_unsigned_bytes(bytes + v);
      store(folded + v, load_floats(folded + v) - rounded * step);
    }
    fold.peak.at[i] = step / 2;
    fold.offset.at[i] = 0.0f;
  }
}

static inline Words broadcast_word(const uint8_t* bytes) {
  uint32_t word;
  memcpy(&word, bytes, sizeof(word));
  return Words{} + word;
}

// Blocks of 16 lanes that one pass covers: as many sums as there are registers for.
template <int kRows>
inline constexpr int kSpan = kRegisters == 32 && kRows <= 4 ? 4 : 2;

// Lanes block · 16 + part .. + kWidth − 1 of kBlocks blocks: out += offset + step · Σ byte · code.
template <int kBits, int kRows, Weights kWeights, int kBlocks>
static inline void multiply_span(const Side& side, const CodePlanes& planes, int block, int part,
                                 const ByteTerm& term, int page, Matrix out) {
  // A span of four blocks may have two groups, one of two blocks never has.
  constexpr int kGroups = kBlocks == 4 ? 2 : 1;
  const int blocks = side.lanes / kLineWords;
  const int group_blocks = side.config.group_size / kLineWords;
  const int stride = byte_stride(side);
  int first_row[kGroups];
  for (int i = 0; i < kGroups; ++i) {
    first_row[i] = (page * side.at.groups + (block + i * kBlocks / kGroups) / group_blocks) * kRows;
  }

  constexpr int kRun = kDotRun<kBits, kWeights>;
  const int quads = side.vectors / 4;
  for (int first = 0; first < quads; first += kRun) {
    const int end = quads - first < kRun ? quads : first + kRun;
    DotSums sums[kRows][kBlocks] = {};
    for (int quad = first; quad < end; ++quad) {
      Words codes[kBlocks];
      load_units<kBits, kBlocks>(planes, quad * blocks + block, part, codes);
      for (int row = 0; row < kRows; ++row) {
        for (int b = 0; b < kBlocks; ++b) {
          const int weights = (first_row[b * kGroups / kBlocks] + row) * stride + 4 * quad;
          sums[row][b] =
              add_dots<kWeights>(sums[row][b], codes[b], broadcast_word(term.bytes + weights));
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int b = 0; b < kBlocks; ++b) {
        const int i = first_row[b * kGroups / kBlocks] + row;
        float* target = out.at + row * out.stride + (block + b) * kLineWords + part;
        const float offset = first == 0 ? term.offset.at[i] : 0.0f;
        const Floats dots = to_floats(dot_totals(sums[row][b]));
        store(target, load_floats(target) + offset + term.step.at[i] * dots);
      }
    }
  }
}

template <int kBits, int kRows, Weights kWeights, int kBlocks>
static inline void multiply_spans(const Side& side, const CodePlanes& planes, const ByteTerm& term,
                                  int page, Matrix out) {
  for (int block = 0; block < side.lanes / kLineWords; block += kBlocks) {
    for (int part = 0; part < kLineWords; part += kWidth) {
      multiply_span<kBits, kRows, kWeights, kBlocks>(side, planes, block, part, term, page, out);
    }
  }
}

template <int kBits, int kRows, Weights kWeights>
static inline void multiply_term(const Side& side, const PageBatch& batch, const ByteTerm& term,
                                 const BatchOut& out) {
  const int blocks = side.lanes / kLineWords;
  for (int page = 0; page < batch.count; ++page) {
    const CodePlanes planes = code_planes(side, batch.pages[page], batch.next[page]);
    const Matrix target = out.of(page);
    if (kSpan<kRows> == 4 && blocks % 4 == 0) {
      multiply_spans<kBits, kRows, kWeights, kSpan<kRows>>(side, planes, term, page, target);
    } else if (blocks % 2 == 0) {
      multiply_spans<kBits, kRows, kWeights, 2>(side, planes, term, page, target);
    } else {
      multiply_spans<kBits, kRows, kWeights, 1>(side, planes, term, page, target);
    }
  }
}

template <int kBits>
static inline bool needs_two_terms(const Side& side, int count, const ByteTerm& term) {
  if (kBits != 4) return kBits > 4;
  return side.is_key && side.vectors > kLargestPeak * kLargestPeak &&
         is_coarse(term.bytes, count, side.vectors, byte_stride(side));
}

template <int kBits, int kRows, Weights kWeights>
static inline void multiply_folded(const Side& side, const PageBatch& batch, const BatchOut& out,
                                   const ProductScratch& scratch, Fold& fold) {
  const int count = batch.count * side.at.groups * kRows;
  ByteTerm term;
  round_weights<kBits, kWeights>(side, count, scratch, fold, term);
  multiply_term<kBits, kRows, kWeights>(side, batch, term, out);
  if (!needs_two_terms<kBits>(side, count, term)) return;
  keep_rest<kWeights>(side, count, scratch, term, fold);
  round_weights<kBits, Weights::kSigned>(side, count, scratch, fold, term);
  multiply_term<kBits, kRows, Weights::kSigned>(side, batch, term, out);
}

// out[r][l] += Σ_v w[r][v] · (code[v][l] · scale[g][v] + min[g][v]), for every page of a batch.
template <int kBits, int kRows>
static inline void multiply_codes_as_bytes(const Side& side, const PageBatch& batch,
                                           const BatchWeights& weights, const BatchOut& out,
                                           const ProductScratch& scratch) {
  Fold fold{};
  fold_metadata<kRows>(side, batch.count, weights, scratch, kMiddleCode<kBits>, fold);
  // Eight-bit codes are unsigned themselves, so their weights have to be signed.
  if (side.is_key || kBits == 8) {
    multiply_folded<kBits, kRows, Weights::kSigned>(side, batch, out, scratch, fold);
  } else {
    multiply_folded<kBits, kRows, Weights::kUnsigned>(side, batch, out, scratch, fold);
  }
}

}  // namespace gear::cpu::GEAR_ISA
