// The launchers behind the C interface (c_api.cu), each in a file of its own.
#pragma once

#include "cuda/call.h"

namespace gear::cuda {

inline constexpr int kCounters = 1 << 14;

// Memory that calls on one stream share. The host worked out its size from what it knows.
struct Workspace {
  int32_t* counters;  // [kCounters], zero before and after every launch
  void* memory;       // 256-byte aligned; its contents mean nothing before a launch
  size_t bytes;       // of memory
};

// --- attention.cu
// ---------------------------------------------------------------------------------

size_t attention_workspace_bytes(const Call& call);

// Enough for this and every smaller call, on every GPU.
size_t attention_workspace_bound(const Call& largest);

// Writes `output` (zeros at and beyond new_lengths, and for sequences that is_valid of append.h
// refuses), and appends the new tokens of every sequence in which no page becomes full (append_rows
// of append.h). `log_sum_exp` is [B, S, num_heads] or null.
Error launch_attention(const Call& call, const Workspace& workspace, float* log_sum_exp,
                       Stream stream);

// --- compress/compress.cu
// -------------------------------------------------------------------------

size_t compress_workspace_bytes(const PageConfig& config);

// Enough for launch_compress of this and every smaller call, on every GPU.
size_t compress_workspace_bound(const Call& largest);

// Compresses every page that becomes full, and appends the new tokens of those sequences.
Error launch_compress(const Call& call, const Workspace& workspace, Stream stream);

// Compresses `count` pages of rows that lie one after the other: keys and values [count, chunk,
// head_dim] of the buffer's type, pages [count, page_words].
Error launch_compress_pages(const PageConfig& config, const void* keys, const void* values,
                            int count, int32_t* pages, Status* status, const Workspace& workspace,
                            Stream stream);

}  // namespace gear::cuda
