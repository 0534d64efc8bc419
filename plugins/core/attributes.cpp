// What a node may ask for (the ranges of CompressionConfig in gear_trt/spec/config.py).

#include <cmath>
#include <initializer_list>

#include "gear/attention.h"

namespace gear {
namespace {

Error wrong(const char* name, int value, const std::string& allowed) {
  return std::string(name) + " is " + std::to_string(value) + ", must be " + allowed;
}

Error one_of(const char* name, int value, std::initializer_list<int> allowed) {
  std::string list;
  for (const int choice : allowed) {
    if (value == choice) return {};
    list += (list.empty() ? "one of " : ", ") + std::to_string(choice);
  }
  return wrong(name, value, list);
}

Error within(const char* name, int value, int low, int high) {
  if (value >= low && value <= high) return {};
  return wrong(name, value, "in " + std::to_string(low) + ".." + std::to_string(high));
}

Error first_of(std::initializer_list<Error> errors) {
  for (const Error& error : errors) {
    if (!error.empty()) return error;
  }
  return {};
}

Error check_sides(const PageConfig& page) {
  if (page.rotate_keys && page.key_bits >= 16) return "rotate_keys needs key_bits below 16";
  if (page.rotate_values && page.value_bits >= 16) return "rotate_values needs value_bits below 16";
  if ((page.key_bits == 32) != (page.value_bits == 32)) {
    return "32 bits are for a lossless cache: set them on both sides";
  }
  return {};
}

}  // namespace

Error check_config(const PageConfig& page) {
  Error error = first_of({
      one_of("key_bits", page.key_bits, {2, 3, 4, 8, 16, 32}),
      one_of("value_bits", page.value_bits, {2, 3, 4, 8, 16, 32}),
      one_of("group_size", page.group_size, {32, 64, 128}),
      one_of("metadata_bits", page.metadata_bits, {8, 16}),
      within("rank", page.rank, 0, 8),
      one_of("factor_bits", page.factor_bits, {4, 8, 16}),
      within("power_iters", page.power_iters, 1, 8),
      one_of("outliers", page.outliers, {0, 2, 4}),
      one_of("chunk", page.chunk, {64, 128}),
      within("sinks", page.sinks, 0, 64),
      within("rotate_keys", page.rotate_keys, 0, 1),
      within("rotate_values", page.rotate_values, 0, 1),
      within("fit_ranges", page.fit_ranges, 0, 1),
      within("head_dim", page.head_dim, kHeadDimMultiple, kMaxHeadDim),
      check_sides(page),
  });
  if (error.empty() && page.head_dim % kHeadDimMultiple != 0) {
    error = wrong("head_dim", page.head_dim, "a multiple of " + std::to_string(kHeadDimMultiple));
  }
  return error;
}

Error check_attributes(const GearAttentionAttributes& attributes) {
  Error error = first_of({
      check_config(attributes.page),
      within("num_heads", attributes.num_heads, 1, 1 << 16),
      within("num_kv_heads", attributes.num_kv_heads, 1, 1 << 16),
      within("sliding_window", attributes.sliding_window, 0, INT32_MAX),
  });
  if (!error.empty()) return error;
  if (attributes.num_heads % attributes.num_kv_heads != 0) {
    return wrong("num_heads", attributes.num_heads,
                 "a multiple of num_kv_heads " + std::to_string(attributes.num_kv_heads));
  }
  if (!std::isfinite(attributes.scale)) return "scale is not finite";
  if (!std::isfinite(attributes.softcap) || attributes.softcap < 0.0f) {
    return "softcap must be finite and not negative";
  }
  return {};
}

}  // namespace gear
