// What ONNX Runtime asks about the op and how it runs it, and the library's entry point.
#pragma once

#include <array>
#include <climits>
#include <cstddef>

#include "attention_node.h"
#include "gear/attention.h"
#include "ort_abi.h"
#include "status.h"

namespace gear::ort {

// The C API version whose OrtCustomOp and OrtApi these libraries speak: ONNX Runtime 1.18 and
// later.
inline constexpr uint32_t kApiVersion = 18;

// The op for one pair of element types. All its tensors lie in the provider's own memory, lengths
// and page table too: the kernels read them there.
template <typename Provider>
class AttentionOp : public OrtCustomOp {
 public:
  AttentionOp(DataType data_type, DataType buffer_type)
      : OrtCustomOp{}, data_type_(data_type), buffer_type_(buffer_type) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return gear_attention::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return Provider::kName; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return gear_attention::kInputCount; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return gear_attention::kOutputCount; };
    GetInputType = &input_type;
    GetOutputType = &output_type;
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetStartVersion = [](const OrtCustomOp*) { return kOpsetVersion; };
    GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    CreateKernelV2 = &create;
    KernelComputeV2 = &compute;
    KernelDestroy = [](void* node) { delete static_cast<Node*>(node); };
  }

 private:
  using Node = AttentionNode<Provider>;

  static const AttentionOp& self(const OrtCustomOp* op) {
    return *static_cast<const AttentionOp*>(op);
  }

  static ONNXTensorElementDataType element_type(DataType type) {
    switch (type) {
      case DataType::kFloat32:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
      case DataType::kFloat16:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
      case DataType::kBFloat16:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }

  static ONNXTensorElementDataType input_type(const OrtCustomOp* op, size_t index) {
    switch (index) {
      case gear_attention::kQuery:
      case gear_attention::kKey:
      case gear_attention::kValue:
        return element_type(self(op).data_type_);
      case gear_attention::kResidualBuffer:
        return element_type(self(op).buffer_type_);
      default:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    }
  }

  static ONNXTensorElementDataType output_type(const OrtCustomOp* op, size_t index) {
    switch (index) {
      case gear_attention::kOutput:
        return element_type(self(op).data_type_);
      case gear_attention::kResidualBufferOut:
        return element_type(self(op).buffer_type_);
      default:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    }
  }

  static OrtStatusPtr create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                             void** kernel) {
    return guarded(
        *api, [&] { *kernel = new Node(*api, info, self(op).data_type_, self(op).buffer_type_); });
  }

  static OrtStatusPtr compute(void* kernel, OrtKernelContext* context) {
    const auto& node = *static_cast<Node*>(kernel);
    return guarded(node.api(), [&] { node.compute(context); });
  }

  DataType data_type_;
  DataType buffer_type_;
};

// Made once per process and shared by all sessions; sessions keep pointers to it until they end.
template <typename Provider>
OrtCustomOpDomain* domain(const OrtApi& api) {
  static const std::array<AttentionOp<Provider>, 6> ops = {
      AttentionOp<Provider>(DataType::kFloat32, DataType::kFloat16),
      AttentionOp<Provider>(DataType::kFloat16, DataType::kFloat16),
      AttentionOp<Provider>(DataType::kBFloat16, DataType::kFloat16),
      AttentionOp<Provider>(DataType::kFloat32, DataType::kFloat32),
      AttentionOp<Provider>(DataType::kFloat16, DataType::kFloat32),
      AttentionOp<Provider>(DataType::kBFloat16, DataType::kFloat32),
  };
  static OrtCustomOpDomain* const made = [&api] {
    OrtCustomOpDomain* created = nullptr;
    check(api, api.CreateCustomOpDomain(kDomain, &created));
    for (const auto& op : ops) check(api, api.CustomOpDomain_Add(created, &op));
    return created;
  }();
  return made;
}

// The body of the RegisterCustomOps that a library exports.
template <typename Provider>
OrtStatus* register_ops(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "gear needs ONNX Runtime 1.18 or later");
  }
  return guarded(*api,
                 [&] { check(*api, api->AddCustomOpDomain(options, domain<Provider>(*api))); });
}

}  // namespace gear::ort
