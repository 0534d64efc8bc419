// Entry point that ONNX Runtime looks up in a custom-op library.

#include <array>

#include "attention_op.h"
#include "ort_abi.h"
#include "status.h"

namespace {

using gear::DataType;
using gear::ort::AttentionOp;

// Made once per process and shared by all sessions; sessions keep pointers to it until they end.
OrtCustomOpDomain* gear_domain(const OrtApi& api) {
  static const std::array<AttentionOp, 4> ops = {
      AttentionOp(DataType::kFloat32, DataType::kFloat16),
      AttentionOp(DataType::kFloat16, DataType::kFloat16),
      AttentionOp(DataType::kFloat32, DataType::kFloat32),
      AttentionOp(DataType::kFloat16, DataType::kFloat32),
  };
  static OrtCustomOpDomain* const domain = [&api] {
    OrtCustomOpDomain* made = nullptr;
    gear::ort::check(api, api.CreateCustomOpDomain(gear::kDomain, &made));
    for (const AttentionOp& op : ops) gear::ort::check(api, api.CustomOpDomain_Add(made, &op));
    return made;
  }();
  return domain;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(gear::ort::kApiVersion);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "gear needs ONNX Runtime 1.18 or later");
  }
  return gear::ort::guarded(
      *api, [&] { gear::ort::check(*api, api->AddCustomOpDomain(options, gear_domain(*api))); });
}
