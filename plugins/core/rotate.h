// The block-Hadamard rotation of a head: orthonormal, symmetric, its own inverse.
#pragma once

#include "core/inline.h"

namespace gear {

// Largest power of two that divides head_dim.
GEAR_INLINE int hadamard_block(int head_dim) { return head_dim & -head_dim; }

}  // namespace gear
