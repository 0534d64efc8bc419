// Outliers, ranges, metadata and codes of one tile. They equal the reference's bit for bit
// (gear_trt/reference/quantize.py, outliers.py): every FP32 operation is the reference's, in its
// order, and products that are added to something use __fmul_rn, which is never contracted.
#pragma once

#include "core/fit.h"
#include "core/half.h"
#include "cuda/compress/tile.h"

namespace gear::cuda {

// Lanes that share a vector or a group.
inline constexpr int kSharers = 4;

// The two largest elements, of equal ones the first.
struct Largest {
  float values[2] = {-INFINITY, -INFINITY};
  int positions[2] = {INT32_MAX, INT32_MAX};

  GEAR_DEVICE void insert(float value, int position) {
    if (is_before(value, position, 0)) {
      values[1] = values[0];
      positions[1] = positions[0];
      values[0] = value;
      positions[0] = position;
    } else if (is_before(value, position, 1)) {
      values[1] = value;
      positions[1] = position;
    }
  }

  GEAR_DEVICE bool is_before(float value, int position, int place) const {
    return value > values[place] || (value == values[place] && position < positions[place]);
  }

  // Takes over what the lanes that share a vector have found.
  GEAR_DEVICE void merge() {
#pragma unroll
    for (int flip = 1; flip < kSharers; flip *= 2) {
      float other_values[2];
      int other_positions[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        other_values[i] = __shfl_xor_sync(~0u, values[i], flip);
        other_positions[i] = __shfl_xor_sync(~0u, positions[i], flip);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) insert(other_values[i], other_positions[i]);
    }
  }
};

// The largest elements of sign · x[vector], `skipped` left out; every sharer gets all.
GEAR_DEVICE Largest find_largest(const Tile& tile, int vector, float sign,
                                 const int (&skipped)[2]) {
  Largest found;
  const int share = tile.side.lanes / kSharers;
  const int first = static_cast<int>(threadIdx.x) % kSharers * share;
  for (int lane = first; lane < first + share; ++lane) {
    if (lane != skipped[0] && lane != skipped[1]) {
      found.insert(sign * tile.at(vector, lane), lane);
    }
  }
  found.merge();
  return found;
}

// Positions of every vector's outliers: half of them the largest elements, then the smallest.
GEAR_DEVICE void find_outliers(const Tile& tile, int outliers) {
  const int half = outliers / 2;
  const int count = tile.side.vectors * kSharers;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const int vector = i / kSharers;
    int skipped[2] = {-1, -1};
#pragma unroll 1
    for (int end = 0; end < 2; ++end) {
      const Largest found = find_largest(tile, vector, end == 0 ? 1.0f : -1.0f, skipped);
      skipped[0] = found.positions[0];
      skipped[1] = half > 1 ? found.positions[1] : -1;
      if (i % kSharers != 0) continue;
      uint8_t* positions = tile.positions + vector * outliers + end * half;
      positions[0] = static_cast<uint8_t>(found.positions[0]);
      if (half > 1) positions[1] = static_cast<uint8_t>(found.positions[1]);
    }
  }
}

GEAR_DEVICE bool is_outlier(const Tile& tile, int vector, int lane, int outliers) {
  for (int i = 0; i < outliers; ++i) {
    if (tile.positions[vector * outliers + i] == lane) return true;
  }
  return false;
}

// Ranges of all groups, outliers left out: the lows to `scales`, the highs to `mins`.
GEAR_DEVICE void find_ranges(const Tile& tile, const PageConfig& config) {
  const Side& side = tile.side;
  const int count = side.at.groups * side.vectors * kSharers;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const int entry = i / kSharers;
    const int vector = entry % side.vectors;
    const int start = entry / side.vectors * config.group_size;
    const int share = min(config.group_size, side.lanes - start) / kSharers;
    const int first = start + i % kSharers * share;
    float low = INFINITY;
    float high = -INFINITY;
    for (int lane = first; lane < first + share; ++lane) {
      if (is_outlier(tile, vector, lane, config.outliers)) continue;
      const float x = tile.at(vector, lane);
      low = fminf(low, x);
      high = fmaxf(high, x);
    }
#pragma unroll
    for (int flip = 1; flip < kSharers; flip *= 2) {
      low = fminf(low, __shfl_xor_sync(~0u, low, flip));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, flip));
    }
    if (i % kSharers != 0) continue;
    tile.scales[entry] = low;
    tile.mins[entry] = high;
  }
}

