// Online softmax: scores come tile by tile, the state holds what the seen tiles add up to.
//
//   largest = max score, sum = Σ e^(score − largest), acc[d] = Σ e^(score − largest) · v[d].
#pragma once

#include <cmath>

#include "cpu/kernels/rows.h"

namespace gear::cpu::GEAR_ISA {

struct SoftmaxState {
  float largest[kRowBlock];
  Floats sums[kRowBlock];  // lanes to be added up
  float* acc;              // [rows, head_dim]
  int head_dim;
};

static inline void reset(SoftmaxState& state, int rows) {
  for (int row = 0; row < rows; ++row) {
    state.largest[row] = -INFINITY;
    state.sums[row] = Floats{};
  }
  memset(state.acc, 0, sizeof(float) * rows * state.head_dim);
}

static inline void scale_row(float* row, int count, float factor) {
  for (int i = 0; i < count; i += kWidth) store(row + i, load_floats(row + i) * factor);
}

// Makes `largest`, where it is more than before, what the row's weights are relative to.
static inline void raise_largest(SoftmaxState& state, int row, float largest) {
  if (!(largest > state.largest[row])) return;
  const float factor = exp_of_negative(broadcast(state.largest[row] - largest))[0];
  state.sums[row] *= factor;
  scale_row(state.acc + row * state.head_dim, state.head_dim, factor);
  state.largest[row] = largest;
}

// Turns scores into weights e^(score − largest); −inf, a token out of sight, becomes 0.
static inline void weigh_row(SoftmaxState& state, int row, float* scores, int count) {
  // No token was in sight so far: every score is −inf, and −inf − 0 stays so.
  const float base = state.largest[row] == -INFINITY ? 0.0f : state.largest[row];
  Floats sum = {};
  for (int i = 0; i < count; i += kWidth) {
    const Floats weights = exp_of_negative(load_floats(scores + i) - base);
    store(scores + i, weights);
    sum += weights;
  }
  state.sums[row] += sum;
}

static inline Floats largest_lanes(const float* scores, int count) {
  Floats most = load_floats(scores);
  for (int i = kWidth; i < count; i += kWidth) most = maximum(most, load_floats(scores + i));
  return most;
}

// Turns rows of scores, `stride` apart, into weights.
static inline void add_scores(SoftmaxState& state, int rows, float* scores, int stride, int count) {
  float largest[padded_to_batch(kRowBlock)];
  reduce_each(rows, largest, maximum,
              [&](int row) { return largest_lanes(scores + row * stride, count); });
  for (int row = 0; row < rows; ++row) {
    raise_largest(state, row, largest[row]);
    weigh_row(state, row, scores + row * stride, count);
  }
}

}  // namespace gear::cpu::GEAR_ISA
