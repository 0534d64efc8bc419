// ONNX Runtime's CUDA provider: device memory, the CUDA kernels, the session's stream.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>

#include "core/c_interface.h"
#include "cuda/device.h"
#include "cuda_workspaces.h"
#include "gear/attention.h"
#include "gear/gear_cuda.h"
#include "ort_abi.h"
#include "status.h"

namespace gear::ort {

class CudaProvider {
 public:
#ifdef GEAR_EMULATED_GPU
  static constexpr char kName[] =
      "CPUExecutionProvider";  // the emulated GPU's memory is the host's
#else
  static constexpr char kName[] = "CUDAExecutionProvider";
#endif
  struct Resources {
    std::shared_ptr<CudaWorkspaces> workspaces = CudaWorkspaces::shared();
  };

  CudaProvider(const OrtApi& api, OrtKernelContext* context, const Resources& resources)
      : workspaces_(*resources.workspaces) {
    void* stream = nullptr;
    check(api, api.KernelContext_GetGPUComputeStream(context, &stream));
    stream_ = static_cast<cuda::Stream>(stream);
  }

  void copy(void* to, const void* from, size_t bytes) {
    const Error error = cuda::copy_device(to, from, bytes, stream_);
    if (!error.empty()) throw std::runtime_error(error);
  }

  // Queues the kernels. What only they see is told by gear_cuda_onnxruntime_status.
  Error attention(const AttentionArgs& args) {
    const GearAttentionCall call = write_call(args);
    const CudaWorkspace workspace = workspaces_.get(gear_cuda_workspace_bytes(&call), stream_);
    char text[512];
    const int refused = gear_cuda_attention(&call, workspace.memory, workspace.bytes, nullptr,
                                            stream_, text, sizeof(text));
    return refused != 0 ? Error(text) : Error();
  }

 private:
  CudaWorkspaces& workspaces_;
  cuda::Stream stream_;
};

}  // namespace gear::ort
