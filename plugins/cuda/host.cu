#include "core/data_errors.h"
#include "cuda/host.h"

namespace gear::cuda {
namespace {

Error check_sizes(const Call& call) {
  const struct {
    const char* name;
    int size;
  } sizes[] = {{"batch", call.batch},
               {"seq_len", call.seq_len},
               {"max_pages", call.max_pages},
               {"num_pages", call.pool_pages},
               {"num_slots", call.num_slots}};
  for (const auto& [name, size] : sizes) {
    if (size < 0) return std::string(name) + " is " + std::to_string(size);
  }
  return {};
}

}  // namespace

Call make_call(const AttentionArgs& args) {
  Call call{};
  call.attributes = args.attributes;
  call.layout = page_layout(args.attributes.page);
  call.data_type = args.data_type;
  call.buffer_type = args.attributes.page.key_bits == 32 ? DataType::kFloat32 : DataType::kFloat16;
  call.batch = args.batch;
  call.seq_len = args.seq_len;
  call.max_pages = args.max_pages;
  call.pool_pages = args.num_pages;
  call.num_slots = args.num_slots;
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

Error check_call(const Call& call) {
  if (Error error = check_attributes(call.attributes); !error.empty()) return error;
  return check_sizes(call);
}

Error check_address(const char* name, const void* address, size_t alignment) {
  if (address == nullptr) return std::string(name) + " is null";
  if (reinterpret_cast<uintptr_t>(address) % alignment == 0) return {};
  return std::string(name) + " is not aligned to " + std::to_string(alignment) + " bytes";
}

Error check_addresses(const Call& call) {
  const struct {
    const char* name;
    const void* address;
    size_t alignment;
  } arrays[] = {{"query", call.query, 16},
                {"key", call.key, 16},
                {"value", call.value, 16},
                {"page_pool", call.page_pool, 16},
                {"residual_buffer", call.residual_buffer, 16},
                {"page_table", call.page_table, 4},
                {"slots", call.slots, 4},
                {"past_lengths", call.past_lengths, 4},
                {"new_lengths", call.new_lengths, 4},
                {"output", call.output, 16}};
  for (const auto& [name, address, alignment] : arrays) {
    if (Error error = check_address(name, address, alignment); !error.empty()) return error;
  }
  return {};
}

Error describe(const Status& status) {
  const float value = bits_float(static_cast<uint32_t>(status.number));
  const auto is_key = [&](Fault key) { return status.fault == static_cast<int32_t>(key); };
  switch (static_cast<Fault>(status.fault)) {
    case Fault::kNone:
      return {};
    case Fault::kNewLength:
      return wrong_new_length(status.sequence, status.number, status.limit);
    case Fault::kPastLength:
      return wrong_past_length(status.sequence, status.number);
    case Fault::kSlot:
      return wrong_slot(status.sequence, status.number, status.limit);
    case Fault::kTooManyPages:
      return too_many_pages(status.sequence, status.token, status.number, status.limit);
    case Fault::kPage:
      return wrong_page(status.sequence, status.number, status.limit);
    case Fault::kKey:
    case Fault::kValue:
      return wrong_value(status.layer, status.head, status.sequence, status.token,
                         is_key(Fault::kKey) ? "key" : "value", value);
    case Fault::kPageKey:
    case Fault::kPageValue:
      return "page " + std::to_string(status.sequence) + ": " +
             wrong_page_value(status.token, is_key(Fault::kPageKey) ? "key" : "value");
  }
  return "the workspace was not filled with zeros before its first use";
}

}  // namespace gear::cuda
