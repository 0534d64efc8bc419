// How far the sample's declarations of TensorRT go with a real library and no GPU: a runtime that
// refuses an engine, and a plugin registry that refuses a library. `abi_probe LIBRARY`.
#include <cstdio>

#include "tensorrt_library.h"

int main(int, char** argv) {
  try {
    const TensorRTLibrary tensorrt(argv[1]);
    Log log;
    const auto runtime = tensorrt.create_runtime(log);
    const char garbage[] =
        "this is no engine, whatever reads it; and it is longer than a header is";
    std::printf("engine: %p\n", static_cast<void*>(runtime->deserializeCudaEngine(garbage, 64)));
    tensorrt.load_plugins("/no/such/library.so");
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
}
