# What the libraries with CUDA kernels, and their emulations, are made of.
set(gear_cuda_kernels
  ${PROJECT_SOURCE_DIR}/cuda/build_info.cu
  ${PROJECT_SOURCE_DIR}/cuda/host.cu
  ${PROJECT_SOURCE_DIR}/cuda/attention/attention.cu
  ${PROJECT_SOURCE_DIR}/cuda/compress/compress.cu)
set(gear_cuda_shared_sources
  ${gear_cuda_kernels}
  ${PROJECT_SOURCE_DIR}/core/attributes.cpp
  ${PROJECT_SOURCE_DIR}/core/data_errors.cpp)
# libgear_cuda alone, and TensorRT's plugin library alone.
set(gear_cuda_sources
  ${PROJECT_SOURCE_DIR}/cuda/c_api.cu
  ${PROJECT_SOURCE_DIR}/onnxruntime/cuda_library.cu)
set(gear_trt_sources
  ${PROJECT_SOURCE_DIR}/cuda/layer.cu
  ${PROJECT_SOURCE_DIR}/tensorrt/attention_plugin.cpp
  ${PROJECT_SOURCE_DIR}/tensorrt/fields.cpp
  ${PROJECT_SOURCE_DIR}/tensorrt/library.cpp
  ${PROJECT_SOURCE_DIR}/tensorrt/log.cpp
  ${PROJECT_SOURCE_DIR}/tensorrt/tensors.cpp)
