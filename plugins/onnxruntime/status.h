// Between ONNX Runtime's status and C++ exceptions.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

#include "ort_abi.h"

namespace gear::ort {

// Throws what `status` says and releases it. Exceptions stay inside this library: `guarded` turns
// them into a status wherever ONNX Runtime calls in.
inline void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

template <typename Body>
OrtStatus* guarded(const OrtApi& api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

}  // namespace gear::ort
