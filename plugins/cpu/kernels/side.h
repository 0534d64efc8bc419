// One side of a page, K and V alike: x[vector][lane], quantized by groups of lanes.
//
//   K: lane = token,   vector = channel.
//   V: lane = channel, vector = token.
//
// Shapes: V vectors, L lanes, scales and mins [groups, V], outliers [V, O].
#pragma once

#include "cpu/kernels.h"

namespace gear::cpu::GEAR_ISA {

// Pages that a product takes together.
struct PageBatch {
  const int32_t* pages[kPageBatch];
  const int32_t* next[kPageBatch];  // those that are needed after these
  int count;
};

struct Side {
  bool is_key;
  int bits;
  int lanes;
  int vectors;
  int lane_factors;    // offset of the factors [rank, L]
  int vector_factors;  // offset of the factors [rank, V]
  SideLayout at;
  PageConfig config;
};

static inline Side make_side(const PageShape& shape, bool is_key) {
  const PageConfig& config = shape.config;
  const SideLayout& at = is_key ? shape.layout.key : shape.layout.value;
  return {is_key,
          is_key ? config.key_bits : config.value_bits,
          is_key ? config.chunk : config.head_dim,
          is_key ? config.head_dim : config.chunk,
          is_key ? at.token_factors : at.channel_factors,
          is_key ? at.channel_factors : at.token_factors,
          at,
          config};
}

}  // namespace gear::cpu::GEAR_ISA
