// Online softmax: scores come tile by tile, the state holds what the seen tiles add up to.
//
//   largest = max score, sum = Σ e^(score − largest), acc[d] = Σ e^(score − largest) · v[d].
#pragma once

#include <cmath>

#include "cpu/kernels/rows.h"

namespace gear::cpu::GEAR_ISA {

struct SoftmaxState {
  float largest[kRowBlock];
  float sum[kRowBlock];
  float* acc;  // [rows, head_dim]
  int head_dim;
};

static inline void reset(SoftmaxState& state, int rows) {
  for (int row = 0; row < rows; ++row) {
    state.largest[row] = -INFINITY;
    state.sum[row] = 0.0f;
  }
  memset(state.acc, 0, sizeof(float) * rows * state.head_dim);
}

static inline void scale_row(float* row, int count, float factor) {
  for (int i = 0; i < count; i += kWidth) store(row + i, load_floats(row + i) * factor);
}

// Turns a row of scores into weights e^(score − largest); −inf, a token out of sight, becomes 0.
static inline void add_scores(SoftmaxState& state, int row, float* scores, int count) {
  Floats most = broadcast(state.largest[row]);
  for (int i = 0; i < count; i += kWidth) most = maximum(most, load_floats(scores + i));
  const float largest = reduce_max(most);
  if (largest > state.largest[row]) {
    const float factor = exp_of_negative(broadcast(state.largest[row] - largest))[0];
    state.sum[row] *= factor;
    scale_row(state.acc + row * state.head_dim, state.head_dim, factor);
    state.largest[row] = largest;
  }
  // No token was in sight so far: every score is −inf, and −inf − 0 stays so.
  const float base = largest == -INFINITY ? 0.0f : largest;
  Floats sum = {};
  for (int i = 0; i < count; i += kWidth) {
    const Floats weights = exp_of_negative(load_floats(scores + i) - base);
    store(scores + i, weights);
    sum += weights;
  }
  state.sum[row] += reduce_add(sum);
}

}  // namespace gear::cpu::GEAR_ISA
