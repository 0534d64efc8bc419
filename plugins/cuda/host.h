// What the host does before a launch and after a fault, for every interface to the kernels.
#pragma once

#include "cuda/call.h"

namespace gear::cuda {

Call make_call(const AttentionArgs& args);

// Attributes and sizes.
Error check_call(const Call& call);

Error check_address(const char* name, const void* address, size_t alignment);

// Of the call's arrays.
Error check_addresses(const Call& call);

// What a kernel noted, in words; empty where it noted nothing.
Error describe(const Status& status);

}  // namespace gear::cuda
