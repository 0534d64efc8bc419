// One side (K or V) of one page while a block of threads compresses it.
//
//   The tile x holds the rows [C, D] in FP32, first as they come, then rotated, then the
//   quantization error. V vectors of L elements are its columns (K) or its rows (V):
//
//     K: vector = channel, lane = token.
//     V: vector = token,   lane = channel.
//
//   Rows lie D + 1 floats apart, so that neither walk meets one bank of shared memory twice.
#pragma once

#include "core/rotate.h"
#include "cuda/device.h"

namespace gear::cuda {

inline constexpr int kCompressThreads = 256;
inline constexpr int kMaxRank = 8;
// Columns of low-rank factors that lie together and load as one vector.
inline constexpr int kColumns = 4;

struct Side {
  bool is_key;
  bool is_rotated;
  int bits;
  int vectors;
  int lanes;
  int vector_stride;
  int lane_stride;
  const SideLayout& at;
};

GEAR_INLINE int tile_stride(const PageConfig& config) { return config.head_dim + 1; }
GEAR_INLINE int tile_floats(const PageConfig& config) {
  return (config.chunk * tile_stride(config) + 3) / 4 * 4;
}

GEAR_INLINE Side make_side(const PageConfig& config, const PageLayout& layout, bool is_key) {
  const int stride = tile_stride(config);
  return {is_key,
          (is_key ? config.rotate_keys : config.rotate_values) != 0,
          is_key ? config.key_bits : config.value_bits,
          is_key ? config.head_dim : config.chunk,
          is_key ? config.chunk : config.head_dim,
          is_key ? 1 : stride,
          is_key ? stride : 1,
          is_key ? layout.key : layout.value};
}

// Of [rank] factors of some length: [ceil(rank / kColumns), length, kColumns].
GEAR_INLINE int factor_blocks(int rank) { return (rank + kColumns - 1) / kColumns; }
GEAR_INLINE int factor_place(int column, int index, int length) {
  return (column / kColumns * length + index) * kColumns + column % kColumns;
}

// Where the parts of a block's memory lie, in floats from its start. Sizes fit both sides.
struct TilePlan {
  int scales;     // [groups, V]; first the lows of the ranges
  int mins;       // [groups, V]; first the highs
  int inverses;   // [groups, V]
  int deltas;     // [V, O]
  int positions;  // [V, O] bytes
  int tokens;     // token factors
  int channels;   // channel factors
  int partials;   // [threads, kColumns]
  int x;          // tile_floats(), last: it may lie elsewhere
  int end;
};

GEAR_INLINE TilePlan plan_tile(const PageConfig& config) {
  const int entries = config.chunk * config.head_dim / 32 + (config.chunk + config.head_dim);
  const int vectors = config.chunk > config.head_dim ? config.chunk : config.head_dim;
  const int columns = factor_blocks(config.rank) * kColumns;
  TilePlan plan{};
  plan.scales = 0;
  plan.mins = plan.scales + entries;
  plan.inverses = plan.mins + entries;
  plan.deltas = plan.inverses + entries;
  plan.positions = plan.deltas + vectors * config.outliers;
  plan.tokens = plan.positions + vectors * config.outliers / 4;
  plan.channels = plan.tokens + config.chunk * columns;
  plan.partials = plan.channels + config.head_dim * columns;
  plan.x = plan.partials + (config.rank > 0 ? kCompressThreads * kColumns : 0);
  plan.end = plan.x + tile_floats(config);
  return plan;
}

// What a block works with.
struct Tile {
  Side side;
  float* x;
  float* scales;
  float* mins;
  float* inverses;
  float* deltas;
  uint8_t* positions;
  float* tokens;
  float* channels;
  float* partials;

  GEAR_DEVICE float& at(int vector, int lane) const {
    return x[vector * side.vector_stride + lane * side.lane_stride];
  }
};

// Butterflies of width 1, 2, 4, ... in the reference's order.
template <int kCount>
GEAR_DEVICE void butterflies(float (&x)[kCount]) {
#pragma unroll
  for (int width = 1; width < kCount; width *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i & width) continue;
      const float low = x[i];
      const float high = x[i + width];
      x[i] = low + high;
      x[i + width] = low - high;
    }
  }
}

// `kCount` channels of a row, `stride` apart: load, transform, scale, store.
template <int kCount>
GEAR_DEVICE void rotate_part(float* row, int stride, float factor) {
  float part[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) part[i] = row[i * stride];
  butterflies(part);
#pragma unroll
  for (int i = 0; i < kCount; ++i) row[i * stride] = part[i] * factor;
}

// Butterflies of width `width` to kCount / 2 · width: channels that are `width` apart.
template <int kCount>
GEAR_DEVICE void rotate_wide(const PageConfig& config, float* x, int width, float factor) {
  const int parts = config.head_dim / kCount;
  for (int i = static_cast<int>(threadIdx.x); i < config.chunk * parts; i += kCompressThreads) {
    const int token = i % config.chunk;
    const int part = i / config.chunk;
    const int channel = part / width * (width * kCount) + part % width;
    rotate_part<kCount>(x + token * tile_stride(config) + channel, width, factor);
  }
}

// Rotates the rows of the tile. Ends with a barrier.
GEAR_DEVICE void rotate_tile(const PageConfig& config, float* x) {
  const int block = hadamard_block(config.head_dim);
  const float norm = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(block)));
  rotate_wide<16>(config, x, 1, block == 16 ? norm : 1.0f);
  __syncthreads();
  for (int width = 16; width < block;) {
    const int ways = block / width >= 4 ? 4 : 2;
    const float factor = width * ways == block ? norm : 1.0f;
    if (ways == 4) {
      rotate_wide<4>(config, x, width, factor);
    } else {
      rotate_wide<2>(config, x, width, factor);
    }
    __syncthreads();
    width *= ways;
  }
}

}  // namespace gear::cuda
