#include "tensorrt/tensors.h"

#include <climits>

namespace gear::trt {
namespace {

using gear_attention::Axis;
using gear_attention::Element;
using gear_attention::Tensor;
using gear_attention::TensorAxis;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::TensorFormat;

// By their numbers.
constexpr const char* kTypeNames[] = {"FLOAT", "HALF", "INT8",  "INT32", "BOOL", "UINT8",
                                      "FP8",   "BF16", "INT64", "INT4",  "FP4",  "E8M0"};

std::string type_name(DataType type) {
  const auto number = static_cast<size_t>(type);
  const bool has_name = number < sizeof(kTypeNames) / sizeof(kTypeNames[0]);
  return has_name ? kTypeNames[number] : "type " + std::to_string(number);
}

bool is_activation(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

std::string shape_text(const Dims& dims) {
  std::string text;
  for (int i = 0; i < dims.nbDims; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
  }
  return "[" + text + "]";
}

// The size that an axis must have; −1 where any will do.
int64_t expected_size(const TensorAxis& axis, const Sizes& sizes) {
  return axis.axis == Axis::kFixed ? axis.size : sizes[axis.axis];
}

bool matches(const Tensor& tensor, const Dims& dims, const Sizes& sizes) {
  if (dims.nbDims != tensor.rank) return false;
  for (int i = 0; i < tensor.rank; ++i) {
    const int64_t expected = expected_size(tensor.axes[i], sizes);
    if (expected >= 0 && dims.d[i] != expected) return false;
    if (dims.d[i] < 0 || dims.d[i] > INT_MAX) return false;
  }
  return true;
}

}  // namespace

DataType TensorChecks::type_of(int index, DataType activation) const {
  switch (tensor(index).element) {
    case Element::kActivation:
      return activation;
    case Element::kBuffer:
      return buffer_type_;
    case Element::kInt32:
      break;
  }
  return DataType::kINT32;
}

Error TensorChecks::check_counts(int inputs, int outputs) {
  if (inputs == gear_attention::kInputCount && outputs == gear_attention::kOutputCount) return {};
  return "has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
         " outputs, expected " + std::to_string(gear_attention::kInputCount) + " and " +
         std::to_string(gear_attention::kOutputCount);
}

Error TensorChecks::check_type(int index, DataType type, DataType activation) const {
  if (tensor(index).element == Element::kActivation && !is_activation(activation)) {
    return std::string(tensor(index).name) + " has type " + type_name(type) +
           ", expected FLOAT, HALF or BF16";
  }
  const DataType expected = type_of(index, activation);
  if (type == expected) return {};
  return std::string(tensor(index).name) + " has type " + type_name(type) + ", expected " +
         type_name(expected);
}

Error TensorChecks::check_format(int index, TensorFormat format) const {
  if (format == TensorFormat::kLINEAR) return {};
  return std::string(tensor(index).name) + " has tensor format " +
         std::to_string(static_cast<int>(format)) + ", expected LINEAR";
}

Error TensorChecks::check_rank(int index, int rank) const {
  if (rank == tensor(index).rank) return {};
  return std::string(tensor(index).name) + " has " + std::to_string(rank) + " axes, expected " +
         expected_shape(index, {});
}

Error TensorChecks::check_shape(int index, const Dims& dims, Sizes& sizes) const {
  if (!matches(tensor(index), dims, sizes)) {
    return std::string(tensor(index).name) + " has shape " + shape_text(dims) + ", expected " +
           expected_shape(index, sizes);
  }
  for (int i = 0; i < dims.nbDims; ++i) {
    const Axis axis = tensor(index).axes[i].axis;
    if (axis != Axis::kFixed) sizes[axis] = dims.d[i];
  }
  return {};
}

std::string TensorChecks::expected_shape(int index, const Sizes& sizes) const {
  std::string text;
  for (int i = 0; i < tensor(index).rank; ++i) {
    const TensorAxis& axis = tensor(index).axes[i];
    const int64_t size = expected_size(axis, sizes);
    text += i == 0 ? "" : ", ";
    text +=
        size < 0 ? gear_attention::kAxisNames[static_cast<int>(axis.axis)] : std::to_string(size);
  }
  return "[" + text + "]";
}

}  // namespace gear::trt
