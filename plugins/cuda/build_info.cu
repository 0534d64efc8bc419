#include <string>

#include "cuda/build_info.h"
#include "gear/generated/spec.h"

#ifdef GEAR_EMULATED_GPU
#define GEAR_COMPILER "emulated, " __VERSION__
#else
#define GEAR_TEXT_OF(x) #x
#define GEAR_TEXT(x) GEAR_TEXT_OF(x)
#define GEAR_COMPILER "nvcc " GEAR_TEXT(__CUDACC_VER_MAJOR__) "." GEAR_TEXT(__CUDACC_VER_MINOR__)
#endif

namespace gear::cuda {

const char* build_info() {
  static const std::string info = std::string("{\"version\": \"") + GEAR_VERSION +
                                  "\", \"layout_hash\": \"" + kLayoutHash + "\", \"compiler\": \"" +
                                  GEAR_COMPILER + "\", \"architectures\": \"" + GEAR_ARCHITECTURES +
                                  "\"}";
  return info.c_str();
}

}  // namespace gear::cuda
