// What this library says, and what happens to exceptions: they end here.
#pragma once

#include <exception>
#include <utility>

#include "gear/attention.h"
#include "tensorrt/abi.h"

namespace gear::trt {

using Severity = nvinfer1::ILogger::Severity;

// The way to TensorRT's loggers, which TensorRT hands over when it loads the library.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// To the logger of the builder or engine that called; to standard error where there is none and the
// message is an error.
void log(Severity severity, const char* message) noexcept;

// Runs `body`, which returns an Error. Logs what it returned or threw; true where that is nothing.
template <typename Body>
bool succeeds(Body&& body) noexcept {
  try {
    const Error error = body();
    if (error.empty()) return true;
    log(Severity::kERROR, error.c_str());
  } catch (const std::exception& exception) {
    log(Severity::kERROR, exception.what());
  } catch (...) {
    log(Severity::kERROR, "gear: unknown exception");
  }
  return false;
}

}  // namespace gear::trt
