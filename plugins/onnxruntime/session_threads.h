// Lends the session's thread pool to the kernels.
#pragma once

#include <cstddef>

#include "gear/attention.h"
#include "ort_abi.h"

namespace gear::ort {

class SessionThreads {
 public:
  SessionThreads(const OrtApi& api, const OrtKernelContext* context)
      : api_(api), context_(context) {}

  // The C API does not tell the pool's size: ONNX Runtime splits `count` over what it has.
  ParallelFor parallel_for() { return {this, kManyThreads, &run}; }

 private:
  static constexpr int kManyThreads = 64;

  struct Task {
    void (*body)(void* context, int index);
    void* context;
  };

  static void run(void* host, int count, void (*body)(void*, int), void* context) {
    const auto& self = *static_cast<SessionThreads*>(host);
    Task task{body, context};
    OrtStatus* refused =
        self.api_.KernelContext_ParallelFor(self.context_, &run_one, count, 0, &task);
    if (refused == nullptr) return;
    self.api_.ReleaseStatus(refused);  // it refuses before the first index has run
    for (int index = 0; index < count; ++index) body(context, index);
  }

  static void run_one(void* data, size_t index) {
    const auto& task = *static_cast<Task*>(data);
    task.body(task.context, static_cast<int>(index));
  }

  const OrtApi& api_;
  const OrtKernelContext* context_;
};

}  // namespace gear::ort
