// Adds up partial results of the same rows over different tokens:
//
//   largest = max_i largest_i, weight_i = e^(largest_i − largest),
//   output = Σ_i weight_i · acc_i / Σ_i weight_i · sum_i.

#include "cpu/kernels/softmax.h"
#include "cpu/kernels/table.h"

namespace gear::cpu::GEAR_ISA {

void merge(const Sequence& sequence, int num_rows, const Partial* partials, int count) {
  const int head_dim = sequence.shape->config.head_dim;
  float acc[kMaxHeadDim];
  for (int row = 0; row < num_rows; ++row) {
    float largest = -INFINITY;
    for (int i = 0; i < count; ++i) {
      if (partials[i].largest[row] > largest) largest = partials[i].largest[row];
    }
    memset(acc, 0, sizeof(acc));
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) {
      const Partial& partial = partials[i];
      if (partial.sum[row] == 0.0f) continue;
      const float weight = exp_of_negative(broadcast(partial.largest[row] - largest))[0];
      sum += weight * partial.sum[row];
      const float* other = partial.acc + row * head_dim;
      for (int d = 0; d < head_dim; d += kWidth) {
        store(acc + d, load_floats(acc + d) + weight * load_floats(other + d));
      }
    }
    scale_row(acc, head_dim, 1.0f / sum);
    store_row(sequence, row, acc);
  }
}

}  // namespace gear::cpu::GEAR_ISA
