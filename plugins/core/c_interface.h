// What the C interfaces of all kernel libraries do with their arguments.
#pragma once

#include <cstddef>
#include <cstring>
#include <exception>

#include "gear/attention.h"
#include "gear/gear.h"

namespace gear {

// Runs `body`, which returns an Error, and reports that or what it threw.
template <typename Body>
int reported(char* error, size_t error_size, Body&& body) noexcept {
  const auto report = [&](const char* text) {
    if (error_size == 0) return;
    size_t length = 0;
    for (; text[length] != '\0' && length + 1 < error_size; ++length) error[length] = text[length];
    error[length] = '\0';
  };
  try {
    const Error refused = body();
    if (refused.empty()) return 0;
    report(refused.c_str());
  } catch (const std::exception& exception) {
    report(exception.what());
  }
  return 1;
}

inline PageConfig read_config(const int32_t* members) {
  PageConfig config;
  static_assert(sizeof(config) % sizeof(int32_t) == 0, "PageConfig holds ints only");
  memcpy(&config, members, sizeof(config));
  return config;
}

inline Error check_data_type(const GearAttentionCall& call) {
  if (call.data_type >= 0 && call.data_type < kDataTypeCount) return {};
  return "data_type is " + std::to_string(call.data_type) + ", must be in 0.." +
         std::to_string(kDataTypeCount - 1);
}

inline AttentionArgs read_call(const GearAttentionCall& call) {
  AttentionArgs args{};
  args.attributes.page = read_config(call.page_config);
  args.attributes.num_heads = call.num_heads;
  args.attributes.num_kv_heads = call.num_kv_heads;
  args.attributes.layer = call.layer;
  args.attributes.scale = call.scale;
  args.attributes.softcap = call.softcap;
  args.attributes.sliding_window = call.sliding_window;
  args.data_type = static_cast<DataType>(call.data_type);
  args.batch = call.batch;
  args.seq_len = call.seq_len;
  args.max_pages = call.max_pages;
  args.num_pages = call.num_pages;
  args.num_slots = call.num_slots;
  args.query = call.query;
  args.key = call.key;
  args.value = call.value;
  args.page_pool = call.page_pool;
  args.residual_buffer = call.residual_buffer;
  args.page_table = call.page_table;
  args.slots = call.slots;
  args.past_lengths = call.past_lengths;
  args.new_lengths = call.new_lengths;
  args.output = call.output;
  return args;
}

// The other way; the call refers to `args`.
inline GearAttentionCall write_call(const AttentionArgs& args) {
  GearAttentionCall call{};
  call.page_config = reinterpret_cast<const int32_t*>(&args.attributes.page);
  call.num_heads = args.attributes.num_heads;
  call.num_kv_heads = args.attributes.num_kv_heads;
  call.layer = args.attributes.layer;
  call.sliding_window = args.attributes.sliding_window;
  call.scale = args.attributes.scale;
  call.softcap = args.attributes.softcap;
  call.data_type = static_cast<int32_t>(args.data_type);
  call.batch = args.batch;
  call.seq_len = args.seq_len;
  call.max_pages = args.max_pages;
  call.num_pages = args.num_pages;
  call.num_slots = args.num_slots;
  call.num_threads = 1;
  call.query = args.query;
  call.key = args.key;
  call.value = args.value;
  call.page_pool = args.page_pool;
  call.residual_buffer = args.residual_buffer;
  call.page_table = args.page_table;
  call.slots = args.slots;
  call.past_lengths = args.past_lengths;
  call.new_lengths = args.new_lengths;
  call.output = args.output;
  return call;
}

}  // namespace gear
