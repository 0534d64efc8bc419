// C interface of libgear_cuda: GearAttention on an NVIDIA GPU. Nothing here throws or aborts, waits
// for the GPU (but gear_cuda_status), or reads device memory on the host, so that every call can be
// captured in a CUDA graph. `stream` is a cudaStream_t; the current device is used.
#pragma once

#include "gear/gear.h"

#ifdef __cplusplus
extern "C" {
#endif

// Functions that return int give 0 on success; else 1, with one line of text in `error`, cut to
// `error_size` bytes with its terminator. They check what the host knows: attributes and sizes.
// What only the device sees (lengths, slots, page ids, values that are not finite) makes the
// kernels skip what it touches and leave a note in the workspace, which gear_cuda_status reads.

// Hash of the page layout and the op that this library was built for.
GEAR_EXPORT const char* gear_cuda_layout_hash(void);

// JSON: version, layout hash, compiler, architectures.
GEAR_EXPORT const char* gear_cuda_build_info(void);

// Bytes of workspace that this call needs on the current device; 0 where the call is refused. Only
// the call's sizes and attributes count. A larger workspace will do, also for a smaller call.
GEAR_EXPORT size_t gear_cuda_workspace_bytes(const GearAttentionCall* call);

// Attends, appends and compresses, in stream order. The call's arrays lie in device memory, aligned
// to 16 bytes; `page_config` in host memory; `num_threads` is ignored. `workspace` is device
// memory, aligned to 256 bytes, that was filled with zeros once, before its first use: calls on one
// stream share it, calls on several must not. `log_sum_exp` is float [batch, seq_len, num_heads],
// or NULL.
GEAR_EXPORT int gear_cuda_attention(const GearAttentionCall* call, void* workspace,
                                    size_t workspace_bytes, float* log_sum_exp, void* stream,
                                    char* error, size_t error_size);

// Likewise for gear_cuda_compress_pages.
GEAR_EXPORT size_t gear_cuda_compress_workspace_bytes(const int32_t* page_config);

// Compresses `count` pages: `keys` and `values` are [count, chunk, head_dim] (float16; float32
// where key_bits is 32), `pages` is [count, page_words], all in device memory, aligned to 16 bytes.
GEAR_EXPORT int gear_cuda_compress_pages(const int32_t* page_config, const void* keys,
                                         const void* values, int32_t count, int32_t* pages,
                                         void* workspace, size_t workspace_bytes, void* stream,
                                         char* error, size_t error_size);

// Waits for the stream and says what was wrong with the data of the calls that used `workspace` so
// far: the first thing a kernel met. Then forgets it.
GEAR_EXPORT int gear_cuda_status(void* workspace, void* stream, char* error, size_t error_size);

// The same for the calls that ONNX Runtime has made on `stream`, with workspaces of this library's
// own. The library is a custom-op library of its CUDA provider: its sessions register it, and not
// libgear, which has the same op for the CPU provider.
GEAR_EXPORT int gear_cuda_onnxruntime_status(void* stream, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif
