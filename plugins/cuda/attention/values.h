// Output of 64 tokens of a packed page: output[block][4] of 8 query rows.
//
//   output[d] += Σ_t w[t] · scale[t] · (code[t][d] − centre) + Σ_t w[t] · mid[t]
//              + Σ_j along[j] · channel_factor[j][d] + Σ_outliers w[t] · delta[t][d]
//
// Channels are M, tokens k, rows N. Scales are folded into the weights, per group of channels, by a
// power of two that keeps their products in FP16's range: weights are small, and so may values be.
#pragma once

#include "cuda/attention/keys.h"

namespace gear::cuda {

// Metadata of 64 tokens in the warp's scratch.
struct ValueMetadata {
  uint4* mids;     // [groups / 2][16 quads of tokens]: even of both groups, odd of both
  uint2* scales;   // [groups][16]: even, odd
  float* factors;  // [groups] what scales were divided by
};

// Groups of a head, rounded up to two.
GEAR_HOST_DEVICE constexpr int max_value_groups(int head_dim) { return (head_dim + 63) / 64 * 2; }

GEAR_HOST_DEVICE constexpr int value_metadata_bytes(int head_dim) {
  return max_value_groups(head_dim) * (kSpan * 4 + 4);
}

GEAR_DEVICE ValueMetadata value_metadata(unsigned char* scratch, int head_dim) {
  const int groups = max_value_groups(head_dim);
  unsigned char* scales = scratch + groups * kSpan * 2;
  unsigned char* factors = scales + groups * kSpan * 2;
  return {reinterpret_cast<uint4*>(scratch), reinterpret_cast<uint2*>(scales),
          reinterpret_cast<float*>(factors)};
}

// 2^k with the exponent of x, within ±100.
GEAR_DEVICE float power_of_two(float x) {
  const int bits = __float_as_int(x) & 0x7f800000;
  return __int_as_float(min(max(bits, 27 << 23), 227 << 23));
}

// Half a warp decodes a group: the largest scale becomes one in [16, 32). The last group stands in
// for one beyond it.
template <int kBits>
GEAR_DEVICE void decode_value_metadata(const Call& call, const unsigned char* page, int span,
                                       const ValueMetadata& target) {
  const int groups = call.layout.value.groups;
  const int quad = lane_id() % 16;
  const int half = lane_id() / 16;
#pragma unroll 1
  for (int first = 0; first < groups; first += 2) {
    const int index = min(first + half, groups - 1) * call.config().chunk + span * kSpan + 4 * quad;
    const Metadata x =
        load_metadata(page, call.layout.value, call.config().metadata_bits, kCentre<kBits>, index);
    float largest = fmaxf(fmaxf(x.scales.x, x.scales.y), fmaxf(x.scales.z, x.scales.w));
#pragma unroll
    for (int distance = 1; distance < 16; distance *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    }
    const float factor = power_of_two(largest) * 0.0625f;
    const float inverse = 1.0f / factor;
    const Quad scales = round_quad(make_float4(x.scales.x * inverse, x.scales.y * inverse,
                                               x.scales.z * inverse, x.scales.w * inverse));
    const Quad mids = round_quad(x.mids);
    target.scales[(first + half) * 16 + quad] = make_uint2(scales.even, scales.odd);
    uint32_t* pair = reinterpret_cast<uint32_t*>(target.mids + first * 8 + quad) + half;
    pair[0] = mids.even;
    pair[2] = mids.odd;
    if (quad == 0) target.factors[first + half] = factor;
  }
}

// Weights of 64 tokens with the scales of one group of channels.
struct FoldedWeights {
  Quad weights[kScoreBlocks];
  float folded[4];  // Σ w', in all rows of M
  float mids[4];    // Σ w · mid, of even groups in rows g, of odd ones in rows g + 8
  float mid[2];     // of this group
  float factor;
};

GEAR_DEVICE void fold_weights(const ValueMetadata& metadata, int group,
                              const Quad (&weights)[kScoreBlocks], FoldedWeights& target) {
  const bool is_even = group % 2 == 0;
  if (is_even) {
    clear(target.mids);
#pragma unroll
    for (int n = 0; n < kScoreBlocks; ++n) {
      const uint4 x = metadata.mids[group * 8 + 4 * n + lane_quad()];
      const uint32_t rows[4] = {x.x, x.y, x.z, x.w};
      multiply(target.mids, rows, weights[n]);
    }
  }
  target.mid[0] = is_even ? target.mids[0] : target.mids[2];
  target.mid[1] = is_even ? target.mids[1] : target.mids[3];
  clear(target.folded);
#pragma unroll
  for (int n = 0; n < kScoreBlocks; ++n) {
    const uint2 x = metadata.scales[group * 16 + 4 * n + lane_quad()];
    target.weights[n] = {multiply_halves(weights[n].even, x.x),
                         multiply_halves(weights[n].odd, x.y)};
    add_columns(target.folded, target.weights[n]);
  }
  target.factor = metadata.factors[group];
}

template <int kBits, bool kAligned>
GEAR_DEVICE void add_block(const FoldedWeights& folded, const float (&product)[4], int block,
                           float (&output)[4]) {
  const float factor = code_factor<kBits, kAligned>(block) * folded.factor;
  const float constant = code_constant<kBits, kAligned>(block) * folded.factor;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float base = fmaf(-constant, folded.folded[i % 2], folded.mid[i % 2]);
    output[i] += fmaf(factor, product[i], base);
  }
}