GEAR_DEVICE float clip(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

// Sums over `length` elements of a vector, outliers left out.
GEAR_DEVICE FitSums sum_for_fit(const Tile& tile, const PageConfig& config, int vector, int first,
                                int length, Range range, float top_code) {
  const float units = kFitUnits;
  const float step = __fdiv_rn(range.high - range.low, top_code);
  const float inverse = step > 0.0f ? __fdiv_rn(1.0f, step) : 0.0f;
  FitSums sums{};
  for (int lane = first; lane < first + length; ++lane) {
    if (is_outlier(tile, vector, lane, config.outliers)) continue;
    const float u = __fmul_rn(tile.at(vector, lane) - range.low, inverse);
    const float c = rintf(clip(u, 0.0f, top_code));
    const float r = rintf(clip((u - c) * units, 1.0f - units, units - 1.0f));
    sums.n += 1.0f;
    sums.c += c;
    sums.r += r;
    sums.cc += c * c;
    sums.cr += c * r;
    sums.rr += r * r;
  }
  return sums;
}

// Adds up what the lanes that share a group have summed.
GEAR_DEVICE void merge(FitSums& sums) {
#pragma unroll
  for (int flip = 1; flip < kSharers; flip *= 2) {
    sums.n += __shfl_xor_sync(~0u, sums.n, flip);
    sums.c += __shfl_xor_sync(~0u, sums.c, flip);
    sums.r += __shfl_xor_sync(~0u, sums.r, flip);
    sums.cc += __shfl_xor_sync(~0u, sums.cc, flip);
    sums.cr += __shfl_xor_sync(~0u, sums.cr, flip);
    sums.rr += __shfl_xor_sync(~0u, sums.rr, flip);
  }
}

// Fits the ranges of all groups to their values.
GEAR_DEVICE void fit_ranges(const Tile& tile, const PageConfig& config, float top_code) {
  const Side& side = tile.side;
  const int count = side.at.groups * side.vectors * kSharers;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const int entry = i / kSharers;
    const int vector = entry % side.vectors;
    const int start = entry / side.vectors * config.group_size;
    const int share = min(config.group_size, side.lanes - start) / kSharers;
    const int first = start + i % kSharers * share;
    Range range = {tile.scales[entry], tile.mins[entry]};
    const bool is_constant = range.low == range.high;
#pragma unroll 1
    for (int pass = 0; pass < kFitPasses; ++pass) {
      FitSums sums = sum_for_fit(tile, config, vector, first, share, range, top_code);
      merge(sums);
      range = fitted_range(range, sums, top_code, pass);
    }
    __syncwarp();  // the other lanes have read the range
    if (i % kSharers != 0 || is_constant) continue;
    tile.scales[entry] = range.low;
    tile.mins[entry] = range.high;
  }
}

GEAR_DEVICE void set_entry(const Tile& tile, int entry, float scale, float min) {
  tile.scales[entry] = scale;
  tile.mins[entry] = min;
  tile.inverses[entry] = scale > 0.0f ? __fdiv_rn(1.0f, scale) : 0.0f;
}

// FP16 scales and mins: mins round down, scales round up, so that ranges never shrink.
GEAR_DEVICE void encode_halves(const Tile& tile, float top_code, int32_t* page) {
  auto* scale_halves = reinterpret_cast<uint16_t*>(page + tile.side.at.scales);
  auto* min_halves = reinterpret_cast<uint16_t*>(page + tile.side.at.mins);
  const int count = tile.side.at.groups * tile.side.vectors;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const float low = tile.scales[i];
    const float high = tile.mins[i];
    const bool is_constant = low == high;
    const uint16_t min_half = is_constant ? half_nearest(low) : half_down(low);
    const float min = half_to_float(min_half);
    const float step = is_constant ? 0.0f : __fdiv_rn(high - min, top_code);
    const uint16_t scale_half = half_up(step);
    min_halves[i] = min_half;
    scale_halves[i] = scale_half;
    set_entry(tile, i, half_to_float(scale_half), min);
  }
}

GEAR_DEVICE float warp_max(float x) {
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, flip));
  return x;
}

