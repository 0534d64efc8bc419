// Adds up softmax states of the same rows over different tokens, as cpu/kernels/merge.cpp does:
// of a block's warps in shared memory, of blocks through partial results in device memory. In both
// the order is fixed, so that results do not depend on timing.
//
//   largest = max_i largest_i, weight_i = 2^(largest_i − largest),
//   output = Σ_i weight_i · output_i, sum = Σ_i weight_i · sum_i.
#pragma once

#include "cuda/attention/softmax.h"
#include "cuda/attention/work.h"

namespace gear::cuda {

// Of one state in shared or device memory: output [8, D], then largest [8], then sum [8].
GEAR_HOST_DEVICE constexpr int state_floats(int head_dim) { return kTileRows * (head_dim + 2); }

GEAR_DEVICE float* largest_of(float* state, int head_dim) { return state + kTileRows * head_dim; }
GEAR_DEVICE float* sum_of(float* state, int head_dim) { return state + kTileRows * (head_dim + 1); }

// The total, one state per warp, and the weights of all of them.
GEAR_HOST_DEVICE constexpr int merge_bytes(int head_dim, int warps) {
  return (warps + 1) * (state_floats(head_dim) + kTileRows) * 4;
}

template <int kBlocks>
GEAR_DEVICE void write_state(const SoftmaxState& state, const float (&output)[kBlocks][4],
                             int head_dim, float* target) {
  const int channel = 2 * lane_row();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = 2 * lane_quad() + i;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      if (m >= head_dim / kBlock) break;
      *reinterpret_cast<float2*>(target + row * head_dim + kBlock * m + channel) =
          make_float2(output[m][i], output[m][i + 2]);
    }
    if (lane_row() == 0) {
      largest_of(target, head_dim)[row] = state.largest[i];
      sum_of(target, head_dim)[row] = state.sum[i];
    }
  }
}

// Weight of a state among those whose largest score is `largest`; it may have seen no token.
GEAR_DEVICE float state_weight(float its_largest, float largest) {
  return its_largest == -INFINITY ? 0.0f : fast_exp2(its_largest - largest);
}

// total = the states [warps] after it, and what it was where `has_total`. All threads, which have
// met at a barrier; they do so again before others read.
GEAR_DEVICE void merge_warps(float* total, bool has_total, int head_dim) {
  const int warps = blockDim.x / kWarpLanes;
  const int stride = state_floats(head_dim);
  float* weights = total + (warps + 1) * stride;  // [warps + 1, 8]
  if (threadIdx.x < kTileRows) {
    const int row = threadIdx.x;
    float largest = -INFINITY;
    for (int i = has_total ? 0 : 1; i <= warps; ++i) {
      largest = fmaxf(largest, largest_of(total + i * stride, head_dim)[row]);
    }
    float sum = 0.0f;
    for (int i = 0; i <= warps; ++i) {
      float* state = total + i * stride;
      const float weight =
          i == 0 && !has_total ? 0.0f : state_weight(largest_of(state, head_dim)[row], largest);
      weights[i * kTileRows + row] = weight;
      if (weight != 0.0f) sum += weight * sum_of(state, head_dim)[row];
    }
    largest_of(total, head_dim)[row] = largest;
    sum_of(total, head_dim)[row] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileRows * head_dim; i += blockDim.x) {
    const int row = i / head_dim;
    float x = 0.0f;
    for (int state = 0; state <= warps; ++state) {
      const float weight = weights[state * kTileRows + row];
      if (weight != 0.0f) x += weight * total[state * stride + i];
    }
    total[i] = x;
  }
}

GEAR_DEVICE void write_partial(const float* total, int head_dim, float* partial) {
  for (int i = threadIdx.x; i < state_floats(head_dim); i += blockDim.x) partial[i] = total[i];
}

// Whether this block is the last one of its item's splits to get here; all others' partial results
// can then be read. The counter is 0 again for the next launch.
GEAR_DEVICE bool is_last_split(int32_t* counter, int splits, int* shared_flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool is_last = atomicAdd(counter, 1) == splits - 1;
    if (is_last) *counter = 0;
    *shared_flag = is_last;
  }
  __syncthreads();
  __threadfence();
  return *shared_flag != 0;
}

// total = the partial results [splits].
GEAR_DEVICE void merge_splits(const float* partials, int splits, int head_dim, float* total) {
  const int stride = state_floats(head_dim);
  const auto largest_at = [&](int split, int row) {
    return __ldcg(partials + split * stride + kTileRows * head_dim + row);
  };
  for (int i = threadIdx.x; i < kTileRows * (head_dim + 1); i += blockDim.x) {
    // The last elements are the sums.
    const bool is_sum = i >= kTileRows * head_dim;
    const int row = is_sum ? i - kTileRows * head_dim : i / head_dim;
    const int place = is_sum ? i + kTileRows : i;
    float largest = -INFINITY;
    for (int split = 0; split < splits; ++split) largest = fmaxf(largest, largest_at(split, row));
    float x = 0.0f;
    for (int split = 0; split < splits; ++split) {
      x +=
          state_weight(largest_at(split, row), largest) * __ldcg(partials + split * stride + place);
    }
    total[place] = x;
    if (is_sum) largest_of(total, head_dim)[row] = largest;
  }
}

// Rows of a finished tile to the call's output.
GEAR_DEVICE void write_output(const AttentionParams& params, const Item& item, const float* total) {
  const Call& call = params.call;
  const int head_dim = call.head_dim();
  const int quads = head_dim / 4;
  const int num_rows = min(kTileRows, call.added(item.sequence) * call.group() - item.first_row);
  const float* sums = total + kTileRows * (head_dim + 1);
  for (int i = threadIdx.x; i < num_rows * quads; i += blockDim.x) {
    const int row = i / quads;
    const int token = (item.first_row + row) / call.group();
    const int head = item.head * call.group() + (item.first_row + row) % call.group();
    const float factor = 1.0f / sums[row];
    const float4 x = reinterpret_cast<const float4*>(total)[i];
    store4(call.output, call.data_type,
           call.query_offset(item.sequence, token, head) + i % quads * 4,
           make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor));
    if (params.log_sum_exp != nullptr && i % quads == 0) {
      constexpr float kLogOf2 = 0.693147181f;
      const float largest = total[kTileRows * head_dim + row];
      params.log_sum_exp[call.query_offset(item.sequence, token, head) / head_dim] =
          kLogOf2 * (largest + log2f(sums[row]) - kWeightExponent);
    }
  }
}

}  // namespace gear::cuda
