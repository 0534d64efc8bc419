// Where the token at a position of its sequence is stored (gear_trt/reference/cache.py).
#pragma once

#include "core/inline.h"

namespace gear {

// Tokens of a sequence of `length` that stay in the buffer's first rows for ever.
GEAR_INLINE int num_sinks(const PageConfig& config, int length) {
  return length < config.sinks ? length : config.sinks;
}

// Full pages of a sequence of `length` tokens.
GEAR_INLINE int num_pages(const PageConfig& config, int length) {
  return length > config.sinks ? (length - config.sinks) / config.chunk : 0;
}

GEAR_INLINE int page_start(const PageConfig& config, int page) {
  return config.sinks + page * config.chunk;
}

// Row of the residual buffer that the token at `position` is written to.
GEAR_INLINE int buffer_row(const PageConfig& config, int position) {
  if (position < config.sinks) return position;
  return config.sinks + (position - config.sinks) % config.chunk;
}

// First position that a query at `position` sees through a sliding window; 0 means no window.
GEAR_INLINE int first_visible(int position, int sliding_window) {
  return sliding_window == 0 || position < sliding_window ? 0 : position + 1 - sliding_window;
}

// Whether every token of a page lies before `position`.
GEAR_INLINE bool is_before(const PageConfig& config, int page, int position) {
  return page_start(config, page) + config.chunk <= position;
}

}  // namespace gear
