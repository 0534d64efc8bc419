// The low-rank factors of a tile's quantization error E [C, D] (gear_trt/reference/lowrank.py):
//
//   B = orthonormalize(Eᵀ A), A = E B, `power_iters` times from a fixed ±1 matrix A;
//   A [C, r] are the token factors, B [D, r] the channel factors.
//
// Sums have a fixed order: the same page gives the same bytes.
#pragma once

#include "core/half.h"
#include "core/lowrank.h"
#include "cuda/compress/tile.h"

namespace gear::cuda {

// target = M [length, inner] · factors, for all blocks of columns; element (i, k) of M is
// x[i · stride + k · inner_stride]. Ends with a barrier.
GEAR_DEVICE void project(const float* x, int length, int stride, int inner, int inner_stride,
                         int blocks, const float* factors, float* partials, float* target) {
  const int thread = static_cast<int>(threadIdx.x);
  const int parts = max(1, kCompressThreads / length);
  const int share = (inner + parts - 1) / parts;
  const int i = thread % length;
  const int part = thread / length;
  for (int block = 0; block < blocks; ++block) {
    if (part < parts) {
      float4 sums = make_float4(0, 0, 0, 0);
      const int end = min(inner, (part + 1) * share);
#pragma unroll 4
      for (int k = part * share; k < end; ++k) {
        const float element = x[i * stride + k * inner_stride];
        const float4 row = reinterpret_cast<const float4*>(factors)[block * inner + k];
        sums.x = fmaf(element, row.x, sums.x);
        sums.y = fmaf(element, row.y, sums.y);
        sums.z = fmaf(element, row.z, sums.z);
        sums.w = fmaf(element, row.w, sums.w);
      }
      reinterpret_cast<float4*>(partials)[thread] = sums;
    }
    __syncthreads();
    const int count = length * kColumns;
    for (int e = thread; e < count; e += kCompressThreads) {
      float sum = partials[e];
      for (int p = 1; p < parts; ++p) sum += partials[p * count + e];
      target[block * count + e] = sum;
    }
    __syncthreads();
  }
}

// Gram-Schmidt, twice per column; a column that vanishes becomes 0. One warp; the sums of one pass
// run side by side.
GEAR_DEVICE void orthonormalize(float* channels, int rank, int length) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = 0; j < rank; ++j) {
    float before = 0.0f;
    float norm = 0.0f;
#pragma unroll 1
    for (int pass = 0; pass < 3; ++pass) {
      // Products with the columns before; the last one is the column's with itself.
      float sums[kMaxRank] = {};
#pragma unroll 1
      for (int d = lane; d < length; d += 32) {
        const float x = channels[factor_place(j, d, length)];
#pragma unroll
        for (int i = 0; i < kMaxRank - 1; ++i) {
          if (i < j) sums[i] = fmaf(channels[factor_place(i, d, length)], x, sums[i]);
        }
        sums[kMaxRank - 1] = fmaf(x, x, sums[kMaxRank - 1]);
      }
#pragma unroll
      for (int flip = 16; flip > 0; flip /= 2) {
#pragma unroll
        for (int i = 0; i < kMaxRank; ++i) sums[i] += __shfl_xor_sync(~0u, sums[i], flip);
      }
      norm = sqrtf(sums[kMaxRank - 1]);
      if (pass == 0) before = norm;
      if (pass == 2) break;
#pragma unroll 1
      for (int d = lane; d < length; d += 32) {
        float x = channels[factor_place(j, d, length)];
#pragma unroll
        for (int i = 0; i < kMaxRank - 1; ++i) {
          if (i < j) x = fmaf(-sums[i], channels[factor_place(i, d, length)], x);
        }
        channels[factor_place(j, d, length)] = x;
      }
    }
    const float factor = norm > kVanished * before ? 1.0f / norm : 0.0f;
    for (int d = lane; d < length; d += 32) channels[factor_place(j, d, length)] *= factor;
    __syncwarp();
  }
}

GEAR_DEVICE void fit_factors(const Tile& tile, const PageConfig& config) {
  const int blocks = factor_blocks(config.rank);
  const int stride = tile_stride(config);
  const int count = config.chunk * blocks * kColumns;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const int column = i % kColumns + i / (config.chunk * kColumns) * kColumns;
    const int token = i / kColumns % config.chunk;
    tile.tokens[i] = column < config.rank
                         ? start_sign(static_cast<uint32_t>(token), static_cast<uint32_t>(column))
                         : 0.0f;
  }
  __syncthreads();
  for (int step = 0; step < 2 * config.power_iters; ++step) {
    const bool to_channels = step % 2 == 0;
    float* factors = to_channels ? tile.tokens : tile.channels;
    float* target = to_channels ? tile.channels : tile.tokens;
    const int length = to_channels ? config.head_dim : config.chunk;
    const int inner = to_channels ? config.chunk : config.head_dim;
    project(tile.x, length, to_channels ? 1 : stride, inner, to_channels ? stride : 1, blocks,
            factors, tile.partials, target);
    if (!to_channels) continue;
    if (threadIdx.x < 32) orthonormalize(tile.channels, config.rank, config.head_dim);
    __syncthreads();
  }
}