// Two-level mins, then scales that cover the ranges from there: one warp per super-block.
GEAR_DEVICE void encode_two_level(const Tile& tile, float top_code, int32_t* page) {
  static_assert(kSuperBlock == 32, "one lane per entry");
  auto* scales = reinterpret_cast<uint8_t*>(page + tile.side.at.scales);
  auto* mins = reinterpret_cast<int8_t*>(page + tile.side.at.mins);
  auto* super_scales = reinterpret_cast<uint16_t*>(page + tile.side.at.super_scales);
  auto* super_mins = reinterpret_cast<uint16_t*>(page + tile.side.at.super_mins);
  const int count = tile.side.at.groups * tile.side.vectors;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int block = static_cast<int>(threadIdx.x) / 32; block < tile.side.at.supers;
       block += kCompressThreads / 32) {
    const int i = block * kSuperBlock + lane;
    const bool is_entry = i < count;
    const float low = is_entry ? tile.scales[i] : 0.0f;
    const float high = is_entry ? tile.mins[i] : 0.0f;
    const bool is_constant = low == high;

    const uint16_t super_min = half_up(__fdiv_rn(warp_max(fabsf(low)), 127.0f));
    const float min_unit = half_to_float(super_min);
    const float min_ratio = min_unit > 0.0f ? __fdiv_rn(low, min_unit) : 0.0f;
    const float min_integer =
        clip(is_constant ? rintf(min_ratio) : floorf(min_ratio), -128.0f, 127.0f);
    const float min = __fmul_rn(min_integer, min_unit);

    const float step = is_constant ? 0.0f : __fdiv_rn(high - min, top_code);
    const uint16_t super_scale = half_up(__fdiv_rn(warp_max(step), 255.0f));
    const float unit = half_to_float(super_scale);
    const float ratio = unit > 0.0f ? __fdiv_rn(step, unit) : 0.0f;
    const float integer = clip(ceilf(ratio), 0.0f, 255.0f);

    if (lane == 0) {
      super_mins[block] = super_min;
      super_scales[block] = super_scale;
    }
    if (!is_entry) continue;
    mins[i] = static_cast<int8_t>(min_integer);
    scales[i] = static_cast<uint8_t>(integer);
    set_entry(tile, i, __fmul_rn(integer, unit), min);
  }
}

// Rounds an element to its code and leaves its quantization error in its place.
GEAR_DEVICE uint32_t quantize_element(const Tile& tile, const PageConfig& config, float top_code,
                                      int vector, int lane) {
  const int entry = lane / config.group_size * tile.side.vectors + vector;
  float& x = tile.at(vector, lane);
  const float min = tile.mins[entry];
  const float code = rintf(clip((x - min) * tile.inverses[entry], 0.0f, top_code));
  x = x - __fadd_rn(__fmul_rn(code, tile.scales[entry]), min);
  return static_cast<uint32_t>(code);
}

// Eight units of the code order (gear_trt/spec/layout.py) fill whole words at every width: a
// thread makes their words of one lane of the line.
GEAR_DEVICE void quantize_and_pack(const Tile& tile, const PageConfig& config, float top_code,
                                   int32_t* page) {
  const Side& side = tile.side;
  const int blocks = side.lanes / kLanes;
  const int bits = side.at.plane_bits;
  const int units_per_word = 8 / bits;
  const int count = side.lanes * side.vectors / 32;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    const int lane_in_line = i % kLanes;
    const int first_unit = i / kLanes * 8;
    uint32_t word = 0;
    uint32_t high_word = 0;
#pragma unroll 1
    for (int j = 0; j < 8; ++j) {
      const int unit = first_unit + j;
      const int lane = unit % blocks * kLanes + lane_in_line;
      uint32_t codes = 0;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int vector = unit / blocks * 4 + q;
        codes |= quantize_element(tile, config, top_code, vector, lane) << (8 * q);
      }
      const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
      word |= (codes & mask) << (bits * (unit % units_per_word));
      high_word |= (codes >> 2 & 0x01010101u) << j;
      if (unit % units_per_word != units_per_word - 1) continue;
      page[side.at.codes + unit / units_per_word * kLanes + lane_in_line] =
          static_cast<int32_t>(word);
      word = 0;
    }
    if (side.bits == 3) {
      page[side.at.codes_high + first_unit / 8 * kLanes + lane_in_line] =
          static_cast<int32_t>(high_word);
    }
  }
}

// Takes the errors at outlier slots out of the tile: to `deltas`, 0 in their place.
GEAR_DEVICE void take_outliers(const Tile& tile, int outliers) {
  const int count = tile.side.vectors * outliers;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kCompressThreads) {
    float& error = tile.at(i / outliers, tile.positions[i]);
    tile.deltas[i] = error;
    error = 0.0f;
  }
}

}  // namespace gear::cuda
