// How shared device and kernel code is declared.
#pragma once

#include "gear/generated/spec.h"

// Internal linkage on purpose: kernels are compiled for several instruction sets, and the linker
// must not replace one set's copy of a function by another's.
#define GEAR_INLINE GEAR_HOST_DEVICE static inline
