// Decodes one sequence with an engine that gear-export built: state in device memory, updated in
// place; one execution context for prompts, one for single tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/half.h"
#include "cuda_driver.h"
#include "tensorrt_abi.h"

class Decoder {
 public:
  // `max_tokens`: tokens of the sequence, prompt and answer together.
  Decoder(nvinfer1::ICudaEngine& engine, const CudaDriver& cuda, int max_tokens)
      : engine_(engine), cuda_(cuda) {
    choose_profiles();
    choose_pages(max_tokens);
    for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) allocate(engine.getIOTensorName(i));
    for (Phase& phase : phases_) bind(phase);
    fill_page_table();
  }

  // Appends tokens to the sequence and returns the likeliest next one.
  int64_t step(const std::vector<int64_t>& tokens) {
    int64_t next = -1;
    for (size_t start = 0; start < tokens.size();) {
      Phase& phase = phases_[tokens.size() - start == 1 ? kDecode : kPrefill];
      const auto count = std::min<size_t>(tokens.size() - start, phase.max_tokens);
      next = run(phase, tokens.data() + start, static_cast<int32_t>(count));
      start += count;
    }
    return next;
  }

 private:
  using Dims = nvinfer1::Dims;
  enum { kPrefill, kDecode };
  static constexpr int64_t kChunkUnit = 64;  // a page holds 64 or 128 tokens

  struct Phase {
    int32_t profile = 0;
    int64_t max_tokens = 0;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
  };

  int64_t largest(const char* tensor, int32_t profile, int axis) const {
    return engine_.getProfileShape(tensor, profile, nvinfer1::OptProfileSelector::kMAX).d[axis];
  }

  // The profile with the fewest tokens decodes, the one with the most reads prompts.
  void choose_profiles() {
    for (int32_t profile = 0; profile < engine_.getNbOptimizationProfiles(); ++profile) {
      const int64_t tokens = largest("input_ids", profile, 1);
      if (tokens < 1) throw std::runtime_error("the engine has no input input_ids: not by gear");
      Phase& prefill = phases_[kPrefill];
      Phase& decode = phases_[kDecode];
      if (profile == 0 || tokens > prefill.max_tokens) prefill = {profile, tokens, nullptr};
      if (profile == 0 || tokens < decode.max_tokens) decode = {profile, tokens, nullptr};
    }
  }

  void choose_pages(int max_tokens) {
    const int64_t rows = engine_.getTensorShape("residual_buffer.0").d[3];
    const int64_t chunk = rows / kChunkUnit * kChunkUnit;  // without the sinks, less than 64
    pages_ = std::max<int64_t>(1, max_tokens / chunk);     // newer tokens wait in the buffer
    for (const Phase& phase : phases_) {
      if (pages_ <= largest("page_table", phase.profile, 1)) continue;
      throw std::runtime_error(std::to_string(max_tokens) +
                               " tokens are more than the engine holds");
    }
  }

  // Updated state shares the memory of the state it comes from.
  void allocate(const std::string& name) {
    constexpr char kUpdated[] = "_out.";
    std::string owner = name;
    if (const size_t at = owner.find(kUpdated); at != std::string::npos) {
      owner.replace(at, std::strlen(kUpdated), ".");
    }
    if (memory_.count(owner) == 0) memory_[owner] = cuda_.zeros(bytes_of(owner));
    memory_[name] = memory_[owner];
  }

  size_t bytes_of(const std::string& name) const {
    const Dims dims = engine_.getTensorShape(name.c_str());
    size_t bytes = element_bytes(engine_.getTensorDataType(name.c_str()));
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) bytes *= size_of(name, dims, axis);
    return bytes;
  }

  // Free axes: one sequence, all its pages, the longest piece of a prompt.
  int64_t size_of(const std::string& name, const Dims& dims, int32_t axis) const {
    if (dims.d[axis] >= 0) return dims.d[axis];
    const bool is_pages = axis == 0 ? name.rfind("page_pool", 0) == 0 : name == "page_table";
    if (is_pages) return pages_;
    return axis == 0 ? 1 : phases_[kPrefill].max_tokens;
  }

  static size_t element_bytes(nvinfer1::DataType type) {
    switch (type) {
      case nvinfer1::DataType::kINT64:
        return 8;
      case nvinfer1::DataType::kFLOAT:
      case nvinfer1::DataType::kINT32:
        return 4;
      case nvinfer1::DataType::kHALF:
      case nvinfer1::DataType::kBF16:
        return 2;
      default:
        throw std::runtime_error("the engine has a tensor of a type that gear does not use");
    }
  }

  void bind(Phase& phase) {
    phase.context.reset(engine_.createExecutionContext());
    if (phase.context == nullptr) throw std::runtime_error("TensorRT makes no execution context");
    check(phase.context->setOptimizationProfileAsync(phase.profile, cuda_.stream()), "a profile");
    for (const auto& [name, address] : memory_) {
      check(phase.context->setTensorAddress(name.c_str(), address), name);
      if (engine_.getTensorIOMode(name.c_str()) != nvinfer1::TensorIOMode::kINPUT) continue;
      set_shape(phase, name, 1);
    }
  }

  // Its only sequence owns all pages, in order.
  void fill_page_table() {
    std::vector<int32_t> pages(pages_);
    std::iota(pages.begin(), pages.end(), 0);
    cuda_.upload(memory_.at("page_table"), pages.data(), pages.size() * sizeof(int32_t));
    cuda_.wait();
  }

  void set_shape(Phase& phase, const std::string& name, int64_t tokens) {
    Dims dims = engine_.getTensorShape(name.c_str());
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) dims.d[axis] = size_of(name, dims, axis);
    if (name == "input_ids") dims.d[1] = tokens;
    check(phase.context->setInputShape(name.c_str(), dims), name);
  }

  int64_t run(Phase& phase, const int64_t* tokens, int32_t count) {
    set_shape(phase, "input_ids", count);
    cuda_.upload(memory_.at("input_ids"), tokens, count * sizeof(int64_t));
    cuda_.upload(memory_.at("past_lengths"), &length_, sizeof(length_));
    cuda_.upload(memory_.at("new_lengths"), &count, sizeof(count));
    check(phase.context->enqueueV3(cuda_.stream()), "a step");
    const int64_t next = likeliest(count - 1);
    length_ += count;
    return next;
  }

  // Waits for the step.
  int64_t likeliest(int32_t token) {
    const Dims dims = engine_.getTensorShape("logits");
    const nvinfer1::DataType type = engine_.getTensorDataType("logits");
    const size_t vocab = dims.d[dims.nbDims - 1];
    const size_t row = vocab * element_bytes(type);
    std::vector<unsigned char> bytes(row);
    cuda_.download(bytes.data(), static_cast<char*>(memory_.at("logits")) + token * row, row);
    cuda_.wait();
    std::vector<float> logits(vocab);
    for (size_t i = 0; i < vocab; ++i) logits[i] = element(bytes.data(), type, i);
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  }

  static float element(const unsigned char* elements, nvinfer1::DataType type, size_t index) {
    float value;
    if (type == nvinfer1::DataType::kFLOAT) {
      std::memcpy(&value, elements + index * sizeof(value), sizeof(value));
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, elements + index * sizeof(bits), sizeof(bits));
    if (type == nvinfer1::DataType::kHALF) return gear::half_to_float(bits);
    const uint32_t word = static_cast<uint32_t>(bits) << 16;  // bfloat16
    std::memcpy(&value, &word, sizeof(value));
    return value;
  }

  static void check(bool is_accepted, const std::string& what) {
    if (!is_accepted) throw std::runtime_error("TensorRT refuses " + what);
  }

  nvinfer1::ICudaEngine& engine_;
  const CudaDriver& cuda_;
  Phase phases_[2];
  int64_t pages_ = 0;
  int32_t length_ = 0;
  std::map<std::string, void*> memory_;
};
