# What both libgear_cuda and its emulation are made of.
set(gear_cuda_kernels
  ${PROJECT_SOURCE_DIR}/cuda/c_api.cu
  ${PROJECT_SOURCE_DIR}/cuda/attention/attention.cu
  ${PROJECT_SOURCE_DIR}/cuda/compress/compress.cu)
set(gear_cuda_sources
  ${gear_cuda_kernels}
  ${PROJECT_SOURCE_DIR}/core/attributes.cpp
  ${PROJECT_SOURCE_DIR}/core/data_errors.cpp)
# ONNX Runtime's custom-op host.
set(gear_cuda_host ${PROJECT_SOURCE_DIR}/onnxruntime/cuda_library.cu)
