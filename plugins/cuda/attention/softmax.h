// Online softmax of one warp, as in cpu/kernels/softmax.h, on scores that are exponents of 2.
//
//   scores [blocks][4]: lane (g, t) holds tokens 2g and 2g + 1 (i / 2) of a block for rows 2t and
//   2t + 1 (i % 2). Largest score and sum are held for rows 2t and 2t + 1, alike in all g.
//   output [D / 16][4]: channels 2g and 2g + 1 (i / 2) of a block for rows 2t and 2t + 1 (i % 2).
//
// Weights are rounded to FP16 before they are summed up, so that numerator and denominator see the
// same ones.
#pragma once

#include "cuda/attention/fragments.h"

namespace gear::cuda {

// Weights are times 2^this, so that small ones keep their digits in FP16.
inline constexpr float kWeightExponent = 4.0f;

struct SoftmaxState {
  float largest[2];
  float sum[4];  // [i % 2]: a product of which all rows are alike
};

template <int kBlocks>
GEAR_DEVICE void reset(SoftmaxState& state, float (&output)[kBlocks][4]) {
  state.largest[0] = state.largest[1] = -INFINITY;
  clear(state.sum);
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) clear(output[m]);
}

template <int kScores, int kBlocks>
GEAR_DEVICE void raise_largest(const float (&scores)[kScores][4], SoftmaxState& state,
                               float (&output)[kBlocks][4]) {
  float largest[2] = {state.largest[0], state.largest[1]};
#pragma unroll
  for (int n = 0; n < kScores; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i % 2] = fmaxf(largest[i % 2], scores[n][i]);
  }
#pragma unroll
  for (int distance = 4; distance < kWarpLanes; distance *= 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAllLanes, largest[i], distance));
    }
  }
  const bool is_raised = largest[0] > state.largest[0] || largest[1] > state.largest[1];
  if (!__any_sync(kAllLanes, is_raised)) return;
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    factor[i] = largest[i] == -INFINITY ? 1.0f : fast_exp2(state.largest[i] - largest[i]);
    state.largest[i] = largest[i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) state.sum[i] *= factor[i % 2];
#pragma unroll
  for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) output[m][i] *= factor[i % 2];
  }
}

// Scores to weights, in the order of fragments of the product with values: weights[n] holds tokens
// 4t .. 4t + 3 of block n for row g. −infinity, a token out of sight, becomes 0.
template <int kScores, int kBlocks>
GEAR_DEVICE void weigh(float (&scores)[kScores][4], SoftmaxState& state,
                       float (&output)[kBlocks][4], Quad (&weights)[kScores]) {
  raise_largest(scores, state, output);
  float base[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // No token was in sight so far: every score is −infinity, and −infinity − 0 stays so.
    base[i] = (state.largest[i] == -INFINITY ? 0.0f : state.largest[i]) - kWeightExponent;
  }
#pragma unroll
  for (int n = 0; n < kScores; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = fast_exp2(scores[n][i] - base[i % 2]);
    weights[n] = transpose_product(scores[n]);
    add_columns(state.sum, weights[n]);
  }
}

}  // namespace gear::cuda