template <int kBits, bool kAligned, int kHeadDim, int kBlocks>
GEAR_DEVICE void add_code_values(const Codes& codes, const ValueMetadata& metadata, int group_size,
                                 int span, const Quad (&weights)[kScoreBlocks],
                                 float (&output)[kBlocks][4]) {
  FoldedWeights folded;
#pragma unroll
  for (int pair = 0; pair < (kBlocks + 1) / 2; ++pair) {
    if (kHeadDim == 0 && 2 * pair >= codes.blocks) break;
    const int channel = 2 * pair * kBlock;
    if (channel % group_size == 0) fold_weights(metadata, channel / group_size, weights, folded);
    const bool has_second = kHeadDim != 0 || 2 * pair + 1 < codes.blocks;
    float products[2][4];
    clear(products[0]);
    clear(products[1]);
#pragma unroll
    for (int n = 0; n < kScoreBlocks; ++n) {
      uint32_t a[2][4];
      load_fragments<kBits, kAligned>(codes, kScoreBlocks * span + n, pair, a);
      multiply(products[0], a[0], folded.weights[n]);
      if (has_second) multiply(products[1], a[1], folded.weights[n]);
    }
    add_block<kBits, kAligned>(folded, products[0], 2 * pair, output[2 * pair]);
    if (has_second) {
      add_block<kBits, kAligned>(folded, products[1], 2 * pair + 1, output[2 * pair + 1]);
    }
  }
}

template <int kHeadDim, int kBlocks>
GEAR_DEVICE void add_value_low_rank(const Call& call, const unsigned char* page, int span,
                                    int head_dim, const Quad (&weights)[kScoreBlocks],
                                    float (&output)[kBlocks][4]) {
  const PageConfig& config = call.config();
  const SideLayout& at = call.layout.value;
  const int bits = config.factor_bits;
  float along[4];
  clear(along);
  uint32_t a[4];
#pragma unroll
  for (int n = 0; n < kScoreBlocks; ++n) {
    load_factor_rows(page + 4 * at.token_factors, bits, config.rank, config.chunk,
                     span * kSpan + kBlock * n, a);
    multiply(along, a, weights[n]);
  }
  const Quad scaled = scale_along(page, at, bits, config.rank, along);
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
    if (kHeadDim == 0 && m >= head_dim / kBlock) break;
    load_factor_columns(page + 4 * at.channel_factors, bits, config.rank, head_dim, kBlock * m, a);
    multiply(output[m], a, scaled);
  }
}

