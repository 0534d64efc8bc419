// Operands of mma_m16n8k16, and the order in which the attention kernels number their elements.
//
// Every product has tokens (K) or channels (V) on M, query rows on N. The order of M and of k
// inside a tile is free as long as all operands keep to it, so it is the one in which codes lie in
// a page:
//
//   lane of a warp (g, t), g = lane / 4, t = lane % 4
//   M  g, g + 8           lanes 2g, 2g + 1 of a block of 16 (words 2g, 2g + 1 of a line of codes)
//   k  2t, 2t + 1         elements 4t, 4t + 2 of a step of 16 (bytes 0 and 2 of a word): "even"
//   k  2t + 8, 2t + 9     elements 4t + 1, 4t + 3 (bytes 1 and 3): "odd"
//
// A pair of halves is a word, the first one in its low bits.
#pragma once

#include "core/bfloat16.h"
#include "cuda/device.h"

namespace gear::cuda {

// Query rows of one tile: N of the product.
inline constexpr int kTileRows = 8;
// Tokens of one tile of scores, and channels of one tile of the output: M of the product.
inline constexpr int kBlock = 16;
// Blocks of tokens that a warp attends to at once.
inline constexpr int kScoreBlocks = 4;
inline constexpr int kSpan = kScoreBlocks * kBlock;
inline constexpr int kWarpLanes = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

GEAR_DEVICE int lane_id() { return static_cast<int>(threadIdx.x) % kWarpLanes; }
GEAR_DEVICE int lane_row() { return lane_id() / 4; }   // g
GEAR_DEVICE int lane_quad() { return lane_id() % 4; }  // t

GEAR_DEVICE uint32_t word_of(__half2 x) {
  uint32_t word;
  memcpy(&word, &x, sizeof(word));
  return word;
}

GEAR_DEVICE __half2 halves_of(uint32_t word) {
  __half2 x;
  memcpy(&x, &word, sizeof(x));
  return x;
}

GEAR_DEVICE uint32_t pack_halves(float first, float second) {
  return word_of(__floats2half2_rn(first, second));
}

// The two bfloat16 of a word as halves; infinite beyond FP16's range.
GEAR_DEVICE uint32_t halves_of_bfloat16(uint32_t word) {
  return pack_halves(first_bfloat16(word), second_bfloat16(word));
}

GEAR_DEVICE uint32_t multiply_halves(uint32_t a, uint32_t b) {
  return word_of(__hmul2(halves_of(a), halves_of(b)));
}

GEAR_DEVICE float half_bits_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// The first, and the second, halves of two pairs.
GEAR_DEVICE uint32_t first_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
GEAR_DEVICE uint32_t second_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// Four elements of k in the order of fragments, as halves.
struct Quad {
  uint32_t even;
  uint32_t odd;
};

GEAR_DEVICE Quad round_quad(float4 x) { return {pack_halves(x.x, x.z), pack_halves(x.y, x.w)}; }

// What round_quad loses, as halves: both together hold 22 bits.
GEAR_DEVICE Quad round_rest(float4 x, Quad rounded) {
  const __half2 even = halves_of(rounded.even);
  const __half2 odd = halves_of(rounded.odd);
  return round_quad(make_float4(x.x - __low2float(even), x.y - __low2float(odd),
                                x.z - __high2float(even), x.w - __high2float(odd)));
}

// d[m][n] += Σ_k a[m][k] · b[k][n].
GEAR_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], Quad b) {
  const uint32_t columns[2] = {b.even, b.odd};
  mma_m16n8k16(d, a, columns);
}

// d[m][n] += Σ_k rows[k] · b[k][n] for every m.
GEAR_DEVICE void multiply_same_rows(float (&d)[4], Quad rows, Quad b) {
  const uint32_t a[4] = {rows.even, rows.even, rows.odd, rows.odd};
  multiply(d, a, b);
}

// d[m][n] += Σ_k b[k][n] for every m.
GEAR_DEVICE void add_columns(float (&d)[4], Quad b) {
  constexpr uint32_t kOnes = 0x3c003c00;
  multiply_same_rows(d, {kOnes, kOnes}, b);
}

GEAR_DEVICE void clear(float (&d)[4]) { d[0] = d[1] = d[2] = d[3] = 0.0f; }

// Rows of M to k of another product: what a lane holds of a product [16, 8] as the second operand
// [16, 8] of the next one.
GEAR_DEVICE Quad transpose_product(const float (&d)[4]) {
  return {movmatrix_trans(pack_halves(d[0], d[1])), movmatrix_trans(pack_halves(d[2], d[3]))};
}

}  // namespace gear::cuda
