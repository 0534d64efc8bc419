// Soft cap, and which tokens a query row sees: scores as in softmax.h.
#pragma once

#include "cuda/attention/work.h"

namespace gear::cuda {

// Positions that a lane's two query rows see, first .. last.
struct Visible {
  int first[2];
  int last[2];
};

GEAR_DEVICE Visible visible_to(const Call& call, const Item& item) {
  Visible visible;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = item.first_row + 2 * lane_quad() + i;
    visible.last[i] = call.past(item.sequence) + row / call.group();
    visible.first[i] = first_visible(visible.last[i], call.attributes.sliding_window);
  }
  return visible;
}

// softcap · tanh(score / softcap).
GEAR_DEVICE float cap(float score, float softcap) {
  constexpr float kTwiceLogOfE = 2.885390082f;
  const float power = fast_exp2(score / softcap * kTwiceLogOfE);
  return softcap * (1.0f - 2.0f / (power + 1.0f));
}

template <int kScores>
GEAR_DEVICE void cap_scores(float softcap, float (&scores)[kScores][4]) {
  if (softcap == 0.0f) return;
#pragma unroll
  for (int n = 0; n < kScores; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = cap(scores[n][i], softcap);
  }
}

// −infinity where row i does not see the token at `position`.
GEAR_DEVICE float masked(float score, int position, const Visible& visible, int i) {
  return position >= visible.first[i] && position <= visible.last[i] ? score : -INFINITY;
}

}  // namespace gear::cuda
