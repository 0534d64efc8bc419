#include <algorithm>
#include <mutex>
#include <vector>

#include "cuda/host.h"
#include "cuda/kernels.h"
#include "cuda/layer.h"

namespace gear::cuda {
namespace {

constexpr size_t kStatusBytes = 256;
constexpr size_t kCounterBytes = kCounters * sizeof(int32_t);
// Of a workspace that stands in for the layer's memory. Its start is aligned here: engines align
// workspaces to 128 bytes only.
constexpr size_t kAlignment = 256;
constexpr size_t kHeadBytes = kStatusBytes + kCounterBytes;

char* aligned(void* address) {
  const auto number = reinterpret_cast<uintptr_t>(address);
  return static_cast<char*>(address) + (kAlignment - number % kAlignment) % kAlignment;
}

size_t scratch_bound(const Call& call) {
  return std::max(attention_workspace_bound(call), compress_workspace_bound(call));
}

struct Layers {
  std::mutex mutex;
  std::vector<Status*> notes;  // of every layer that has memory, oldest first
};

// Never destroyed: plugins may outlive the library's static objects.
Layers& layers() {
  static auto* const all = new Layers;
  return *all;
}

void register_note(Status* status) {
  const std::lock_guard<std::mutex> lock(layers().mutex);
  layers().notes.push_back(status);
}

void forget_note(Status* status) {
  const std::lock_guard<std::mutex> lock(layers().mutex);
  auto& notes = layers().notes;
  notes.erase(std::remove(notes.begin(), notes.end(), status), notes.end());
}

}  // namespace

Error LayerMemory::make(std::unique_ptr<LayerMemory>& made) {
  if (num_multiprocessors() == 0) return {};
  std::unique_ptr<LayerMemory> memory(new LayerMemory);
  void* counters = nullptr;
  Error error = allocate(&counters, kCounterBytes);
  memory->counters_ = static_cast<int32_t*>(counters);
  if (!error.empty()) return error;
  void* status = nullptr;
  if (error = allocate_shared(&status, sizeof(Status)); !error.empty()) return error;
  memory->status_ = static_cast<Status*>(status);
  register_note(memory->status_);
  made = std::move(memory);
  return {};
}

LayerMemory::~LayerMemory() {
  if (status_ != nullptr) {
    forget_note(status_);
    free_shared(status_);
  }
  if (counters_ != nullptr) free_device(counters_);
}

Error take_fault() {
  const std::lock_guard<std::mutex> lock(layers().mutex);
  Error first;
  for (Status* status : layers().notes) {
    const Status seen = *status;
    if (seen.fault == 0) continue;
    *status = {};
    if (first.empty()) first = describe(seen);
  }
  return first;
}

size_t workspace_bound(const AttentionArgs& largest) {
  return kAlignment + kHeadBytes + scratch_bound(make_call(largest));
}

Error attention(const AttentionArgs& args, const LayerMemory* memory, void* workspace,
                void* stream_handle) {
  const auto stream = static_cast<Stream>(stream_handle);
  Call call = make_call(args);
  if (call.batch == 0 || call.seq_len == 0) return {};
  if (Error error = check_addresses(call); !error.empty()) return error;
  if (Error error = check_address("workspace", workspace, 1); !error.empty()) return error;

  char* const head = aligned(workspace);
  Workspace lent{nullptr, head + kHeadBytes, scratch_bound(call)};
  if (memory != nullptr) {
    call.status = memory->status();
    lent.counters = memory->counters();
  } else {
    if (Error error = fill_bytes(head, 0, kHeadBytes, stream); !error.empty()) return error;
    call.status = reinterpret_cast<Status*>(head);
    lent.counters = reinterpret_cast<int32_t*>(head + kStatusBytes);
  }
  if (Error error = launch_attention(call, lent, nullptr, stream); !error.empty()) return error;
  return launch_compress(call, lent, stream);
}

Error copy(void* to, const void* from, size_t bytes, void* stream) {
  return copy_device(to, from, bytes, static_cast<Stream>(stream));
}

}  // namespace gear::cuda
