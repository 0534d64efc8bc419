// GearAttention as a layer of a TensorRT engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/layer.h"
#include "gear/attention.h"
#include "tensorrt/abi.h"
#include "tensorrt/tensors.h"

namespace gear::trt {

// One node. It has no state of its own but what cuda::LayerMemory holds, which is there once the
// plugin is attached to an execution context: the cache comes in and goes out as tensors.
class AttentionPlugin final : public nvinfer1::IPluginV3,
                              public nvinfer1::IPluginV3OneCore,
                              public nvinfer1::IPluginV3OneBuildV2,
                              public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit AttentionPlugin(const GearAttentionAttributes& attributes);

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  AttentionPlugin* clone() noexcept override;

  // --- Core
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  // --- Build
  int32_t getNbOutputs() const noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                             const nvinfer1::DataType* input_types,
                             int32_t num_inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t num_shape_inputs,
                          nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* in_out,
                                 int32_t num_inputs, int32_t num_outputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t num_outputs) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t num_outputs) const noexcept override;
  int32_t getAliasedInput(int32_t output) noexcept override;
  const char* getMetadataString() noexcept override;

  // --- Runtime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t num_inputs,
                        const nvinfer1::PluginTensorDesc* out,
                        int32_t num_outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                  const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  // Runs `body` and says of what it finds fault with that it is about this node.
  template <typename Body>
  bool succeeds(Body&& body) const noexcept;

  // Types, formats and shapes of all tensors; on success `args` has the sizes of the call.
  template <typename Desc>
  Error check(const Desc* in, int num_inputs, const Desc* out, int num_outputs,
              AttentionArgs& args) const;

  // Copies the state to where the call updates it, unless it is there.
  Error move_state(const void* const* inputs, void* const* outputs, void* stream) const;

  GearAttentionAttributes attributes_;
  TensorChecks checks_;
  std::string metadata_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;

  AttentionArgs args_{};  // attributes, types and sizes since onShapeChange
  bool has_shape_ = false;
  size_t pool_bytes_ = 0;
  size_t buffer_bytes_ = 0;
  std::unique_ptr<cuda::LayerMemory> memory_;
};

}  // namespace gear::trt
