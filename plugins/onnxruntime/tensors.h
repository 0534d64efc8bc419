// Inputs and outputs of one call, with their shapes checked.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "status.h"

namespace gear::ort {

// A size that the first tensor with this axis decides and the later ones must repeat, or a number
// that all must have.
struct Axis {
  explicit Axis(const char* name) : name(name) {}
  explicit Axis(int size) : size(size) {}

  std::string text() const { return size < 0 ? name : std::to_string(size); }

  const char* name = "";
  int64_t size = -1;
};

using Shape = std::initializer_list<Axis*>;

class Tensors {
 public:
  // `node` starts every message.
  Tensors(const OrtApi& api, OrtKernelContext* context, const std::string& node)
      : api_(api), context_(context), node_(node) {}

  const void* input(int index, const char* name, Shape shape) const {
    const OrtValue* value = nullptr;
    check(api_, api_.KernelContext_GetInput(context_, index, &value));
    match(name, shape, dimensions(value));
    return data(const_cast<OrtValue*>(value));
  }

  void* output(int index, Shape shape) const {
    std::vector<int64_t> dims;
    for (const Axis* axis : shape) dims.push_back(axis->size);
    OrtValue* value = nullptr;
    check(api_, api_.KernelContext_GetOutput(context_, index, dims.data(), dims.size(), &value));
    return data(value);
  }

  // An output that starts as the input's copy and is then updated. Where the caller has bound one
  // memory to both there is nothing to copy: that is what keeps a step from moving the cache.
  template <typename Provider>
  void* state(int input_index, int output_index, const char* name, Shape shape, size_t element_size,
              Provider& provider) const {
    const void* from = input(input_index, name, shape);
    void* to = output(output_index, shape);
    size_t bytes = element_size;
    for (const Axis* axis : shape) bytes *= axis->size;
    if (from != to && bytes != 0) provider.copy(to, from, bytes);
    return to;
  }

 private:
  std::vector<int64_t> dimensions(const OrtValue* value) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_, api_.GetTensorTypeAndShape(value, &info));
    size_t rank = 0;
    OrtStatus* status = api_.GetDimensionsCount(info, &rank);
    std::vector<int64_t> dims(rank);
    if (status == nullptr) status = api_.GetDimensions(info, dims.data(), rank);
    api_.ReleaseTensorTypeAndShapeInfo(info);
    check(api_, status);
    return dims;
  }

  void match(const char* name, Shape shape, const std::vector<int64_t>& dims) const {
    const bool matches =
        dims.size() == shape.size() &&
        std::equal(dims.begin(), dims.end(), shape.begin(), [](int64_t size, const Axis* axis) {
          return axis->size < 0 || axis->size == size;
        });
    if (!matches) throw std::runtime_error(mismatch(name, shape, dims));
    const int64_t* size = dims.data();
    for (Axis* axis : shape) axis->size = *size++;
  }

  std::string mismatch(const char* name, Shape shape, const std::vector<int64_t>& dims) const {
    std::string found;
    std::string expected;
    for (const int64_t size : dims) found += (found.empty() ? "" : ", ") + std::to_string(size);
    for (const Axis* axis : shape) expected += (expected.empty() ? "" : ", ") + axis->text();
    return node_ + ": " + name + " has shape [" + found + "], expected [" + expected + "]";
  }

  void* data(OrtValue* value) const {
    void* pointer = nullptr;
    check(api_, api_.GetTensorMutableData(value, &pointer));
    return pointer;
  }

  const OrtApi& api_;
  OrtKernelContext* context_;
  const std::string& node_;
};

}  // namespace gear::ort
