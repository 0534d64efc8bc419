// What this library says, and what happens to exceptions: they end here.
#pragma once

#include <exception>

#include "gear/attention.h"

namespace gear::trt {

// Of TensorRT's ILogger.
enum class Severity : int32_t { kError = 1, kVerbose = 4 };

// The way to TensorRT's loggers (ILoggerFinder), which TensorRT hands over when it loads the
// library.
void set_logger_finder(void* finder) noexcept;

// To the logger of the builder or engine that called; to standard error where there is none and the
// message is an error.
void log(Severity severity, const char* message) noexcept;

// Runs `body`, which returns an Error. Logs what it returned or threw; true where that is nothing.
template <typename Body>
bool succeeds(Body&& body) noexcept {
  try {
    const Error error = body();
    if (error.empty()) return true;
    log(Severity::kError, error.c_str());
  } catch (const std::exception& exception) {
    log(Severity::kError, exception.what());
  } catch (...) {
    log(Severity::kError, "gear: unknown exception");
  }
  return false;
}

}  // namespace gear::trt