template <int kHeadDim, int kBlocks>
GEAR_DEVICE void add_value_outliers(const Call& call, const unsigned char* page,
                                    unsigned char* tile, int span, int head_dim,
                                    const Quad (&weights)[kScoreBlocks],
                                    float (&output)[kBlocks][4]) {
  const unsigned char* deltas = page + 4 * call.layout.value.outlier_deltas;
  const unsigned char* indices = page + 4 * call.layout.value.outlier_indices;
  const int outliers = call.config().outliers;
  __syncwarp();
  clear_outlier_tile(tile, head_dim);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kScoreBlocks; ++n) {
    const int first = span * kSpan + kBlock * n;
    write_outliers<false>(tile, deltas, indices, outliers, first, 0, head_dim);
    __syncwarp();
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      if (kHeadDim == 0 && m >= head_dim / kBlock) break;
      uint32_t a[4];
      load_outliers(tile, m, a);
      multiply(output[m], a, weights[n]);
    }
    __syncwarp();
    write_outliers<true>(tile, deltas, indices, outliers, first, 0, head_dim);
    __syncwarp();
  }
}

template <int kBits, int kHeadDim, int kBlocks>
GEAR_DEVICE void add_packed_values(const Call& call, const PageView& page, unsigned char* scratch,
                                   int span, int head_dim, const Quad (&weights)[kScoreBlocks],
                                   float (&output)[kBlocks][4]) {
  const SideLayout& at = call.layout.value;
  const ValueMetadata metadata = value_metadata(scratch, head_dim);
  __syncwarp();
  decode_value_metadata<kBits>(call, page.bytes, span, metadata);
  __syncwarp();
  const Codes codes = make_codes(page.bytes + 4 * at.codes, page.bytes + 4 * at.codes_high,
                                 head_dim, plane_bits(kBits), 0, page.is_staged);
  constexpr bool kAligned = kHeadDim != 0 && lines_of_quad_group(kHeadDim, plane_bits(kBits)) > 0;
  add_code_values<kBits, kAligned, kHeadDim>(codes, metadata, call.config().group_size, span,
                                             weights, output);
}

// Adds tokens 64 · span .. of a page, rotated as the page's values are.
template <int kHeadDim, int kBlocks>
GEAR_DEVICE void add_page_values(const Call& call, const PageView& page, unsigned char* scratch,
                                 int span, int head_dim, const Quad (&weights)[kScoreBlocks],
                                 float (&output)[kBlocks][4]) {
  const PageConfig& config = call.config();
  switch (config.value_bits) {
    case 2:
      add_packed_values<2, kHeadDim>(call, page, scratch, span, head_dim, weights, output);
      break;
    case 3:
      add_packed_values<3, kHeadDim>(call, page, scratch, span, head_dim, weights, output);
      break;
    case 4:
      add_packed_values<4, kHeadDim>(call, page, scratch, span, head_dim, weights, output);
      break;
    case 8:
      add_packed_values<8, kHeadDim>(call, page, scratch, span, head_dim, weights, output);
      break;
    default:
#pragma unroll
      for (int n = 0; n < kScoreBlocks; ++n) {
        const ExactTokens tokens =
            page_tokens(call, page, call.layout.value, kSpan * span + kBlock * n, head_dim);
        add_exact_values<kHeadDim>(tokens, weights[n], head_dim, output);
      }
      return;
  }
  if (config.rank > 0) {
    add_value_low_rank<kHeadDim>(call, page.bytes, span, head_dim, weights, output);
  }
  if (config.outliers > 0) {
    add_value_outliers<kHeadDim>(call, page.bytes, scratch, span, head_dim, weights, output);
  }
}

}  // namespace gear::cuda
