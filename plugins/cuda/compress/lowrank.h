// The low-rank factors of a tile's quantization error E [C, D] (gear_trt/reference/lowrank.py):
//
//   B = orthonormalize(Eᵀ A), A = E B, `power_iters` times from a fixed ±1 matrix A;
//   A [C, columns] are the token factors, B [D, columns] the channel factors, columns ≥ rank.
//
// Sums have a fixed order: the same page gives the same bytes.
#pragma once

#include "core/lowrank.h"
#include "core/half.h"
#include "cuda/compress/tile.h"

namespace gear::cuda {

// target [length, kColumns] = M [length, inner] · factors [inner, kColumns], where element (i, k)
// of M is x[i · stride + k · inner_stride]. Ends with a barrier.
template <int kColumns>
GEAR_DEVICE void project(const float* x, int length, int stride, int inner, int inner_stride,
                         const float* factors, float* partials, float* target) {
  const int thread = static_cast<int>(threadIdx.x);
  const int parts = max(1, kCompressThreads / length);
  const int share = (inner + parts - 1) / parts;
  const int i = thread % length;
  const int part = thread / length;
  if (part < parts) {
    float sums[kColumns] = {};
    const int end = min(inner, (part + 1) * share);
    for (int k = part * share; k < end; ++k) {
      const float element = x[i * stride + k * inner_stride];
      const float* row = factors + k * kColumns;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums[j] = fmaf(element, row[j], sums[j]);
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) partials[thread * kColumns + j] = sums[j];
  }
  __syncthreads();
  for (int e = thread; e < length * kColumns; e += kCompressThreads) {
    float sum = partials[e];
    for (int p = 1; p < parts; ++p) sum += partials[p * length * kColumns + e];
    target[e] = sum;
  }
  __syncthreads();
}

template <int kCount>
GEAR_DEVICE void warp_sums(float (&x)[kCount]) {
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] += __shfl_xor_sync(~0u, x[i], flip);
  }
}

// Gram-Schmidt, twice per column; a column that vanishes becomes 0. One warp; its sums of one pass
// run side by side.
template <int kColumns>
GEAR_DEVICE void orthonormalize(float* channels, int rank, int length) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = 0; j < rank; ++j) {
    float before = 0.0f;
    float norm = 0.0f;
    for (int pass = 0; pass < 3; ++pass) {
      // Products with the columns before; the last one is the column's with itself.
      float sums[kColumns + 1] = {};
      for (int d = lane; d < length; d += 32) {
        const float* row = channels + d * kColumns;
        const float x = row[j];
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          if (i < j) sums[i] = fmaf(row[i], x, sums[i]);
        }
        sums[kColumns] = fmaf(x, x, sums[kColumns]);
      }
      warp_sums(sums);
      norm = sqrtf(sums[kColumns]);
      if (pass == 0) before = norm;
      if (pass == 2) break;
      for (int d = lane; d < length; d += 32) {
        float* row = channels + d * kColumns;
        float x = row[j];
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          if (i < j) x = fmaf(-sums[i], row[i], x);
        }
        row[j] = x;
      }
    }
    const float factor = norm > kVanished * before ? 1.0f / norm : 0.0f;
    for (int d = lane; d < length; d += 32) channels[d * kColumns + j] *= factor;
  }
}

template <int kColumns>
GEAR_DEVICE void fit_factors(const Tile& tile, const PageConfig& config) {
  const int stride = tile_stride(config);
  for (int i = static_cast<int>(threadIdx.x); i < config.chunk * kColumns; i += kCompressThreads) {
    const int column = i % kColumns;
    tile.tokens[i] = column < config.rank ? start_sign(static_cast<uint32_t>(i / kColumns),
                                                       static_cast<uint32_t>(column))
                                          : 0.0f;
  }
  __syncthreads();
  for (int pass = 0; pass < config.power_iters; ++pass) {
    project<kColumns>(tile.x, config.head_dim, 1, config.chunk, stride, tile.tokens, tile.partials,
                      tile.channels);
    if (threadIdx.x < 32) orthonormalize<kColumns>(tile.channels, config.rank, config.head_dim);
    __syncthreads();
    project<kColumns>(tile.x, config.chunk, stride, config.head_dim, 1, tile.channels,
                      tile.partials, tile.tokens);
  }
}

