#include "core/c_interface.h"
#include "cuda/build_info.h"
#include "cuda/host.h"
#include "cuda/kernels.h"
#include "gear/gear_cuda.h"

namespace gear::cuda {
namespace {

// A workspace begins with the status, then the counters.
constexpr size_t kStatusBytes = 256;
constexpr size_t kHeadBytes = kStatusBytes + kCounters * sizeof(int32_t);

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

}  // namespace
}  // namespace gear::cuda

extern "C" {

const char* gear_cuda_layout_hash(void) { return gear::kLayoutHash; }

const char* gear_cuda_build_info(void) { return gear::cuda::build_info(); }

size_t gear_cuda_workspace_bytes(const GearAttentionCall* call) {
  if (!gear::check_data_type(*call).empty()) return 0;
  const gear::cuda::Call made = gear::cuda::make_call(gear::read_call(*call));
  return gear::cuda::check_call(made).empty() ? gear::cuda::workspace_bytes(made) : 0;
}

int gear_cuda_attention(const GearAttentionCall* call, void* workspace, size_t workspace_bytes,
                        float* log_sum_exp, void* stream, char* error, size_t error_size) {
  return gear::reported(error, error_size, [&] {
    if (gear::Error refused = gear::check_data_type(*call); !refused.empty()) return refused;
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
