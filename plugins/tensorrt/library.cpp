// Entry points that TensorRT and gear_trt look up in the library.

#include "core/c_interface.h"
#include "cuda/build_info.h"
#include "cuda/layer.h"
#include "gear/gear_tensorrt.h"
#include "tensorrt/creator.h"
#include "tensorrt/log.h"

extern "C" {

GEAR_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* list[1] = {};
  count = 0;
  gear::trt::succeeds([&] {
    // Never destroyed: registries outlive static objects.
    static auto* const creator = new gear::trt::AttentionCreator;
    list[0] = creator;
    count = 1;
    return gear::Error{};
  });
  return list;
}

GEAR_EXPORT void setLoggerFinder(void* finder) { gear::trt::set_logger_finder(finder); }

const char* gear_tensorrt_layout_hash(void) { return gear::kLayoutHash; }

const char* gear_tensorrt_build_info(void) { return gear::cuda::build_info(); }

int gear_tensorrt_status(char* error, size_t error_size) {
  return gear::reported(error, error_size, [] { return gear::cuda::take_fault(); });
}

}  // extern "C"
