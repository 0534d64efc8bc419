// The kernels for a host whose workspace means nothing from one call to the next: an engine's,
// which all layers share. What has to last lies apart, in memory of the layer. No CUDA header is
// needed.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "gear/attention.h"

namespace gear::cuda {

struct Status;

// What the calls of one layer on one stream leave behind: arrival counters on the device, zero
// between calls, and the note of the first fault. That lies in host memory, which kernels write to
// only when they meet a fault, so that looking costs the host nothing.
class LayerMemory {
 public:
  // Memory of the current device; null where the machine has none, as where engines for other
  // machines are built.
  static Error make(std::unique_ptr<LayerMemory>& made);

  ~LayerMemory();
  LayerMemory(const LayerMemory&) = delete;
  LayerMemory& operator=(const LayerMemory&) = delete;

  Status* status() const { return status_; }
  int32_t* counters() const { return counters_; }

 private:
  LayerMemory() = default;

  Status* status_ = nullptr;
  int32_t* counters_ = nullptr;
};

// What was wrong with the data of finished calls of any layer since the last time, in words: a
// layer's first fault. Then forgets all of them. Call it when the streams have been waited for.
Error take_fault();

// Bytes of workspace that are enough for this and every smaller call, on every GPU.
size_t workspace_bound(const AttentionArgs& largest);

// Queues a call as gear_cuda_attention does, but for checks of attributes and sizes: hosts make
// them once. `workspace` is as large as workspace_bound says; it need be neither zeros nor aligned.
// Without `memory` the workspace stands in for it: that costs a fill on every call, and faults go
// unnoticed.
Error attention(const AttentionArgs& args, const LayerMemory* memory, void* workspace,
                void* stream);

// Queues a copy from device to device.
Error copy(void* to, const void* from, size_t bytes, void* stream);

}  // namespace gear::cuda
