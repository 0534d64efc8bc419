// The part of TensorRT's runtime that this program uses, and nothing else.
//
// TensorRT from pip has no headers, so the ABI of TensorRT 11 and TensorRT-RTX 1.7 is declared here
// (10 has other tables). An object holds a pointer to an implementation, and that one a table of
// functions: entries 0 and 1 are the destructors, and within a major version the table only grows
// at its end. Where the official header is on the include path (CMake option TENSORRT_ROOT), that
// one is used. Names are the official ones; tests/samples compares the two.
#pragma once

#if __has_include(<NvInferRuntime.h>)
#include <NvInferRuntime.h>
#define GEAR_TENSORRT_TABLES NV_TENSORRT_MAJOR
#else
#define GEAR_TENSORRT_TABLES 11

#include <cstddef>
#include <cstdint>

using cudaStream_t = struct CUstream_st*;

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT32 = 3, kBF16 = 7, kINT64 = 8 };
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class APILanguage : int32_t { kCPP = 0 };

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};

struct InterfaceInfo {
  char const* kind;
  int32_t major;
  int32_t minor;
};

// Implemented by the program, called by TensorRT.
class ILogger {
 public:
  enum class Severity : int32_t {
    kINTERNAL_ERROR = 0,
    kERROR = 1,
    kWARNING = 2,
    kINFO = 3,
    kVERBOSE = 4,
  };

  virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
  virtual InterfaceInfo getInterfaceInfo() const noexcept { return {"ILogger", 1, 0}; }
  virtual ~ILogger() noexcept = default;
  virtual void log(Severity severity, char const* message) noexcept = 0;
};

// An object of TensorRT's.
class INoCopy {
 public:
  INoCopy(INoCopy const&) = delete;
  INoCopy& operator=(INoCopy const&) = delete;
  virtual ~INoCopy() = default;

 protected:
  INoCopy() = default;

  // Calls entry `kEntry` of the table of `object`.
  template <int kEntry, typename Result, typename... Arguments>
  static Result call(void* object, Arguments... arguments) noexcept {
    void** table = *static_cast<void***>(object);
    return reinterpret_cast<Result (*)(void*, Arguments...)>(table[kEntry])(object, arguments...);
  }

  void* mImpl{};
};

class IPluginRegistry {
 public:
  virtual ~IPluginRegistry() noexcept = default;
  virtual void entry2() = 0;
  virtual void entry3() = 0;
  virtual void entry4() = 0;
  virtual void entry5() = 0;
  virtual void* loadLibrary(char const* path) noexcept = 0;
};

class IExecutionContext : public INoCopy {
 public:
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) noexcept {
    return call<16, bool>(mImpl, profile, stream);
  }
  bool setInputShape(char const* name, Dims const& dims) noexcept {
    return call<20, bool>(mImpl, name, &dims);
  }
  bool setTensorAddress(char const* name, void* address) noexcept {
    return call<23, bool>(mImpl, name, address);
  }
  bool enqueueV3(cudaStream_t stream) noexcept { return call<36, bool>(mImpl, stream); }
};

class ICudaEngine : public INoCopy {
 public:
  IExecutionContext* createExecutionContext() noexcept {
    constexpr int32_t kSTATIC = 0;  // where its device memory comes from
    return call<5, IExecutionContext*>(mImpl, kSTATIC);
  }
  int32_t getNbOptimizationProfiles() const noexcept { return call<8, int32_t>(mImpl); }
  Dims getTensorShape(char const* name) const noexcept { return call<15, Dims>(mImpl, name); }
  DataType getTensorDataType(char const* name) const noexcept {
    return call<16, DataType>(mImpl, name);
  }
  TensorIOMode getTensorIOMode(char const* name) const noexcept {
    return call<19, TensorIOMode>(mImpl, name);
  }
  Dims getProfileShape(char const* name, int32_t profile, OptProfileSelector which) const noexcept {
    return call<25, Dims>(mImpl, name, profile, which);
  }
  int32_t getNbIOTensors() const noexcept { return call<26, int32_t>(mImpl); }
  char const* getIOTensorName(int32_t index) const noexcept {
    return call<27, char const*>(mImpl, index);
  }
};

class IRuntime : public INoCopy {
 public:
  ICudaEngine* deserializeCudaEngine(void const* blob, size_t size) noexcept {
    return call<3, ICudaEngine*>(mImpl, blob, size);
  }
};

}  // namespace nvinfer1

#endif
