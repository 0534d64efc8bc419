// Query rows of a tile as operands of all products with keys.
//
//   row r = token · G + head of the sequence's S · G; a tile has 8 rows.
//   staged rows [8, D] float, times scale · log2(e): scores are exponents of 2
//   fragments [D / 16][lane]: even, odd; then what their rounding left, even, odd
#pragma once

#include "core/rotate.h"
#include "cuda/attention/work.h"

namespace gear::cuda {

// Rows beyond `num_rows` are 0.
GEAR_DEVICE void stage_queries(const Call& call, const Item& item, int num_rows, float factor,
                               float* staged) {
  const int quads = call.head_dim() / 4;
  for (int i = threadIdx.x; i < kTileRows * quads; i += blockDim.x) {
    const int row = item.first_row + i / quads;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row < num_rows) {
      const int head = item.head * call.group() + row % call.group();
      x = load4(call.query, call.data_type,
                call.query_offset(item.sequence, row / call.group(), head) + i % quads * 4);
    }
    reinterpret_cast<float4*>(staged)[i] =
        make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
  }
}

// Multiplies rows [count, D] with the block-Hadamard matrix of core/rotate.h, all threads of the
// block; the caller has met at a barrier, and does so after it.
GEAR_DEVICE void rotate_rows(float* rows, int count, int head_dim) {
  const int block = hadamard_block(head_dim);
  const int pairs = count * head_dim / 2;
  for (int width = 1; width < block; width *= 2) {
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
      float* low = rows + i / width * 2 * width + i % width;
      const float x = low[0];
      const float y = low[width];
      low[0] = x + y;
      low[width] = x - y;
    }
    __syncthreads();
  }
  const float norm = rsqrtf(static_cast<float>(block));
  for (int i = threadIdx.x; i < 2 * pairs; i += blockDim.x) rows[i] *= norm;
}

GEAR_DEVICE void make_query_fragments(const float* staged, int head_dim, uint4* fragments) {
  for (int i = threadIdx.x; i < head_dim / 16 * kWarpLanes; i += blockDim.x) {
    const int lane = i % kWarpLanes;
    const int channel = i / kWarpLanes * 16 + lane % 4 * 4;
    const float4 x = *reinterpret_cast<const float4*>(staged + lane / 4 * head_dim + channel);
    const Quad high = round_quad(x);
    const Quad low = round_rest(x, high);
    fragments[i] = make_uint4(high.even, high.odd, low.even, low.odd);
  }
}

}  // namespace gear::cuda
