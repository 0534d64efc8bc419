// Scores of 64 tokens of a packed page: scores[block][4] of 8 query rows, as exponents of 2.
//
//   score[t] = Σ_c q[c] · scale[c] · (code[c][t] − centre) + Σ_c q[c] · mid[c]
//            + Σ_j along[j] · token_factor[j][t] + Σ_outliers q[c] · delta[c][t]
//
// Tokens are M, channels k, rows N. Scales are folded into the query, per group of tokens, so that
// codes meet no arithmetic before the product. Shapes: D channels, `steps` = D / 16.
#pragma once

#include "cuda/attention/exact.h"
#include "cuda/attention/lowrank.h"
#include "cuda/attention/outliers.h"
#include "cuda/attention/page.h"

namespace gear::cuda {

// Metadata of 64 tokens in the warp's scratch, groups [1 or 2][D / 4].
struct KeyMetadata {
  uint2* scales;  // even, odd
  uint4* mids;    // even, what its rounding left; odd, likewise
};

GEAR_HOST_DEVICE constexpr int key_metadata_bytes(int head_dim) { return 2 * head_dim * 6; }

// Groups of tokens inside a span of 64.
GEAR_DEVICE int key_groups(const PageConfig& config) { return config.group_size == 32 ? 2 : 1; }

GEAR_DEVICE KeyMetadata key_metadata(unsigned char* scratch, int head_dim) {
  return {reinterpret_cast<uint2*>(scratch + 8 * head_dim), reinterpret_cast<uint4*>(scratch)};
}

template <int kBits>
GEAR_DEVICE void decode_key_metadata(const Call& call, const unsigned char* page, int span,
                                     int head_dim, const KeyMetadata& target) {
  const PageConfig& config = call.config();
  const int first = span * kSpan / config.group_size * head_dim;
  const int quads = key_groups(config) * head_dim / 4;
#pragma unroll 1
  for (int i = lane_id(); i < quads; i += kWarpLanes) {
    const Metadata x =
        load_metadata(page, call.layout.key, config.metadata_bits, kCentre<kBits>, first + 4 * i);
    const Quad scales = round_quad(x.scales);
    const Quad mids = round_quad(x.mids);
    const Quad rests = round_rest(x.mids, mids);
    target.scales[i] = make_uint2(scales.even, scales.odd);
    target.mids[i] = make_uint4(mids.even, rests.even, mids.odd, rests.odd);
  }
}

// Sums over channels of one group of tokens.
struct KeySums {
  float folded[4];  // Σ q', in all rows of M
  float mids[4];    // Σ q · mid: of mids' leading digits in rows g, of the rest in rows g + 8
};

// Folds the scales of 16 channels into the query, and adds to the sums.
GEAR_DEVICE Quad fold_query(const KeyMetadata& metadata, int quad, uint4 query, KeySums& sums) {
  const uint2 scales = metadata.scales[quad];
  const uint4 mids = metadata.mids[quad];
  const Quad folded = {multiply_halves(query.x, scales.x), multiply_halves(query.y, scales.y)};
  add_columns(sums.folded, folded);
  const uint32_t rows[4] = {mids.x, mids.y, mids.z, mids.w};
  multiply(sums.mids, rows, {query.x, query.y});
  multiply(sums.mids, rows, {query.z, query.w});
  return folded;
}

template <int kBits, int kHeadDim>
GEAR_DEVICE void code_scores(const Codes& codes, const KeyMetadata& metadata, const uint4* queries,
                             int groups, int span, int head_dim, float (&scores)[kScoreBlocks][4]) {
  KeySums sums[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    clear(sums[i].folded);
    clear(sums[i].mids);
  }
#pragma unroll
  for (int n = 0; n < kScoreBlocks; ++n) clear(scores[n]);

#pragma unroll(kHeadDim == 0 ? 1 : kHeadDim / 16)
  for (int step = 0; step < head_dim / 16; ++step) {
    const uint4 query = queries[step * kWarpLanes + lane_id()];
    const int quad = 4 * step + lane_quad();
    Quad folded[2];
    folded[0] = fold_query(metadata, quad, query, sums[0]);
    folded[1] = folded[0];
    if (groups == 2) folded[1] = fold_query(metadata, head_dim / 4 + quad, query, sums[1]);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t a[2][4];
      // Where lines are not those of the fast path, `span` counts units, else `codes` starts there.
      load_fragments<kBits, true>(codes, step, kByLines<kBits, true> ? pair : 2 * span + pair, a);
      multiply(scores[2 * pair], a[0], folded[pair]);
      multiply(scores[2 * pair + 1], a[1], folded[pair]);
    }
  }

