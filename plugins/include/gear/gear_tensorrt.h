// C interface of libgear_trt_plugins beside what TensorRT itself looks up in it (getCreators,
// setLoggerFinder). Nothing here throws or aborts.
#pragma once

#include "gear/gear.h"

#ifdef __cplusplus
extern "C" {
#endif

// Hash of the page layout and the op that this library was built for.
GEAR_EXPORT const char* gear_tensorrt_layout_hash(void);

// JSON: version, layout hash, compiler, architectures.
GEAR_EXPORT const char* gear_tensorrt_build_info(void);

// What was wrong with the data (lengths, slots, page ids, values that are not finite) of enqueued
// layers since the last time, of all engines that use this library; then forgets it. To be called
// after the engines' streams have been waited for; it waits for nothing and copies nothing. Gives 0
// where nothing was wrong; else 1, with one line of text in `error`, cut to `error_size` bytes with
// its terminator.
GEAR_EXPORT int gear_tensorrt_status(char* error, size_t error_size);

#ifdef __cplusplus
}
#endif
