// Products with tokens that are held as they are: sinks, the buffer's other rows, the new tokens,
// and pages of pass-through sides. FP32 rows enter as two halves, bfloat16 rows as one
// (docs/adr/0026).
//
// A lane reads tokens 2g and 2g + 1 of a block of 16, elements 4t .. 4t + 3 of each 16 channels.
#pragma once

#include "cuda/attention/page.h"

namespace gear::cuda {

// A row of head_dim elements.
struct ExactRow {
  const void* elements;
  DataType type;
};

// One side of a lane's two tokens of a block.
struct ExactTokens {
  ExactRow rows[2];
  bool has_floats;  // any lane's row is FP32
};

struct SplitQuad {
  Quad high;
  Quad low;
};

GEAR_DEVICE SplitQuad load_split(ExactRow row, int channel) {
  if (row.type == DataType::kFloat32) {
    const float4 x =
        *reinterpret_cast<const float4*>(static_cast<const float*>(row.elements) + channel);
    const Quad high = round_quad(x);
    return {high, round_rest(x, high)};
  }
  uint2 x = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(row.elements) + channel);
  if (row.type == DataType::kBFloat16) {
    x = make_uint2(halves_of_bfloat16(x.x), halves_of_bfloat16(x.y));
  }
  return {{first_halves(x.x, x.y), second_halves(x.x, x.y)}, {0, 0}};
}

// Tokens first .. first + 15 of a pass-through side of a page.
GEAR_DEVICE ExactTokens page_tokens(const Call& call, const PageView& page, const SideLayout& at,
                                    int first, int head_dim) {
  const DataType type = call.buffer_type;
  const int bytes = head_dim * (type == DataType::kFloat32 ? 4 : 2);
  const unsigned char* row = page.bytes + 4 * at.exact + (first + 2 * lane_row()) * bytes;
  return {{{row, type}, {row + bytes, type}}, type == DataType::kFloat32};
}

// scores[4] of 16 tokens.
GEAR_DEVICE void exact_scores(const ExactTokens& tokens, const uint4* queries, int head_dim,
                              float (&scores)[4]) {
  clear(scores);
  for (int step = 0; step < head_dim / 16; ++step) {
    const uint4 query = queries[step * kWarpLanes + lane_id()];
    const int channel = 16 * step + 4 * lane_quad();
    const SplitQuad x = load_split(tokens.rows[0], channel);
    const SplitQuad y = load_split(tokens.rows[1], channel);
    const uint32_t high[4] = {x.high.even, y.high.even, x.high.odd, y.high.odd};
    multiply(scores, high, {query.x, query.y});
    multiply(scores, high, {query.z, query.w});
    if (tokens.has_floats) {
      const uint32_t low[4] = {x.low.even, y.low.even, x.low.odd, y.low.odd};
      multiply(scores, low, {query.x, query.y});
    }
  }
}

// Rows of tokens to a fragment with channels on M.
GEAR_DEVICE void transpose_tokens(Quad x, Quad y, uint32_t (&a)[4]) {
  a[0] = movmatrix_trans(x.even);
  a[1] = movmatrix_trans(x.odd);
  a[2] = movmatrix_trans(y.even);
  a[3] = movmatrix_trans(y.odd);
}

// output[m] += weights · values of 16 tokens.
template <int kHeadDim, int kBlocks>
GEAR_DEVICE void add_exact_values(const ExactTokens& tokens, Quad weights, int head_dim,
                                  float (&output)[kBlocks][4]) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
    if (kHeadDim == 0 && m >= head_dim / kBlock) break;
    const int channel = kBlock * m + 4 * lane_quad();
    const SplitQuad x = load_split(tokens.rows[0], channel);
    const SplitQuad y = load_split(tokens.rows[1], channel);
    uint32_t a[4];
    transpose_tokens(x.high, y.high, a);
    multiply(output[m], a, weights);
    if (tokens.has_floats) {
      transpose_tokens(x.low, y.low, a);
      multiply(output[m], a, weights);
    }
  }
}

}  // namespace gear::cuda
