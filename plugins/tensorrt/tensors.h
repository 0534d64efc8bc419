// What TensorRT says of a node's tensors, checked against the definition of the op. No function
// allocates memory unless it has something to complain about.
#pragma once

#include <string>

#include "gear/attention.h"
#include "tensorrt/abi.h"

namespace gear::trt {

// Sizes of the axes that calls decide; −1 where not known.
class Sizes {
 public:
  Sizes() {
    for (int64_t& size : sizes_) size = -1;
  }
  int64_t& operator[](gear_attention::Axis axis) { return sizes_[static_cast<int>(axis)]; }
  int64_t operator[](gear_attention::Axis axis) const { return sizes_[static_cast<int>(axis)]; }

 private:
  int64_t sizes_[static_cast<int>(gear_attention::Axis::kCount)];
};

class TensorChecks {
 public:
  explicit TensorChecks(const GearAttentionAttributes& attributes)
      : tensors_(gear_attention::tensors(attributes)),
        buffer_type_(attributes.page.key_bits == 32 ? nvinfer1::DataType::kFLOAT
                                                    : nvinfer1::DataType::kHALF) {}

  static constexpr int kCount = gear_attention::kInputCount + gear_attention::kOutputCount;

  const gear_attention::Tensor& tensor(int index) const { return tensors_.all[index]; }

  // The type of a tensor where activations are of type `activation`.
  nvinfer1::DataType type_of(int index, nvinfer1::DataType activation) const;

  // Numbers of tensors.
  static Error check_counts(int inputs, int outputs);

  Error check_type(int index, nvinfer1::DataType type, nvinfer1::DataType activation) const;
  Error check_format(int index, nvinfer1::TensorFormat format) const;
  Error check_rank(int index, int rank) const;

  // Axes of fixed size, and those that earlier tensors have given a size in `sizes`; others get
  // one.
  Error check_shape(int index, const nvinfer1::Dims& dims, Sizes& sizes) const;

 private:
  std::string expected_shape(int index, const Sizes& sizes) const;

  gear_attention::Tensors tensors_;
  nvinfer1::DataType buffer_type_;
};

}  // namespace gear::trt
