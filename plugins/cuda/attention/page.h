// A page where a warp reads it: in the pool, or staged in shared memory with its codes swizzled.
#pragma once

#include "cuda/attention/codes.h"

namespace gear::cuda {

struct PageView {
  const unsigned char* bytes;
  bool is_staged;
};

inline constexpr int kChunkBytes = 16;

// How a page is copied, in chunks: codes of K from its start, codes of V, and all the rest.
struct StagePlan {
  int key_end;
  int key_shift;  // as in codes.h
  int value_first;
  int value_end;
  int value_shift;
  int end;
};

inline StagePlan make_stage_plan(const PageConfig& config, const PageLayout& layout) {
  const int elements = config.chunk * config.head_dim;
  const auto chunks = [&](const SideLayout& at) {
    return at.quantized ? elements * at.plane_bits / 8 / kChunkBytes : 0;
  };
  const int value_first = layout.value.codes * 4 / kChunkBytes;
  return {chunks(layout.key),
          swizzle_shift(lines_of_quad_group(config.chunk, layout.key.plane_bits)),
          value_first,
          value_first + chunks(layout.value),
          swizzle_shift(lines_of_quad_group(config.head_dim, layout.value.plane_bits)),
          layout.page_words * 4 / kChunkBytes};
}

// Starts the copy of chunks first .. end − 1 by one warp, four a lane at a time. What the lane and
// the turn exchange are bits apart.
GEAR_DEVICE void stage_chunks(unsigned char* stage, const unsigned char* page, int first, int end,
                              int shift) {
  constexpr int kTurns = 4;
  constexpr int kTurnBytes = kWarpLanes * kChunkBytes;
  const int lane = lane_id();
  int places[kTurns];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const int number = lane + i * kWarpLanes;
    places[i] = (number ^ (((number >> shift) & 3) << 1)) * kChunkBytes;
  }
  unsigned char* target = stage + first * kChunkBytes;
  const unsigned char* source = page + (first + lane) * kChunkBytes;
  int left = end - first;
#pragma unroll 1
  for (; left >= kTurns * kWarpLanes; left -= kTurns * kWarpLanes) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      cp_async<kChunkBytes>(target + places[i], source + i * kTurnBytes);
    }
    target += kTurns * kTurnBytes;
    source += kTurns * kTurnBytes;
  }
  if (left == 0) return;
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    if (lane + i * kWarpLanes < left) {
      cp_async<kChunkBytes>(target + places[i], source + i * kTurnBytes);
    }
  }
}

GEAR_DEVICE void stage_page(const StagePlan& plan, unsigned char* stage,
                            const unsigned char* page) {
  stage_chunks(stage, page, 0, plan.key_end, plan.key_shift);
  if (plan.key_end < plan.value_first) {
    stage_chunks(stage, page, plan.key_end, plan.value_first, 31);
  }
  stage_chunks(stage, page, plan.value_first, plan.value_end, plan.value_shift);
  stage_chunks(stage, page, plan.value_end, plan.end, 31);
}

}  // namespace gear::cuda
