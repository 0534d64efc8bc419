// Views of one call's tensors, shared by the steps that validate, attend and append.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"

namespace gear::cpu {

inline int64_t element_bytes(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

inline const void* at(const void* base, DataType type, int64_t index) {
  return static_cast<const char*>(base) + index * element_bytes(type);
}

inline void* at(void* base, DataType type, int64_t index) {
  return static_cast<char*>(base) + index * element_bytes(type);
}

struct Call {
  explicit Call(const AttentionArgs& call_args)
      : args(call_args),
        shape(call_args.attributes.page),
        kv_heads(call_args.attributes.num_kv_heads),
        group(call_args.attributes.num_heads / kv_heads),
        head_dim(call_args.attributes.page.head_dim) {}

  const PageConfig& config() const { return shape.config; }
  int past(int sequence) const { return args.past_lengths[sequence]; }
  int added(int sequence) const { return args.new_lengths[sequence]; }
  int full_pages(int sequence) const { return num_pages(config(), past(sequence)); }
  int full_pages_after(int sequence) const {
    return num_pages(config(), past(sequence) + added(sequence));
  }
  const int32_t* page_ids(int sequence) const {
    return args.page_table + static_cast<int64_t>(sequence) * args.max_pages;
  }

  // Element offset of a new token's key or value.
  int64_t key_offset(int sequence, int token, int head) const {
    return ((static_cast<int64_t>(sequence) * args.seq_len + token) * kv_heads + head) * head_dim;
  }

  int64_t query_offset(int sequence, int head) const {
    return static_cast<int64_t>(sequence) * args.seq_len * args.attributes.num_heads * head_dim +
           static_cast<int64_t>(head) * group * head_dim;
  }

  // Row of the residual buffer; side 0 is K, 1 is V.
  void* buffer_at(int sequence, int head, int side, int row) const {
    const int64_t rows = config().sinks + config().chunk;
    const int64_t owner = static_cast<int64_t>(args.slots[sequence]) * kv_heads + head;
    return at(args.residual_buffer, shape.buffer_type(),
              ((owner * 2 + side) * rows + row) * head_dim);
  }

  int32_t* page_at(int page, int head) const {
    return args.page_pool +
           (static_cast<int64_t>(page) * kv_heads + head) * shape.layout.page_words;
  }

  const AttentionArgs& args;
  PageShape shape;
  int kv_heads;
  int group;
  int head_dim;
};

// Runs body(index) for every index below count, on the host's threads where that pays.
template <typename Body>
void run_parallel(const ParallelFor& parallel_for, int count, Body&& body) {
  if (count == 0) return;
  if (count == 1 || parallel_for.num_threads == 1) {
    for (int index = 0; index < count; ++index) body(index);
    return;
  }
  parallel_for.run(
      parallel_for.host, count,
      [](void* context, int index) {
        (*static_cast<std::remove_reference_t<Body>*>(context))(index);
      },
      &body);
}

}  // namespace gear::cpu