  if (groups == 1) sums[1] = sums[0];
#pragma unroll
  for (int n = 0; n < kScoreBlocks; ++n) {
    const KeySums& group = sums[n / 2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float base = group.mids[i % 2] + group.mids[i % 2 + 2] -
                         code_constant<kBits, true>(n) * group.folded[i % 2];
      scores[n][i] = fmaf(scores[n][i], code_factor<kBits, true>(n), base);
    }
  }
}

GEAR_DEVICE void add_key_low_rank(const Call& call, const unsigned char* page, const uint4* queries,
                                  int span, int head_dim, float (&scores)[kScoreBlocks][4]) {
  const PageConfig& config = call.config();
  const SideLayout& at = call.layout.key;
  const int bits = config.factor_bits;
  float along[4];
  clear(along);
  uint32_t a[4];
  for (int step = 0; step < head_dim / 16; ++step) {
    const uint4 query = queries[step * kWarpLanes + lane_id()];
    load_factor_rows(page + 4 * at.channel_factors, bits, config.rank, head_dim, 16 * step, a);
    multiply(along, a, {query.x, query.y});
  }
  const Quad scaled = scale_along(page, at, bits, config.rank, along);
#pragma unroll
  for (int n = 0; n < kScoreBlocks; ++n) {
    load_factor_columns(page + 4 * at.token_factors, bits, config.rank, config.chunk,
                        span * kSpan + kBlock * n, a);
    multiply(scores[n], a, scaled);
  }
}

GEAR_DEVICE void add_key_outliers(const Call& call, const unsigned char* page, const uint4* queries,
                                  unsigned char* tile, int span, int head_dim,
                                  float (&scores)[kScoreBlocks][4]) {
  const unsigned char* deltas = page + 4 * call.layout.key.outlier_deltas;
  const unsigned char* indices = page + 4 * call.layout.key.outlier_indices;
  const int outliers = call.config().outliers;
  __syncwarp();
  clear_outlier_tile(tile, kSpan);
  __syncwarp();
  for (int step = 0; step < head_dim / 16; ++step) {
    write_outliers<false>(tile, deltas, indices, outliers, 16 * step, span * kSpan, kSpan);
    __syncwarp();
    const uint4 query = queries[step * kWarpLanes + lane_id()];
#pragma unroll
    for (int n = 0; n < kScoreBlocks; ++n) {
      uint32_t a[4];
      load_outliers(tile, n, a);
      multiply(scores[n], a, {query.x, query.y});
    }
    __syncwarp();
    write_outliers<true>(tile, deltas, indices, outliers, 16 * step, span * kSpan, kSpan);
    __syncwarp();
  }
}

template <int kBits, int kHeadDim>
GEAR_DEVICE void packed_scores(const Call& call, const PageView& page, const uint4* queries,
                               unsigned char* scratch, int span, int head_dim,
                               float (&scores)[kScoreBlocks][4]) {
  const KeyMetadata metadata = key_metadata(scratch, head_dim);
  __syncwarp();
  decode_key_metadata<kBits>(call, page.bytes, span, head_dim, metadata);
  __syncwarp();
  const SideLayout& at = call.layout.key;
  const int lines = kSpan / 16 * plane_bits(kBits) / 8;
  const Codes codes =
      make_codes(page.bytes + 4 * at.codes, page.bytes + 4 * at.codes_high, call.config().chunk,
                 plane_bits(kBits), span * lines, page.is_staged);
  code_scores<kBits, kHeadDim>(codes, metadata, queries, key_groups(call.config()), span, head_dim,
                               scores);
}

// Scores of tokens 64 · span .. of a page, rotated as the page's keys are.
template <int kHeadDim>
GEAR_DEVICE void page_scores(const Call& call, const PageView& page, const uint4* queries,
                             unsigned char* scratch, int span, int head_dim,
                             float (&scores)[kScoreBlocks][4]) {
  const PageConfig& config = call.config();
  switch (config.key_bits) {
    case 2:
      packed_scores<2, kHeadDim>(call, page, queries, scratch, span, head_dim, scores);
      break;
    case 3:
      packed_scores<3, kHeadDim>(call, page, queries, scratch, span, head_dim, scores);
      break;
    case 4:
      packed_scores<4, kHeadDim>(call, page, queries, scratch, span, head_dim, scores);
      break;
    case 8:
      packed_scores<8, kHeadDim>(call, page, queries, scratch, span, head_dim, scores);
      break;
    default:
#pragma unroll
      for (int n = 0; n < kScoreBlocks; ++n) {
        const ExactTokens tokens =
            page_tokens(call, page, call.layout.key, kSpan * span + kBlock * n, head_dim);
        exact_scores(tokens, queries, head_dim, scores[n]);
      }
      return;
  }
  if (config.rank > 0) add_key_low_rank(call, page.bytes, queries, span, head_dim, scores);
  if (config.outliers > 0) {
    add_key_outliers(call, page.bytes, queries, scratch, span, head_dim, scores);
  }
}

}  // namespace gear::cuda
