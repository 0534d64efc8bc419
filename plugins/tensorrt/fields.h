// The attributes of a node as TensorRT hands them over and keeps them in an engine.
#pragma once

#include <string>
#include <vector>

#include "gear/attention.h"
#include "tensorrt/abi.h"

namespace gear::trt {

// Reads and checks the attributes of a node: from an ONNX file, a caller, or an engine.
Error read_fields(const nvinfer1::PluginFieldCollection* fields,
                  GearAttentionAttributes& attributes);

// Name and type of every attribute.
std::vector<nvinfer1::PluginField> field_names();

// Every attribute with its value; they point into `attributes`.
std::vector<nvinfer1::PluginField> field_values(const GearAttentionAttributes& attributes);

// The start of every message about a node.
std::string node_name(const GearAttentionAttributes& attributes);

}  // namespace gear::trt
