// Refuses a call before anything is written.
#pragma once

#include "cpu/call.h"

namespace gear::cpu {

// Lengths, slots and page ids in range, and new keys and values that the cache can hold.
Error validate(const Call& call, const Kernels& kernels);

}  // namespace gear::cpu
