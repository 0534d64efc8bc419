// A page where a warp reads it: in the pool, or staged in shared memory with its codes swizzled.
#pragma once

#include "cuda/attention/codes.h"

namespace gear::cuda {

struct PageView {
  const unsigned char* bytes;
  bool is_staged;
};

inline constexpr int kChunkBytes = 16;

// Chunks first .. end − 1 of a page, by one warp; `shift` as in codes.h.
GEAR_DEVICE void stage_chunks(unsigned char* stage, const unsigned char* page, int first, int end,
                              int shift) {
  for (int i = lane_id(); i < end - first; i += kWarpLanes) {
    cp_async<kChunkBytes>(stage + (first + swizzled_chunk(i, shift)) * kChunkBytes,
                          page + (first + i) * kChunkBytes);
  }
}

// Starts the copy of a page by one warp.
GEAR_DEVICE void stage_page(unsigned char* stage, const unsigned char* page,
                            const PageLayout& layout, const PageConfig& config) {
  const int elements = config.chunk * config.head_dim;
  const int value_first = layout.value.codes / 4;
  int key_end = 0;
  if (layout.key.quantized) {
    const int bits = layout.key.plane_bits;
    key_end = elements * bits / 8 / kChunkBytes;
    stage_chunks(stage, page, 0, key_end, swizzle_shift(config.chunk, bits));
  }
  stage_chunks(stage, page, key_end, value_first, 31);
  int value_end = value_first;
  if (layout.value.quantized) {
    const int bits = layout.value.plane_bits;
    value_end += elements * bits / 8 / kChunkBytes;
    stage_chunks(stage, page, value_first, value_end, swizzle_shift(config.head_dim, bits));
  }
  stage_chunks(stage, page, value_end, layout.page_words / 4, 31);
}

}  // namespace gear::cuda
