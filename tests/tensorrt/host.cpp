// What TensorRT does with a plugin library, as C functions for tests/tensorrt/host.py: TensorRT's
// Python bindings cannot call most methods of a plugin that is written in C++.

#include <dlfcn.h>

#include <string>
#include <utility>

#include "tensorrt/abi.h"

namespace {

using namespace nvinfer1;

// In TensorRT 10 the logger and its finder begin with their own function, later ones are versioned.
#if HOST_TENSORRT_VERSION / 10000 == 10
class Logger {
 public:
  virtual void log(int severity, const char* message) noexcept = 0;
  virtual ~Logger() = default;
};

class LoggerFinder {
 public:
  virtual Logger* findLogger() = 0;

 protected:
  virtual ~LoggerFinder() = default;
};
#else
class Logger : public IVersionedInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
  virtual void log(int severity, const char* message) noexcept = 0;
};

class LoggerFinder : public IVersionedInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  virtual Logger* findLogger() = 0;
};
#endif

class Log final : public Logger {
 public:
  void log(int severity, const char* message) noexcept override {
    lines_ += std::to_string(severity) + " " + message + "\n";
  }
  std::string take() { return std::exchange(lines_, {}); }

 private:
  std::string lines_;
};

class Finder final : public LoggerFinder {
 public:
  Logger* findLogger() override { return &log_; }
  std::string take() { return log_.take(); }

 private:
  Log log_;
};

// Never destroyed: the library keeps its address.
Finder& finder() {
  static auto* const finder = new Finder;
  return *finder;
}

IPluginV3* plugin(void* handle) { return static_cast<IPluginV3*>(handle); }

template <typename Capability>
Capability* capability(void* handle, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin(handle)->getCapabilityInterface(type));
}

IPluginV3OneCore* core(void* handle) {
  return capability<IPluginV3OneCore>(handle, PluginCapabilityType::kCORE);
}
IPluginV3OneBuildV2* build(void* handle) {
  return capability<IPluginV3OneBuildV2>(handle, PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime(void* handle) {
  return capability<IPluginV3OneRuntime>(handle, PluginCapabilityType::kRUNTIME);
}

}  // namespace

extern "C" {

// Libraries ask for it.
int getInferLibVersion() { return HOST_TENSORRT_VERSION; }

// The first creator of a library; null where it cannot be loaded.
void* host_load(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  const auto set_finder = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
  const auto get_creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
      dlsym(library, "getCreators"));
  if (set_finder == nullptr || get_creators == nullptr) return nullptr;
  set_finder(&finder());
  int32_t count = 0;
  IPluginCreatorInterface* const* const creators = get_creators(count);
  return count == 1 ? static_cast<IPluginCreatorV3One*>(creators[0]) : nullptr;
}

// One line per message since the last time: severity, space, text.
const char* host_take_log() {
  static std::string taken;
  taken = finder().take();
  return taken.c_str();
}

const PluginFieldCollection* host_field_names(void* creator) {
  return static_cast<IPluginCreatorV3One*>(creator)->getFieldNames();
}

void* host_create(void* creator, const PluginField* fields, int count, int phase) {
  const PluginFieldCollection collection{count, fields};
  return static_cast<IPluginCreatorV3One*>(creator)->createPlugin(
      "node", &collection, static_cast<TensorRTPhase>(phase));
}

void host_destroy(void* handle) { delete plugin(handle); }
void* host_clone(void* handle) { return plugin(handle)->clone(); }

const char* host_name(void* handle) { return core(handle)->getPluginName(); }
const char* host_version(void* handle) { return core(handle)->getPluginVersion(); }
const char* host_namespace(void* handle) { return core(handle)->getPluginNamespace(); }

int host_interface_major(void* handle) { return build(handle)->getInterfaceInfo().major; }
int host_num_outputs(void* handle) { return build(handle)->getNbOutputs(); }
const char* host_metadata(void* handle) { return build(handle)->getMetadataString(); }
int host_aliased_input(void* handle, int output) { return build(handle)->getAliasedInput(output); }

int host_output_types(void* handle, DataType* out, int num_out, const DataType* in, int num_in) {
  return build(handle)->getOutputDataTypes(out, num_out, in, num_in);
}

// The sizes of axes are handed through as addresses that nobody may look behind.
int host_output_shapes(void* handle, const DimsExprs* in, int num_in, DimsExprs* out, int num_out) {
  alignas(16) char builder[64] = {};
  return build(handle)->getOutputShapes(in, num_in, nullptr, 0, out, num_out,
                                        *reinterpret_cast<IExprBuilder*>(builder));
}

int host_supports(void* handle, int position, const DynamicPluginTensorDesc* in_out, int num_in,
                  int num_out) {
  return build(handle)->supportsFormatCombination(position, in_out, num_in, num_out);
}

int host_configure(void* handle, const DynamicPluginTensorDesc* in, int num_in,
                   const DynamicPluginTensorDesc* out, int num_out) {
  return build(handle)->configurePlugin(in, num_in, out, num_out);
}

size_t host_workspace(void* handle, const DynamicPluginTensorDesc* in, int num_in,
                      const DynamicPluginTensorDesc* out, int num_out) {
  return build(handle)->getWorkspaceSize(in, num_in, out, num_out);
}

void* host_attach(void* handle) { return runtime(handle)->attachToContext(nullptr); }

int host_shape_change(void* handle, const PluginTensorDesc* in, int num_in,
                      const PluginTensorDesc* out, int num_out) {
  return runtime(handle)->onShapeChange(in, num_in, out, num_out);
}

int host_enqueue(void* handle, const PluginTensorDesc* in, const PluginTensorDesc* out,
                 const void* const* inputs, void* const* outputs, void* workspace, void* stream) {
  return runtime(handle)->enqueue(in, out, inputs, outputs, workspace,
                                  static_cast<cudaStream_t>(stream));
}

const PluginFieldCollection* host_serialized(void* handle) {
  return runtime(handle)->getFieldsToSerialize();
}

}  // extern "C"
