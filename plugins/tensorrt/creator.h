// Makes plugins from the attributes of a node.
#pragma once

#include <vector>

#include "tensorrt/attention_plugin.h"
#include "tensorrt/fields.h"
#include "tensorrt/log.h"

namespace gear::trt {

class AttentionCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  AttentionCreator()
      : names_(field_names()), collection_{static_cast<int32_t>(names_.size()), names_.data()} {}

  // Null, with the reason logged, where the attributes are refused.
  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    AttentionPlugin* made = nullptr;
    succeeds([&] {
      GearAttentionAttributes attributes{};
      Error error = read_fields(fields, attributes);
      if (error.empty()) made = new AttentionPlugin(attributes);
      return error;
    });
    return made;
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return gear_attention::kName; }
  const char* getPluginVersion() const noexcept override { return gear_attention::kPluginVersion; }
  const char* getPluginNamespace() const noexcept override {
    return gear_attention::kPluginNamespace;
  }

 private:
  std::vector<nvinfer1::PluginField> names_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace gear::trt
