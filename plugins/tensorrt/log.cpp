#include "tensorrt/log.h"

#include <atomic>
#include <cstdio>

namespace gear::trt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger() noexcept {
  nvinfer1::ILoggerFinder* const finder = logger_finder;
  if (finder == nullptr) return nullptr;
  try {
    return finder->findLogger();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log(Severity severity, const char* message) noexcept {
  if (nvinfer1::ILogger* const logger = find_logger(); logger != nullptr) {
    logger->log(severity, message);
  } else if (severity <= Severity::kERROR) {
    std::fprintf(stderr, "%s\n", message);
  }
}

}  // namespace gear::trt