// A column; its elements lie kColumns apart.
GEAR_DEVICE float* factor_column(float* factors, int column, int length) {
  return factors + factor_place(column, 0, length);
}

// Stores one column of factors and replaces it by what was stored, in units of the value that is
// returned. One warp.
GEAR_DEVICE float store_factor(float* column, int length, int bits, int index, int32_t* field) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (bits == 16) {
    auto* halves = reinterpret_cast<uint16_t*>(field) + index * length;
    for (int i = lane; i < length; i += 32) {
      halves[i] = half_nearest(column[i * kColumns]);
      column[i * kColumns] = half_to_float(halves[i]);
    }
    return 1.0f;
  }
  const float top = static_cast<float>((1 << (bits - 1)) - 1);
  float most = 0.0f;
  for (int i = lane; i < length; i += 32) most = fmaxf(most, fabsf(column[i * kColumns]));
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, flip));
  __syncwarp();  // all elements have been read
  const float unit = most / top;
  const float inverse = unit > 0.0f ? 1.0f / unit : 0.0f;
  auto* bytes = reinterpret_cast<uint8_t*>(field) + index * length * bits / 8;
  const int step = 8 / bits;  // integers per byte
  for (int i = lane * step; i < length; i += 32 * step) {
    uint32_t byte = 0;
    for (int k = 0; k < step; ++k) {
      float& x = column[(i + k) * kColumns];
      x = rintf(fminf(fmaxf(x * inverse, -top), top));
      byte |= (static_cast<uint32_t>(static_cast<int>(x)) & ((1u << bits) - 1)) << (bits * k);
    }
    bytes[i / step] = static_cast<uint8_t>(byte);
  }
  return unit;
}

// A warp stores the two factors of a rank; the token factor takes on their scale.
GEAR_DEVICE void store_factors(const Tile& tile, const PageConfig& config, int32_t* page) {
  const SideLayout& at = tile.side.at;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = static_cast<int>(threadIdx.x) / 32; j < config.rank; j += kCompressThreads / 32) {
    // Token factor, then channel factor: their units multiply.
    float scale = 1.0f;
#pragma unroll 1
    for (int end = 0; end < 2; ++end) {
      const int length = end == 0 ? config.chunk : config.head_dim;
      float* column = factor_column(end == 0 ? tile.tokens : tile.channels, j, length);
      const int field = end == 0 ? at.token_factors : at.channel_factors;
      scale *= store_factor(column, length, config.factor_bits, j, page + field);
    }
    if (config.factor_bits == 16) continue;
    const uint16_t half = half_nearest(scale);
    if (lane == 0) reinterpret_cast<uint16_t*>(page + at.factor_scales)[j] = half;
    __syncwarp();
    float* column = factor_column(tile.tokens, j, config.chunk);
    for (int t = lane; t < config.chunk; t += 32) column[t * kColumns] *= half_to_float(half);
  }
}

// Fits and stores. Ends with a barrier; the factors are then what the page says.
GEAR_DEVICE void correct_low_rank(const Tile& tile, const PageConfig& config, int32_t* page) {
  fit_factors(tile, config);
  store_factors(tile, config, page);
  __syncthreads();
}

// Deltas and positions of the outliers: value minus everything else that the page says.
GEAR_DEVICE void store_outliers(const Tile& tile, const PageConfig& config, int32_t* page) {
  auto* deltas = reinterpret_cast<uint16_t*>(page + tile.side.at.outlier_deltas);
  auto* indices = reinterpret_cast<uint8_t*>(page + tile.side.at.outlier_indices);
  const int count = tile.side.vectors * config.outliers;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const int vector = i / config.outliers;
    const int lane = tile.positions[i];
    const int token = tile.side.is_key ? lane : vector;
    const int channel = tile.side.is_key ? vector : lane;
    float low_rank = 0.0f;
    for (int j = 0; j < config.rank; ++j) {
      low_rank = fmaf(tile.tokens[factor_place(j, token, config.chunk)],
                      tile.channels[factor_place(j, channel, config.head_dim)], low_rank);
    }
    deltas[i] = half_nearest(tile.deltas[i] - low_rank);
    indices[i] = static_cast<uint8_t>(lane);
  }
}

}  // namespace gear::cuda
