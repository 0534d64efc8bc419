// Reads the attributes of one node.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "gear/attention.h"
#include "ort_abi.h"
#include "status.h"

namespace gear::ort {

class Attributes {
 public:
  Attributes(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  void read(const char* name, int& member, bool is_required) const {
    int64_t value = 0;
    if (!found(name, api_.KernelInfoGetAttribute_int64(info_, name, &value), is_required)) return;
    if (value < INT_MIN || value > INT_MAX) {
      throw std::runtime_error(std::string(gear_attention::kName) + ": attribute " + name + " is " +
                               std::to_string(value) + ", which is no 32-bit number");
    }
    member = static_cast<int>(value);
  }

  void read(const char* name, float& member, bool is_required) const {
    found(name, api_.KernelInfoGetAttribute_float(info_, name, &member), is_required);
  }

  std::string text(const char* name) const {
    size_t size = 0;
    found(name, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size), true);
    std::string value(size, '\0');
    check(api_, api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size));
    value.resize(size - 1);  // without the terminator
    return value;
  }

 private:
  bool found(const char* name, OrtStatus* status, bool is_required) const {
    if (status == nullptr) return true;
    api_.ReleaseStatus(status);
    if (is_required) {
      throw std::runtime_error(
          std::string(gear_attention::kName) + ": attribute " + name +
          " is missing or of another type; export the model again with gear-export");
    }
    return false;
  }

  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

}  // namespace gear::ort
