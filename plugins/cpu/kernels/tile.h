// Decoding one side of a page to FP32, for many rows to share.
#pragma once

#include "cpu/kernels/codes.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/metadata.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/side.h"

namespace gear::cpu::GEAR_ISA {

// tile[v][l] = code · scale + min.
template <int kBits>
static inline void decode_codes(const Side& side, const int32_t* page, const float* scales,
                                const float* mins, float* tile) {
  const CodePlanes planes = code_planes(side, page, page);
  const int blocks = side.lanes / kLineWords;
  for (int v = 0; v < side.vectors; v += 4) {
    for (int l = 0; l < side.lanes; l += kWidth) {
      const Words codes = load_unit<kBits>(planes, v / 4 * blocks + l / kLineWords, l % kLineWords);
      const int entry = l / side.config.group_size * side.vectors + v;
      for_each_vector([&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        store(tile + (v + kVector) * side.lanes + l,
              unit_vector<kVector>(codes) * scales[entry + kVector] + mins[entry + kVector]);
      });
    }
  }
}

static inline void add_outliers(const Side& side, const int32_t* page, float* tile) {
  const auto* deltas = reinterpret_cast<const uint16_t*>(page + side.at.outlier_deltas);
  const auto* indices = reinterpret_cast<const uint8_t*>(page + side.at.outlier_indices);
  const int outliers = side.config.outliers;
  for (int i = 0; i < side.vectors * outliers; ++i) {
    tile[i / outliers * side.lanes + indices[i]] += half_to_float(deltas[i]);
  }
}

// tile [V, L] of a pass-through side, stored as [chunk, head_dim]; `rows` is memory for that.
static inline void decode_exact(const Side& side, const int32_t* page, float* rows, float* tile) {
  const PageConfig& config = side.config;
  const DataType type = side.bits == 32 ? DataType::kFloat32 : DataType::kFloat16;
  if (!side.is_key) {
    return convert(page + side.at.exact, type, tile, DataType::kFloat32,
                   config.chunk * config.head_dim);
  }
  convert(page + side.at.exact, type, rows, DataType::kFloat32, config.chunk * config.head_dim);
  transpose_matrix({rows, config.head_dim}, {tile, config.chunk}, config.chunk, config.head_dim);
}

// tile [V, L], still rotated.
static inline void decode_side(const Side& side, const int32_t* page, AttendScratch& scratch,
                               float* tile) {
  if (!side.at.quantized) return decode_exact(side, page, scratch.rows, tile);
  decode_metadata(side, page, scratch.scales, scratch.mins);
  with_bits(side.bits, [&](auto bits) {
    decode_codes<decltype(bits)::value>(side, page, scratch.scales, scratch.mins, tile);
  });
  add_low_rank(side, page, tile);
  add_outliers(side, page, tile);
}

}  // namespace gear::cpu::GEAR_ISA