// Stores one column of factors and replaces it by what was stored, in units of the value that is
// returned. One warp.
GEAR_DEVICE float store_factor(float* column, int columns, int length, int bits, int index,
                               int32_t* field) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (bits == 16) {
    auto* halves = reinterpret_cast<uint16_t*>(field) + index * length;
    for (int i = lane; i < length; i += 32) {
      halves[i] = half_nearest(column[i * columns]);
      column[i * columns] = half_to_float(halves[i]);
    }
    return 1.0f;
  }
  const float top = static_cast<float>((1 << (bits - 1)) - 1);
  float most = 0.0f;
  for (int i = lane; i < length; i += 32) most = fmaxf(most, fabsf(column[i * columns]));
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, flip));
  const float unit = most / top;
  const float inverse = unit > 0.0f ? 1.0f / unit : 0.0f;
  auto* bytes = reinterpret_cast<uint8_t*>(field) + index * length * bits / 8;
  const int step = 8 / bits;  // integers per byte
  for (int i = lane * step; i < length; i += 32 * step) {
    uint32_t byte = 0;
    for (int k = 0; k < step; ++k) {
      float& x = column[(i + k) * columns];
      x = rintf(fminf(fmaxf(x * inverse, -top), top));
      byte |= (static_cast<uint32_t>(static_cast<int>(x)) & ((1u << bits) - 1)) << (bits * k);
    }
    bytes[i / step] = static_cast<uint8_t>(byte);
  }
  return unit;
}

// A warp stores the two factors of a rank; the token factor takes on their scale.
GEAR_DEVICE void store_factors(const Tile& tile, const PageConfig& config, int columns,
                               int32_t* page) {
  const SideLayout& at = tile.side.at;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = static_cast<int>(threadIdx.x) / 32; j < config.rank; j += kCompressThreads / 32) {
    const float token_unit = store_factor(tile.tokens + j, columns, config.chunk,
                                          config.factor_bits, j, page + at.token_factors);
    const float channel_unit = store_factor(tile.channels + j, columns, config.head_dim,
                                            config.factor_bits, j, page + at.channel_factors);
    if (config.factor_bits == 16) continue;
    const uint16_t scale = half_nearest(token_unit * channel_unit);
    if (lane == 0) reinterpret_cast<uint16_t*>(page + at.factor_scales)[j] = scale;
    __syncwarp();
    for (int t = lane; t < config.chunk; t += 32) {
      tile.tokens[t * columns + j] *= half_to_float(scale);
    }
  }
}

// Fits and stores. Ends with a barrier; the factors are then what the page says.
GEAR_DEVICE void correct_low_rank(const Tile& tile, const PageConfig& config, int32_t* page) {
  if (config.rank <= 4) {
    fit_factors<4>(tile, config);
  } else {
    fit_factors<kMaxColumns>(tile, config);
  }
  store_factors(tile, config, factor_columns(config.rank), page);
  __syncthreads();
}

// Deltas and positions of the outliers: value minus everything else that the page says.
GEAR_DEVICE void store_outliers(const Tile& tile, const PageConfig& config, int32_t* page) {
  auto* deltas = reinterpret_cast<uint16_t*>(page + tile.side.at.outlier_deltas);
  auto* indices = reinterpret_cast<uint8_t*>(page + tile.side.at.outlier_indices);
  const int columns = factor_columns(config.rank);
  const int count = tile.side.vectors * config.outliers;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const int vector = i / config.outliers;
    const int lane = tile.positions[i];
    const float* token = tile.tokens + (tile.side.is_key ? lane : vector) * columns;
    const float* channel = tile.channels + (tile.side.is_key ? vector : lane) * columns;
    float low_rank = 0.0f;
    for (int j = 0; j < config.rank; ++j) low_rank = fmaf(token[j], channel[j], low_rank);
    deltas[i] = half_nearest(tile.deltas[i] - low_rank);
    indices[i] = static_cast<uint8_t>(lane);
  }
}

}  // namespace gear::cuda
