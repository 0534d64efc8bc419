// C interface of libgear for ctypes and other languages. Nothing here throws or aborts.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define GEAR_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// One call of GearAttention. Shapes and meaning: GEAR_ATTENTION in gear_trt/spec/ops.py.
typedef struct GearAttentionCall {
  const int32_t* page_config;  // PageConfig of gear/generated/spec.h, in the order of its members
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t layer;
  int32_t sliding_window;
  float scale;
  float softcap;
  int32_t data_type;  // query, key, value, output: 0 for float32, 1 for float16, 2 for bfloat16
  int32_t batch;
  int32_t seq_len;
  int32_t max_pages;
  int32_t num_pages;
  int32_t num_slots;
  int32_t num_threads;
  const void* query;
  const void* key;
  const void* value;
  int32_t* page_pool;
  void* residual_buffer;
  const int32_t* page_table;
  const int32_t* slots;
  const int32_t* past_lengths;
  const int32_t* new_lengths;
  void* output;
} GearAttentionCall;

// Functions that return int give 0 on success; else 1, with one line of text in `error`, cut to
// `error_size` bytes with its terminator.

// Hash of the page layout and the op that this library was built for.
GEAR_EXPORT const char* gear_layout_hash(void);

// JSON: version, layout hash, compiler, instruction sets that this machine can run.
GEAR_EXPORT const char* gear_build_info(void);

// Instruction set in use; empty where GEAR_CPU names none that this machine can run.
GEAR_EXPORT const char* gear_instruction_set(void);

// Replaces the choice of GEAR_CPU and the machine. Not while another call runs.
GEAR_EXPORT int gear_use_instruction_set(const char* name, char* error, size_t error_size);

// Compresses `keys` and `values` [chunk, head_dim] (float16; float32 where key_bits is 32) into
// `page` [page_words].
GEAR_EXPORT int gear_compress_page(const int32_t* page_config, const void* keys, const void* values,
                                   int32_t* page, char* error, size_t error_size);

// Attends, appends and compresses; on an error the state is unchanged.
GEAR_EXPORT int gear_attention(const GearAttentionCall* call, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif
