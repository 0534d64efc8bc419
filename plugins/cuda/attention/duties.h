// What every launch does beside attending.
#pragma once

#include "cuda/attention/work.h"

namespace gear::cuda {

// New tokens of a sequence to the buffer, by all threads of one block, where no page becomes full.
// No block of the launch reads the rows that are written: as long as no page becomes full, the
// buffer's rows of past tokens are others.
GEAR_DEVICE void append_exact(const Call& call, int sequence, int head) {
  if (call.fills_a_page(sequence)) return;
  for (int side = 0; side < 2; ++side) {
    append_rows(call, sequence, head, side, threadIdx.x, blockDim.x);
  }
}

// Zeros where no query row is.
GEAR_DEVICE void clear_idle_rows(const AttentionParams& params) {
  const Call& call = params.call;
  const int heads = call.attributes.num_heads;
  const int quads = heads * call.head_dim() / 4;
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int blocks = gridDim.x * gridDim.y * gridDim.z;
  for (int row = block; row < call.batch * call.seq_len; row += blocks) {
    const int sequence = row / call.seq_len;
    const int token = row % call.seq_len;
    if (token < call.added(sequence) && is_valid(call, sequence)) continue;
    const int64_t first = call.query_offset(sequence, token, 0);
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
      store4(call.output, call.data_type, first + 4 * i, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
    if (params.log_sum_exp == nullptr) continue;
    for (int i = threadIdx.x; i < heads; i += blockDim.x) {
      params.log_sum_exp[static_cast<int64_t>(row) * heads + i] = -INFINITY;
    }
  }
}

}  // namespace gear::cuda
