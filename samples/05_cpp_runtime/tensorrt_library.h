// TensorRT, opened when the program runs: whichever library the engine was built with.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

#include "tensorrt_abi.h"

// What TensorRT says goes to standard error, from warnings on.
class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, char const* message) noexcept override {
    if (severity > Severity::kWARNING) return;
    std::fprintf(stderr, "tensorrt: %s\n", message);
  }
};

class TensorRTLibrary {
 public:
  explicit TensorRTLibrary(const std::string& path) : library_(dlopen(path.c_str(), RTLD_NOW)) {
    if (library_ == nullptr) throw std::runtime_error(std::string("no TensorRT: ") + dlerror());
    version_ = function<int32_t()>("getInferLibVersion")();
    // TensorRT-RTX numbers its versions from 1 and has the tables of TensorRT 11.
    const bool is_rtx = version_ < kRtxBelow && GEAR_TENSORRT_TABLES == 11;
    if (!is_rtx && major() != GEAR_TENSORRT_TABLES) {
      throw std::runtime_error(path + " is TensorRT " + std::to_string(major()) +
                               ", this program was built for TensorRT " +
                               std::to_string(GEAR_TENSORRT_TABLES));
    }
  }

  std::unique_ptr<nvinfer1::IRuntime> create_runtime(Log& log) const {
    const auto create = function<void*(void*, int32_t)>("createInferRuntime_INTERNAL");
    auto* runtime = static_cast<nvinfer1::IRuntime*>(create(&log, version_));
    if (runtime == nullptr) throw std::runtime_error("TensorRT does not start");
    return std::unique_ptr<nvinfer1::IRuntime>(runtime);
  }

  void load_plugins(const std::string& path) const {
    auto* registry = function<nvinfer1::IPluginRegistry*()>("getPluginRegistry")();
    if (registry->loadLibrary(path.c_str()) == nullptr) {
      throw std::runtime_error("TensorRT refuses the plugin library " + path);
    }
  }

 private:
  static constexpr int32_t kRtxBelow = 20000;  // 10000 · major + 100 · minor + patch

  int32_t major() const { return version_ / 10000; }

  template <typename Signature>
  Signature* function(const char* name) const {
    void* found = dlsym(library_, name);
    if (found == nullptr) throw std::runtime_error(std::string("TensorRT has no function ") + name);
    return reinterpret_cast<Signature*>(found);
  }

  void* library_;
  int32_t version_ = 0;
};
