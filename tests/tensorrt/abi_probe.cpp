// Prints what a compiler makes of tensorrt/abi.h: sizes, offsets, values, and the place of every
// virtual function. With TensorRT's headers on the include path it prints what they say.

#include <cstddef>
#include <cstdio>
#include <cstring>

#include "tensorrt/abi.h"

using namespace nvinfer1;

namespace {

// A pointer to a virtual function holds its offset in the table: plus 1 on x86-64, as it is on Arm
// (Itanium C++ ABI, and Arm's).
template <typename Function>
size_t slot(Function function) {
  size_t offset = 0;
  memcpy(&offset, &function, sizeof(offset));
  return (offset & ~size_t{1}) / sizeof(void*);
}

#define SIZE(type) printf("%s: %zu bytes\n", #type, sizeof(type))
#define MEMBER(type, member) printf("%s.%s: byte %zu\n", #type, #member, offsetof(type, member))
#define VALUE(value) printf("%s = %d\n", #value, static_cast<int>(value))
#define SLOT(type, function) printf("%s.%s: slot %zu\n", #type, #function, slot(&type::function))

// Asks an interface who it is.
class Creator : public IPluginCreatorV3One {
 public:
  IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*,
                          TensorRTPhase) noexcept override {
    return nullptr;
  }
  PluginFieldCollection const* getFieldNames() noexcept override { return nullptr; }
  AsciiChar const* getPluginName() const noexcept override { return ""; }
  AsciiChar const* getPluginVersion() const noexcept override { return ""; }
  AsciiChar const* getPluginNamespace() const noexcept override { return ""; }
};

class Plugin : public IPluginV3 {
 public:
  IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept override {
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return nullptr; }
};

class Core : public IPluginV3OneCore {
 public:
  AsciiChar const* getPluginName() const noexcept override { return ""; }
  AsciiChar const* getPluginVersion() const noexcept override { return ""; }
  AsciiChar const* getPluginNamespace() const noexcept override { return ""; }
};

class Build : public IPluginV3OneBuildV2 {
 public:
  int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) noexcept override {
    return 0;
  }
  int32_t getOutputDataTypes(DataType*, int32_t, DataType const*, int32_t) const noexcept override {
    return 0;
  }
  int32_t getOutputShapes(DimsExprs const*, int32_t, DimsExprs const*, int32_t, DimsExprs*, int32_t,
                          IExprBuilder&) noexcept override {
    return 0;
  }
  bool supportsFormatCombination(int32_t, DynamicPluginTensorDesc const*, int32_t,
                                 int32_t) noexcept override {
    return false;
  }
  int32_t getNbOutputs() const noexcept override { return 0; }
};

class Runtime : public IPluginV3OneRuntime {
 public:
  int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*,
                        int32_t) noexcept override {
    return 0;
  }
  int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const*,
                  void* const*, void*, cudaStream_t) noexcept override {
    return 0;
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return nullptr; }
  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return nullptr; }
};

template <typename Interface>
void identity(const char* name) {
  const Interface interface;
  const InterfaceInfo info = interface.getInterfaceInfo();
  printf("%s is %s %d.%d, written in %d, %zu bytes\n", name, info.kind, info.major, info.minor,
         static_cast<int>(interface.getAPILanguage()), sizeof(Interface));
}

void structs() {
  SIZE(Dims);
  VALUE(Dims::MAX_DIMS);
  MEMBER(Dims, nbDims);
  MEMBER(Dims, d);
  SIZE(DimsExprs);
  MEMBER(DimsExprs, nbDims);
  MEMBER(DimsExprs, d);
  SIZE(PluginTensorDesc);
  MEMBER(PluginTensorDesc, dims);
  MEMBER(PluginTensorDesc, type);
  MEMBER(PluginTensorDesc, format);
  MEMBER(PluginTensorDesc, scale);
  SIZE(DynamicPluginTensorDesc);
  MEMBER(DynamicPluginTensorDesc, desc);
  MEMBER(DynamicPluginTensorDesc, min);
  MEMBER(DynamicPluginTensorDesc, max);
  MEMBER(DynamicPluginTensorDesc, opt);
  SIZE(PluginField);
  MEMBER(PluginField, name);
  MEMBER(PluginField, data);
  MEMBER(PluginField, type);
  MEMBER(PluginField, length);
  SIZE(PluginFieldCollection);
  MEMBER(PluginFieldCollection, nbFields);
  MEMBER(PluginFieldCollection, fields);
  SIZE(InterfaceInfo);
  MEMBER(InterfaceInfo, kind);
  MEMBER(InterfaceInfo, major);
  MEMBER(InterfaceInfo, minor);
}

void enums() {
  VALUE(DataType::kFLOAT);
  VALUE(DataType::kHALF);
  VALUE(DataType::kINT32);
  VALUE(DataType::kBF16);
  VALUE(TensorFormat::kLINEAR);
  VALUE(APILanguage::kCPP);
  VALUE(PluginCapabilityType::kCORE);
  VALUE(PluginCapabilityType::kBUILD);
  VALUE(PluginCapabilityType::kRUNTIME);
  VALUE(PluginFieldType::kFLOAT32);
  VALUE(PluginFieldType::kINT32);
  VALUE(PluginFieldType::kCHAR);
  VALUE(PluginFieldType::kUNKNOWN);
  VALUE(PluginFieldType::kINT64);
}

void functions() {
  SLOT(IVersionedInterface, getAPILanguage);
  SLOT(IVersionedInterface, getInterfaceInfo);
  SLOT(IPluginV3, getCapabilityInterface);
  SLOT(IPluginV3, clone);
  SLOT(IPluginV3OneCore, getPluginName);
  SLOT(IPluginV3OneCore, getPluginVersion);
  SLOT(IPluginV3OneCore, getPluginNamespace);
  SLOT(IPluginV3OneBuildV2, configurePlugin);
  SLOT(IPluginV3OneBuildV2, getOutputDataTypes);
  SLOT(IPluginV3OneBuildV2, getOutputShapes);
  SLOT(IPluginV3OneBuildV2, supportsFormatCombination);
  SLOT(IPluginV3OneBuildV2, getNbOutputs);
  SLOT(IPluginV3OneBuildV2, getWorkspaceSize);
  SLOT(IPluginV3OneBuildV2, getValidTactics);
  SLOT(IPluginV3OneBuildV2, getNbTactics);
  SLOT(IPluginV3OneBuildV2, getTimingCacheID);
  SLOT(IPluginV3OneBuildV2, getFormatCombinationLimit);
  SLOT(IPluginV3OneBuildV2, getMetadataString);
  SLOT(IPluginV3OneBuildV2, getAliasedInput);
  SLOT(IPluginV3OneRuntime, setTactic);
  SLOT(IPluginV3OneRuntime, onShapeChange);
  SLOT(IPluginV3OneRuntime, enqueue);
  SLOT(IPluginV3OneRuntime, attachToContext);
  SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
  SLOT(IPluginCreatorV3One, createPlugin);
  SLOT(IPluginCreatorV3One, getFieldNames);
  SLOT(IPluginCreatorV3One, getPluginName);
  SLOT(IPluginCreatorV3One, getPluginVersion);
  SLOT(IPluginCreatorV3One, getPluginNamespace);
}

}  // namespace

int main() {
  structs();
  enums();
  functions();
  identity<Creator>("creator");
  identity<Plugin>("plugin");
  identity<Core>("core");
  identity<Build>("build");
  identity<Runtime>("runtime");
  Build build;
  VALUE(build.getFormatCombinationLimit());
  VALUE(build.getAliasedInput(0));
}
