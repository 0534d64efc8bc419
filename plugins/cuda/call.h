// Views of one call's device tensors (the GPU's counterpart of cpu/call.h), passed to kernels by
// value. Lengths, slots and page ids lie in device memory: the host never reads them, so a call can
// be captured in a graph.
#pragma once

#include "core/bfloat16.h"
#include "core/positions.h"
#include "cuda/device.h"
#include "cuda/status.h"

namespace gear::cuda {

struct Call {
  GearAttentionAttributes attributes;
  PageLayout layout;
  DataType data_type;    // of query, key, value, output
  DataType buffer_type;  // of residual_buffer

  int batch;
  int seq_len;
  int max_pages;
  int pool_pages;
  int num_slots;

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
  Status* status;

  GEAR_HOST_DEVICE const PageConfig& config() const { return attributes.page; }
  GEAR_HOST_DEVICE int head_dim() const { return attributes.page.head_dim; }
  GEAR_HOST_DEVICE int kv_heads() const { return attributes.num_kv_heads; }
  GEAR_HOST_DEVICE int group() const { return attributes.num_heads / attributes.num_kv_heads; }

  // The most pages of one sequence that `seq_len` new tokens can fill.
  GEAR_HOST_DEVICE int max_new_pages() const {
    return (config().chunk - 1 + seq_len) / config().chunk;
  }

  GEAR_DEVICE int past(int sequence) const { return past_lengths[sequence]; }
  GEAR_DEVICE int added(int sequence) const { return new_lengths[sequence]; }
  GEAR_DEVICE int full_pages(int sequence) const { return num_pages(config(), past(sequence)); }
  GEAR_DEVICE int full_pages_after(int sequence) const {
    return num_pages(config(), past(sequence) + added(sequence));
  }
  GEAR_DEVICE const int32_t* page_ids(int sequence) const {
    return page_table + static_cast<int64_t>(sequence) * max_pages;
  }

  // Whether a chunk of the sequence becomes full in this call: then the compression kernel appends
  // its new tokens, else the attention kernel does.
  GEAR_DEVICE bool fills_a_page(int sequence) const {
    return full_pages_after(sequence) > full_pages(sequence);
  }

  // Element offset of a new token's key or value.
  GEAR_DEVICE int64_t key_offset(int sequence, int token, int head) const {
    return ((static_cast<int64_t>(sequence) * seq_len + token) * kv_heads() + head) * head_dim();
  }

  // Element offset of a new token's query or output; `head` is a query head.
  GEAR_DEVICE int64_t query_offset(int sequence, int token, int head) const {
    return ((static_cast<int64_t>(sequence) * seq_len + token) * attributes.num_heads + head) *
           head_dim();
  }

  // Element offset of a row of the residual buffer; side 0 is K, 1 is V.
  GEAR_DEVICE int64_t buffer_offset(int sequence, int head, int side, int row) const {
    const int64_t rows = config().sinks + config().chunk;
    const int64_t owner = static_cast<int64_t>(slots[sequence]) * kv_heads() + head;
    return ((owner * 2 + side) * rows + row) * head_dim();
  }

  GEAR_DEVICE int32_t* page_at(int page, int head) const {
    return page_pool + (static_cast<int64_t>(page) * kv_heads() + head) * layout.page_words;
  }
};

// Four elements from `index` on, a multiple of four, of an array that is aligned to 16 bytes.
GEAR_DEVICE float4 load4(const void* elements, DataType type, int64_t index) {
  if (type == DataType::kFloat32) {
    return *reinterpret_cast<const float4*>(static_cast<const float*>(elements) + index);
  }
  const uint2 words =
      *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(elements) + index);
  if (type == DataType::kBFloat16) {
    return make_float4(first_bfloat16(words.x), second_bfloat16(words.x), first_bfloat16(words.y),
                       second_bfloat16(words.y));
  }
  return make_float4(half_to_float(static_cast<uint16_t>(words.x)),
                     half_to_float(static_cast<uint16_t>(words.x >> 16)),
                     half_to_float(static_cast<uint16_t>(words.y)),
                     half_to_float(static_cast<uint16_t>(words.y >> 16)));
}

GEAR_DEVICE void store4(void* elements, DataType type, int64_t index, float4 x) {
  if (type == DataType::kFloat32) {
    *reinterpret_cast<float4*>(static_cast<float*>(elements) + index) = x;
    return;
  }
  auto* words = reinterpret_cast<uint2*>(static_cast<uint16_t*>(elements) + index);
  if (type == DataType::kBFloat16) {
    *words = make_uint2(pack_bfloat16(x.x, x.y), pack_bfloat16(x.z, x.w));
    return;
  }
  const uint32_t low = half_nearest(x.x) | static_cast<uint32_t>(half_nearest(x.y)) << 16;
  const uint32_t high = half_nearest(x.z) | static_cast<uint32_t>(half_nearest(x.w)) << 16;
  *words = make_uint2(low, high);
}

}  // namespace gear::cuda
