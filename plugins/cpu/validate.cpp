#include "cpu/validate.h"

#include <algorithm>
#include <cfloat>
#include <vector>

#include "core/bfloat16.h"
#include "core/data_errors.h"

namespace gear::cpu {
namespace {

Error check_lengths(const Call& call, int sequence) {
  const int past = call.past(sequence);
  const int added = call.added(sequence);
  if (added < 0 || added > call.args.seq_len) {
    return wrong_new_length(sequence, added, call.args.seq_len);
  }
  if (past < 0 || past > INT32_MAX - added) return wrong_past_length(sequence, past);
  return {};
}

Error check_slot(const Call& call, int sequence) {
  const int slot = call.args.slots[sequence];
  if (slot >= 0 && slot < call.args.num_slots) return {};
  return wrong_slot(sequence, slot, call.args.num_slots);
}

// Pages that no query sees through the sliding window are never read and may be gone.
Error check_pages(const Call& call, int sequence) {
  const int end = call.full_pages_after(sequence);
  if (end > call.args.max_pages) {
    return too_many_pages(sequence, call.past(sequence) + call.added(sequence), end,
                          call.args.max_pages);
  }
  const int first = first_visible(call.past(sequence), call.args.attributes.sliding_window);
  for (int i = 0; i < end; ++i) {
    if (i < call.full_pages(sequence) && is_before(call.config(), i, first)) continue;
    const int page = call.page_ids(sequence)[i];
    if (page >= 0 && page < call.args.num_pages) continue;
    return wrong_page(sequence, page, call.args.num_pages);
  }
  return {};
}

// Two sequences of one call may share pages that they read, never what they write.
Error check_writes(const Call& call) {
  std::vector<int> slots;
  std::vector<int> pages;
  for (int b = 0; b < call.args.batch; ++b) {
    if (call.added(b) == 0) continue;
    slots.push_back(call.args.slots[b]);
    pages.insert(pages.end(), call.page_ids(b) + call.full_pages(b),
                 call.page_ids(b) + call.full_pages_after(b));
  }
  for (auto* written : {&slots, &pages}) {
    std::sort(written->begin(), written->end());
    const auto twice = std::adjacent_find(written->begin(), written->end());
    if (twice == written->end()) continue;
    return (written == &slots ? "slot " : "page ") + std::to_string(*twice) +
           " would be written twice";
  }
  return {};
}

float element(const void* elements, DataType type, int64_t index) {
  if (type == DataType::kFloat32) return static_cast<const float*>(elements)[index];
  const uint16_t bits = static_cast<const uint16_t*>(elements)[index];
  return type == DataType::kFloat16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

Error check_values(const Call& call, const Kernels& kernels, int sequence, const char* name,
                   const void* elements) {
  const bool is_half = call.shape.buffer_type() == DataType::kFloat16;
  const DataType type = call.args.data_type;
  const int64_t token_elements = static_cast<int64_t>(call.kv_heads) * call.head_dim;
  const void* first = at(elements, type, call.key_offset(sequence, 0, 0));
  const int64_t index = kernels.find_beyond(first, type, call.added(sequence) * token_elements,
                                            is_half ? kHalfMax : FLT_MAX);
  if (index < 0) return {};
  const float value = element(first, type, index);
  return wrong_value(call.args.attributes.layer,
                     static_cast<int>(index % token_elements) / call.head_dim, sequence,
                     call.past(sequence) + static_cast<int>(index / token_elements), name, value);
}

}  // namespace

Error validate(const Call& call, const Kernels& kernels) {
  for (int b = 0; b < call.args.batch; ++b) {
    if (Error error = check_lengths(call, b); !error.empty()) return error;
    if (call.added(b) == 0) continue;
    if (Error error = check_slot(call, b); !error.empty()) return error;
    if (Error error = check_pages(call, b); !error.empty()) return error;
  }
  if (Error error = check_writes(call); !error.empty()) return error;
  for (int b = 0; b < call.args.batch; ++b) {
    for (const auto& [name, elements] :
         {std::pair("key", call.args.key), std::pair("value", call.args.value)}) {
      if (Error error = check_values(call, kernels, b, name, elements); !error.empty()) {
        return error;
      }
    }
  }
  return {};
}

}  // namespace gear::cpu
