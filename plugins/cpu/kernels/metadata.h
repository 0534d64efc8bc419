// Scales, mins and factors of a page as floats.
#pragma once

#include "cpu/kernels/side.h"
#include "cpu/kernels/simd.h"

namespace gear::cpu::GEAR_ISA {

static inline Floats load_bytes(const uint8_t* source) { return load_unsigned_bytes(source); }
static inline Floats load_bytes(const int8_t* source) { return load_signed_bytes(source); }

// target[i] = entry[i] · super[i / kSuperBlock]; `count` is a multiple of 16.
template <typename Byte>
static inline void decode_two_level(const int32_t* entries, const int32_t* supers, int count,
                                    float* target) {
  const auto* bytes = reinterpret_cast<const Byte*>(entries);
  const auto* units = reinterpret_cast<const uint16_t*>(supers);
  for (int block = 0; block < count; block += kSuperBlock) {
    const float unit = load_half(units[block / kSuperBlock]);
    const int end = count - block < kSuperBlock ? count : block + kSuperBlock;
    for (int i = block; i < end; i += kWidth) store(target + i, load_bytes(bytes + i) * unit);
  }
}

static inline void decode_halves(const void* source, int count, float* target) {
  const auto* halves = static_cast<const uint16_t*>(source);
  for (int i = 0; i < count; i += kWidth) store(target + i, load_halves(halves + i));
}

// Scales and mins [groups, V].
static inline void decode_metadata(const Side& side, const int32_t* page, float* scales,
                                   float* mins) {
  const int count = side.at.groups * side.vectors;
  if (side.config.metadata_bits == 8) {
    decode_two_level<uint8_t>(page + side.at.scales, page + side.at.super_scales, count, scales);
    decode_two_level<int8_t>(page + side.at.mins, page + side.at.super_mins, count, mins);
  } else {
    decode_halves(page + side.at.scales, count, scales);
    decode_halves(page + side.at.mins, count, mins);
  }
}

// Factor `index` of `length` elements at `offset`, without its scale.
static inline void decode_factor(const Side& side, const int32_t* page, int offset, int index,
                                 int length, float* target) {
  const int bits = side.config.factor_bits;
  const auto* source = reinterpret_cast<const uint8_t*>(page + offset) + index * length * bits / 8;
  if (bits == 16) return decode_halves(source, length, target);
  for (int i = 0; i < length; i += kWidth) {
    store(target + i, bits == 8 ? load_bytes(reinterpret_cast<const int8_t*>(source) + i)
                                : load_nibbles(source + i / 2));
  }
}

static inline float factor_scale(const Side& side, const int32_t* page, int index) {
  if (side.config.factor_bits == 16) return 1.0f;
  return load_half(reinterpret_cast<const uint16_t*>(page + side.at.factor_scales)[index]);
}

// tile[v][l] += Σ_j vector_factor[j][v] · scale_j · lane_factor[j][l].
static inline void add_low_rank(const Side& side, const int32_t* page, float* tile) {
  float vector_factor[kMaxVectorLength];
  float lane_factor[kMaxVectorLength];
  for (int j = 0; j < side.config.rank; ++j) {
    decode_factor(side, page, side.vector_factors, j, side.vectors, vector_factor);
    decode_factor(side, page, side.lane_factors, j, side.lanes, lane_factor);
    const float scale = factor_scale(side, page, j);
    for (int v = 0; v < side.vectors; ++v) vector_factor[v] *= scale;
    for (int v = 0; v < side.vectors; ++v) {
      float* row = tile + v * side.lanes;
      for (int l = 0; l < side.lanes; l += kWidth) {
        store(row + l, load_floats(row + l) + vector_factor[v] * load_floats(lane_factor + l));
      }
    }
  }
}

}  // namespace gear::cpu::GEAR_ISA
