#include "tensorrt/log.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>

namespace gear::trt {
namespace {

// The one thing of the ABI that is not the same in all versions: in TensorRT 10 the logger and its
// finder have nothing before their own function in the table; in TensorRT 11 and TensorRT-RTX they
// are versioned interfaces, with four functions before it.
constexpr int kVersionedSlot = 4;

struct Finder {
  std::atomic<void*> object{nullptr};
  std::atomic<int> slot{kVersionedSlot};
} finder;

template <typename Function>
Function virtual_function(void* object, int slot) {
  void** const table = *static_cast<void***>(object);
  return reinterpret_cast<Function>(table[slot]);
}

// Major version of the TensorRT whose code an object is of (1 of TensorRT-RTX); 0 where it is of
// something else.
int major_version(void* object) {
  Dl_info info{};
  if (dladdr(*static_cast<void**>(object), &info) == 0) return 0;
  void* const library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return 0;
  const auto version = reinterpret_cast<int (*)()>(dlsym(library, "getInferLibVersion"));
  const int number = version == nullptr ? 0 : version() / 10000;
  dlclose(library);
  return number;
}

void* find_logger() {
  void* const object = finder.object;
  if (object == nullptr) return nullptr;
  return virtual_function<void* (*)(void*)>(object, finder.slot)(object);
}

bool log_to_tensorrt(Severity severity, const char* message) noexcept {
  try {
    void* const logger = find_logger();
    if (logger == nullptr) return false;
    using Log = void (*)(void*, Severity, const char*);
    virtual_function<Log>(logger, finder.slot)(logger, severity, message);
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

void set_logger_finder(void* object) noexcept {
  finder.slot = object != nullptr && major_version(object) == 10 ? 0 : kVersionedSlot;
  finder.object = object;
}

void log(Severity severity, const char* message) noexcept {
  if (log_to_tensorrt(severity, message) || severity > Severity::kError) return;
  std::fprintf(stderr, "%s\n", message);
}

}  // namespace gear::trt
