#include "tensorrt/attention_plugin.h"

#include <cstdlib>
#include <cstring>

#include "tensorrt/fields.h"
#include "tensorrt/log.h"

namespace gear::trt {
namespace {

namespace op = gear_attention;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;

// What TensorRT asks for as a status.
constexpr int32_t kDone = 0;
constexpr int32_t kFailed = 1;
int32_t status(bool succeeded) { return succeeded ? kDone : kFailed; }

const PluginTensorDesc& desc_of(const PluginTensorDesc& tensor) { return tensor; }
const PluginTensorDesc& desc_of(const DynamicPluginTensorDesc& tensor) { return tensor.desc; }

// Of a profile the largest shape.
const Dims& dims_of(const PluginTensorDesc& tensor) { return tensor.dims; }
const Dims& dims_of(const DynamicPluginTensorDesc& tensor) { return tensor.max; }

size_t bytes_of(const PluginTensorDesc& tensor) {
  size_t bytes = tensor.type == DataType::kHALF ? 2 : 4;
  for (int i = 0; i < tensor.dims.nbDims; ++i) bytes *= static_cast<size_t>(tensor.dims.d[i]);
  return bytes;
}

// Builders refuse a declared alias unless their preview feature for it is on, so that it is
// declared only where somebody asks for it. Undeclared, state is updated in place where input and
// output are bound to one address (docs/adr/0013).
bool declares_aliases() {
  const char* const value = std::getenv("GEAR_TENSORRT_ALIASES");
  return value != nullptr && strcmp(value, "1") == 0;
}

std::string make_metadata(const GearAttentionAttributes& attributes) {
  std::string text = std::string("layout_hash=") + kLayoutHash;
  for_each_attribute(attributes, [&](const char* name, const auto& member, bool) {
    text += std::string(" ") + name + "=" + std::to_string(member);
  });
  return text;
}

}  // namespace

template <typename Body>
bool AttentionPlugin::succeeds(Body&& body) const noexcept {
  return trt::succeeds([&] {
    const Error error = body();
    return error.empty() ? error : node_name(attributes_) + ": " + error;
  });
}

AttentionPlugin::AttentionPlugin(const GearAttentionAttributes& attributes)
    : attributes_(attributes),
      checks_(attributes),
      metadata_(make_metadata(attributes)),
      fields_(field_values(attributes_)),
      collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginCapability* AttentionPlugin::getCapabilityInterface(
    PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

// Of the node alone: a clone is attached to no context, and knows no shapes.
AttentionPlugin* AttentionPlugin::clone() noexcept {
  AttentionPlugin* made = nullptr;
  succeeds([&] {
    made = new AttentionPlugin(attributes_);
    return Error{};
  });
  return made;
}

const char* AttentionPlugin::getPluginName() const noexcept { return op::kName; }
const char* AttentionPlugin::getPluginVersion() const noexcept { return op::kPluginVersion; }
const char* AttentionPlugin::getPluginNamespace() const noexcept { return op::kPluginNamespace; }

int32_t AttentionPlugin::getNbOutputs() const noexcept { return op::kOutputCount; }

int32_t AttentionPlugin::getOutputDataTypes(DataType* output_types, int32_t num_outputs,
                                            const DataType* input_types,
                                            int32_t num_inputs) const noexcept {
  return status(succeeds([&]() -> Error {
    if (Error error = TensorChecks::check_counts(num_inputs, num_outputs); !error.empty()) {
      return error;
    }
    const DataType activation = input_types[op::kQuery];
    for (int i = 0; i < num_inputs; ++i) {
      if (Error error = checks_.check_type(i, input_types[i], activation); !error.empty()) {
        return error;
      }
    }
    for (int i = 0; i < num_outputs; ++i) {
      output_types[i] = checks_.type_of(num_inputs + i, activation);
    }
    return {};
  }));
}

int32_t AttentionPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                         const nvinfer1::DimsExprs*, int32_t,
                                         nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                                         nvinfer1::IExprBuilder&) noexcept {
  return status(succeeds([&]() -> Error {
    if (Error error = TensorChecks::check_counts(num_inputs, num_outputs); !error.empty()) {
      return error;
    }
    for (int i = 0; i < num_inputs; ++i) {
      if (Error error = checks_.check_rank(i, inputs[i].nbDims); !error.empty()) return error;
    }
    outputs[op::kOutput] = inputs[op::kQuery];
    outputs[op::kPagePoolOut] = inputs[op::kPagePool];
    outputs[op::kResidualBufferOut] = inputs[op::kResidualBuffer];
    return {};
  }));
}

bool AttentionPlugin::supportsFormatCombination(int32_t position,
                                                const DynamicPluginTensorDesc* in_out,
                                                int32_t num_inputs, int32_t num_outputs) noexcept {
  const auto check = [&]() -> Error {
    if (Error error = TensorChecks::check_counts(num_inputs, num_outputs); !error.empty()) {
      return error;
    }
    const PluginTensorDesc& desc = in_out[position].desc;
    const DataType activation = in_out[op::kQuery].desc.type;
    Error error = checks_.check_type(position, desc.type, activation);
    return error.empty() ? checks_.check_format(position, desc.format) : error;
  };
  bool is_supported = false;
  succeeds([&] {
    const Error error = check();
    is_supported = error.empty();
    // Builders try types and formats out: a refusal is no error.
    if (!is_supported) log(Severity::kVerbose, (node_name(attributes_) + ": " + error).c_str());
    return Error{};
  });
  return is_supported;
}

int32_t AttentionPlugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t num_inputs,
                                         const DynamicPluginTensorDesc* out,
                                         int32_t num_outputs) noexcept {
  AttentionArgs largest{};
  return status(succeeds([&] { return check(in, num_inputs, out, num_outputs, largest); }));
}

