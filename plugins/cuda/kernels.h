// The launchers behind the C interface (c_api.cu), each in a file of its own.
#pragma once

#include "cuda/call.h"

namespace gear::cuda {

// Memory that a launcher needs beside the call's tensors, worked out from sizes that the host knows.
// Its contents do not matter before the call, unless the launcher's comment says so.
struct Workspace {
  void* memory;  // 256-byte aligned
  size_t bytes;
};

// --- attention.cu ---------------------------------------------------------------------------------

size_t attention_workspace_bytes(const Call& call);

// Writes `output` (zeros at and beyond new_lengths, and for sequences that is_valid() refuses), and
// appends the new tokens of every sequence in which no page becomes full (append_rows in append.h).
// `log_sum_exp` is [B, S, num_heads] or null.
Error launch_attention(const Call& call, Workspace workspace, float* log_sum_exp, Stream stream);

// --- compress.cu ----------------------------------------------------------------------------------

size_t compress_workspace_bytes(const Call& call);

// Compresses every page that becomes full, and appends the new tokens of those sequences.
Error launch_compress(const Call& call, Workspace workspace, Stream stream);

// Compresses `count` pages of rows that lie one after the other: keys and values [count, chunk,
// head_dim] of the buffer's type, pages [count, page_words].
size_t compress_pages_workspace_bytes(const PageConfig& config);
Error launch_compress_pages(const PageConfig& config, const void* keys, const void* values,
                            int count, int32_t* pages, Status* status, Workspace workspace,
                            Stream stream);

}  // namespace gear::cuda
