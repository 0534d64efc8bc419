// Writes the new tokens into the cache.
#pragma once

#include "cpu/call.h"

namespace gear::cpu {

// Compresses every chunk that becomes full, then writes the buffer rows. A chunk that is filled in
// one call becomes the same bytes as when its tokens come one at a time.
void append(const Call& call, const Kernels& kernels, const ParallelFor& parallel_for);

}  // namespace gear::cpu
