// The kernels' interface: plain pointers and sizes, no torch, TensorRT or ONNX Runtime type.
#pragma once

#include <cstdint>
#include <string>

#include "gear/generated/spec.h"

namespace gear {

// Runs body(context, index) for every index in [0, count), in any order, on any thread. Hosts
// pass their own thread pool through it.
struct ParallelFor {
  void* host;
  int num_threads;
  void (*run)(void* host, int count, void (*body)(void* context, int index), void* context);
};

// One call of GearAttention (gear_trt/spec/ops.py gives the shapes and the meaning). All arrays
// are dense and row-major.
struct AttentionArgs {
  GearAttentionAttributes attributes;
  DataType data_type;  // of query, key, value, output

  int batch;      // B
  int seq_len;    // S
  int max_pages;  // columns of page_table
  int num_pages;  // pages in page_pool
  int num_slots;  // rows of residual_buffer

  const void* query;
  const void* key;
  const void* value;
  int32_t* page_pool;
  void* residual_buffer;  // float16; float32 where key_bits == 32
  const int32_t* page_table;
  const int32_t* slots;
  const int32_t* past_lengths;
  const int32_t* new_lengths;
  void* output;
};

// Empty when the call succeeded, else one line that says what was wrong.
using Error = std::string;

// Checks a compression config and head_dim.
Error check_config(const PageConfig& config);

// Checks the attributes of a node: supported bits, head counts, head_dim.
Error check_attributes(const GearAttentionAttributes& attributes);

namespace cpu {

// Attends, appends and compresses (see GEAR_ATTENTION in the spec). On an error the output is
// unspecified and the state is unchanged. Non-finite keys or values are an error that names
// layer, head and token.
Error attention(const AttentionArgs& args, const ParallelFor& parallel_for);

// Compresses one page: `keys` and `values` are [chunk, head_dim] rows of the residual buffer's
// type; `page` is [page_words].
Error compress_page(const PageConfig& config, const void* keys, const void* values, int32_t* page);

// The instruction set in use (cpu/dispatch.h).
const char* instruction_set();

}  // namespace cpu
}  // namespace gear
