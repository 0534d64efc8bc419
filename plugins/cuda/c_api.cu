#include <cstring>

#include "core/c_interface.h"
#include "core/data_errors.h"
#include "cuda/kernels.h"
#include "gear/gear_cuda.h"

#ifdef GEAR_EMULATED_GPU
#define GEAR_COMPILER "emulated, " __VERSION__
#else
#define GEAR_TEXT_OF(x) #x
#define GEAR_TEXT(x) GEAR_TEXT_OF(x)
#define GEAR_COMPILER "nvcc " GEAR_TEXT(__CUDACC_VER_MAJOR__) "." GEAR_TEXT(__CUDACC_VER_MINOR__)
#endif

namespace gear::cuda {
namespace {

// A workspace begins with the status, then the counters.
constexpr size_t kStatusBytes = 256;
constexpr size_t kHeadBytes = kStatusBytes + kCounters * sizeof(int32_t);

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

Error check_call(const Call& call) {
  if (Error error = check_attributes(call.attributes); !error.empty()) return error;
  return check_sizes(call);
}

size_t workspace_bytes(const Call& call) {
  const size_t attention = attention_workspace_bytes(call);
  const size_t compress = compress_workspace_bytes(call.config());
  return kHeadBytes + (attention > compress ? attention : compress);
}

Error check_workspace(const void* memory, size_t bytes, size_t needed) {
  if (Error error = check_address("workspace", memory, 256); !error.empty()) return error;
  if (bytes >= needed) return {};
  return "workspace has " + std::to_string(bytes) + " bytes, needs " + std::to_string(needed);
}

Status* status_of(void* memory) { return static_cast<Status*>(memory); }

Workspace make_workspace(void* memory, size_t bytes) {
  auto* start = static_cast<char*>(memory);
  return {reinterpret_cast<int32_t*>(start + kStatusBytes), start + kHeadBytes, bytes - kHeadBytes};
}

Error attention(const AttentionArgs& args, void* memory, size_t bytes, float* log_sum_exp,
                Stream stream) {
  Call call = make_call(args);
  if (Error error = check_call(call); !error.empty()) return error;
  if (call.batch == 0 || call.seq_len == 0) return {};
  if (Error error = check_addresses(call); !error.empty()) return error;
  if (Error error = check_workspace(memory, bytes, workspace_bytes(call)); !error.empty()) {
    return error;
  }
  call.status = status_of(memory);
  const Workspace workspace = make_workspace(memory, bytes);
  Error error = launch_attention(call, workspace, log_sum_exp, stream);
  return error.empty() ? launch_compress(call, workspace, stream) : error;
}

Error compress_pages(const PageConfig& config, const void* keys, const void* values, int count,
                     int32_t* pages, void* memory, size_t bytes, Stream stream) {
  if (Error error = check_config(config); !error.empty()) return error;
  if (count < 0 || count > INT32_MAX / 2) return "count is " + std::to_string(count);
  if (count == 0) return {};
  const struct {
    const char* name;
    const void* address;
  } arrays[] = {{"keys", keys}, {"values", values}, {"pages", pages}};
  for (const auto& [name, address] : arrays) {
    if (Error error = check_address(name, address, 16); !error.empty()) return error;
  }
  const size_t needed = kHeadBytes + compress_workspace_bytes(config);
  if (Error error = check_workspace(memory, bytes, needed); !error.empty()) return error;
  return launch_compress_pages(config, keys, values, count, pages, status_of(memory),
                               make_workspace(memory, bytes), stream);
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

Error read_status(void* memory, Stream stream) {
  if (Error error = check_address("workspace", memory, 256); !error.empty()) return error;
  Status status{};
  if (Error error = read_device(&status, memory, sizeof(status), stream); !error.empty()) {
    return error;
  }
  if (status.fault == 0) return {};
  Error error = fill_bytes(memory, 0, sizeof(status), stream);
  return error.empty() ? describe(status) : error;
}

std::string build_info() {
  return std::string("{\"version\": \"") + GEAR_VERSION + "\", \"layout_hash\": \"" + kLayoutHash +
         "\", \"compiler\": \"" + GEAR_COMPILER + "\", \"architectures\": \"" + GEAR_ARCHITECTURES +
         "\"}";
}

}  // namespace
}  // namespace gear::cuda

extern "C" {

const char* gear_cuda_layout_hash(void) { return gear::kLayoutHash; }

const char* gear_cuda_build_info(void) {
  static const std::string info = gear::cuda::build_info();
  return info.c_str();
}

size_t gear_cuda_workspace_bytes(const GearAttentionCall* call) {
  const gear::cuda::Call made = gear::cuda::make_call(gear::read_call(*call));
  return gear::cuda::check_call(made).empty() ? gear::cuda::workspace_bytes(made) : 0;
}

int gear_cuda_attention(const GearAttentionCall* call, void* workspace, size_t workspace_bytes,
                        float* log_sum_exp, void* stream, char* error, size_t error_size) {
  return gear::reported(error, error_size, [&] {
    return gear::cuda::attention(gear::read_call(*call), workspace, workspace_bytes, log_sum_exp,
                                 static_cast<gear::cuda::Stream>(stream));
  });
}

size_t gear_cuda_compress_workspace_bytes(const int32_t* page_config) {
  const gear::PageConfig config = gear::read_config(page_config);
  if (!gear::check_config(config).empty()) return 0;
  return gear::cuda::kHeadBytes + gear::cuda::compress_workspace_bytes(config);
}

int gear_cuda_compress_pages(const int32_t* page_config, const void* keys, const void* values,
                             int32_t count, int32_t* pages, void* workspace, size_t workspace_bytes,
                             void* stream, char* error, size_t error_size) {
  return gear::reported(error, error_size, [&] {
    return gear::cuda::compress_pages(gear::read_config(page_config), keys, values, count, pages,
                                      workspace, workspace_bytes,
                                      static_cast<gear::cuda::Stream>(stream));
  });
}

int gear_cuda_status(void* workspace, void* stream, char* error, size_t error_size) {
  return gear::reported(error, error_size, [&] {
    return gear::cuda::read_status(workspace, static_cast<gear::cuda::Stream>(stream));
  });
}

}  // extern "C"
