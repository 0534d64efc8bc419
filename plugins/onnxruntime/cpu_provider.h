// ONNX Runtime's CPU provider: host memory, the CPU kernels, the session's threads.
#pragma once

#include <cstddef>
#include <cstring>

#include "gear/attention.h"
#include "ort_abi.h"
#include "session_threads.h"

namespace gear::ort {

class CpuProvider {
 public:
  static constexpr char kName[] = "CPUExecutionProvider";
  struct Resources {};

  CpuProvider(const OrtApi& api, OrtKernelContext* context, const Resources&)
      : threads_(api, context) {}

  void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

  Error attention(const AttentionArgs& args) {
    return cpu::attention(args, threads_.parallel_for());
  }

 private:
  SessionThreads threads_;
};

}  // namespace gear::ort
