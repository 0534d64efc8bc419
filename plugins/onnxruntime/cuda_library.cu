// Entry points for ONNX Runtime in libgear_cuda.

#include "attention_op.h"
#include "core/c_interface.h"
#include "cuda_provider.h"
#include "gear/gear_cuda.h"

extern "C" {

GEAR_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return gear::ort::register_ops<gear::ort::CudaProvider>(options, base);
}

int gear_cuda_onnxruntime_status(void* stream, char* error, size_t error_size) {
  return gear::reported(error, error_size, [&] {
    const auto workspaces = gear::ort::CudaWorkspaces::existing();
    if (workspaces == nullptr) return gear::Error();
    return workspaces->status(static_cast<gear::cuda::Stream>(stream));
  });
}

}  // extern "C"
