// Memory that each thread allocates once and keeps.
#pragma once

#include <memory>

#include "cpu/kernels.h"

namespace gear::cpu {

// Rows of one chunk in the buffer's type, which has at most four bytes.
struct alignas(64) GatheredRows {
  char keys[kMaxTile * 4];
  char values[kMaxTile * 4];
};

template <typename Scratch>
Scratch& thread_scratch() {
  // Uninitialized on purpose: only what a call uses is ever touched.
  thread_local const std::unique_ptr<Scratch> scratch(new Scratch);
  return *scratch;
}

}  // namespace gear::cpu
