# Sets GEAR_NVCC to the CUDA compiler: that of CUDACXX, of PATH, or of the pip packages
# nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime and nvidia-cuda-cccl beside the
# Python that builds; else to a false value.
if(NOT Python_EXECUTABLE)
  find_package(Python QUIET COMPONENTS Interpreter)
endif()
if(Python_EXECUTABLE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
    OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(CMAKE_CUDA_COMPILER)
  set(GEAR_NVCC ${CMAKE_CUDA_COMPILER})
elseif(DEFINED ENV{CUDACXX})
  find_program(GEAR_NVCC $ENV{CUDACXX} NO_CACHE)
else()
  find_program(GEAR_NVCC nvcc NO_CACHE PATHS /usr/local/cuda/bin ${packages}/nvidia/cu13/bin)
endif()
