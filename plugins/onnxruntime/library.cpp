// Entry point that ONNX Runtime looks up in libgear.

#include "attention_op.h"
#include "cpu_provider.h"
#include "gear/gear.h"

extern "C" GEAR_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                    const OrtApiBase* base) {
  return gear::ort::register_ops<gear::ort::CpuProvider>(options, base);
}