size_t AttentionPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t num_inputs,
                                         const DynamicPluginTensorDesc* out,
                                         int32_t num_outputs) const noexcept {
  size_t bytes = 0;
  succeeds([&] {
    AttentionArgs largest{};
    const Error error = check(in, num_inputs, out, num_outputs, largest);
    if (error.empty()) bytes = cuda::workspace_bound(largest);
    return error;
  });
  return bytes;
}

int32_t AttentionPlugin::getAliasedInput(int32_t output) noexcept {
  if (output < 0 || output >= op::kOutputCount || !declares_aliases()) return -1;
  return checks_.tensor(op::kInputCount + output).aliased_input;
}

const char* AttentionPlugin::getMetadataString() noexcept { return metadata_.c_str(); }

int32_t AttentionPlugin::onShapeChange(const PluginTensorDesc* in, int32_t num_inputs,
                                       const PluginTensorDesc* out, int32_t num_outputs) noexcept {
  has_shape_ = succeeds([&] { return check(in, num_inputs, out, num_outputs, args_); });
  if (!has_shape_) return kFailed;
  pool_bytes_ = bytes_of(in[op::kPagePool]);
  buffer_bytes_ = bytes_of(in[op::kResidualBuffer]);
  return kDone;
}

int32_t AttentionPlugin::enqueue(const PluginTensorDesc*, const PluginTensorDesc*,
                                 const void* const* inputs, void* const* outputs, void* workspace,
                                 cudaStream_t stream) noexcept {
  return status(succeeds([&]() -> Error {
    if (!has_shape_) return "enqueue without a shape: onShapeChange failed or was not called";
    if (Error error = move_state(inputs, outputs, stream); !error.empty()) return error;
    AttentionArgs args = args_;
    args.query = inputs[op::kQuery];
    args.key = inputs[op::kKey];
    args.value = inputs[op::kValue];
    args.page_pool = static_cast<int32_t*>(outputs[op::kPagePoolOut]);
    args.residual_buffer = outputs[op::kResidualBufferOut];
    args.page_table = static_cast<const int32_t*>(inputs[op::kPageTable]);
    args.slots = static_cast<const int32_t*>(inputs[op::kSlots]);
    args.past_lengths = static_cast<const int32_t*>(inputs[op::kPastLengths]);
    args.new_lengths = static_cast<const int32_t*>(inputs[op::kNewLengths]);
    args.output = outputs[op::kOutput];
    return cuda::attention(args, memory_.get(), workspace, stream);
  }));
}

nvinfer1::IPluginV3* AttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  std::unique_ptr<AttentionPlugin> attached(clone());
  if (attached == nullptr) return nullptr;
  const bool has_memory = succeeds([&] { return cuda::LayerMemory::make(attached->memory_); });
  return has_memory ? attached.release() : nullptr;
}

const nvinfer1::PluginFieldCollection* AttentionPlugin::getFieldsToSerialize() noexcept {
  return &collection_;
}

template <typename Desc>
Error AttentionPlugin::check(const Desc* in, int num_inputs, const Desc* out, int num_outputs,
                             AttentionArgs& args) const {
  if (Error error = TensorChecks::check_counts(num_inputs, num_outputs); !error.empty()) {
    return error;
  }
  const DataType activation = desc_of(in[op::kQuery]).type;
  Sizes sizes;
  for (int i = 0; i < TensorChecks::kCount; ++i) {
    const Desc& tensor = i < num_inputs ? in[i] : out[i - num_inputs];
    const PluginTensorDesc& desc = desc_of(tensor);
    if (Error error = checks_.check_type(i, desc.type, activation); !error.empty()) return error;
    if (Error error = checks_.check_format(i, desc.format); !error.empty()) return error;
    if (Error error = checks_.check_shape(i, dims_of(tensor), sizes); !error.empty()) return error;
  }
  args = {};
  args.attributes = attributes_;
  args.data_type = activation == DataType::kHALF   ? gear::DataType::kFloat16
                   : activation == DataType::kBF16 ? gear::DataType::kBFloat16
                                                   : gear::DataType::kFloat32;
  args.batch = static_cast<int>(sizes[op::Axis::kB]);
  args.seq_len = static_cast<int>(sizes[op::Axis::kS]);
  args.max_pages = static_cast<int>(sizes[op::Axis::kMaxPages]);
  args.num_pages = static_cast<int>(sizes[op::Axis::kNumPages]);
  args.num_slots = static_cast<int>(sizes[op::Axis::kSlots]);
  return {};
}

Error AttentionPlugin::move_state(const void* const* inputs, void* const* outputs,
                                  void* stream) const {
  const struct {
    const void* from;
    void* to;
    size_t bytes;
  } moves[] = {
      {inputs[op::kPagePool], outputs[op::kPagePoolOut], pool_bytes_},
      {inputs[op::kResidualBuffer], outputs[op::kResidualBufferOut], buffer_bytes_},
  };
  for (const auto& [from, to, bytes] : moves) {
    if (from == to) continue;
    if (Error error = cuda::copy(to, from, bytes, stream); !error.empty()) return error;
  }
  return {};
}

}  // namespace gear::trt
