// The few functions of the CUDA driver that this program uses, looked up when it runs.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <stdexcept>
#include <string>

class CudaDriver {
 public:
  using Stream = struct CUstream_st*;
  using Address = unsigned long long;

  // Makes the first GPU the current one. Throws where there is none.
  CudaDriver() {
    library_ = dlopen("libcuda.so.1", RTLD_NOW);
    if (library_ == nullptr)
      throw std::runtime_error("there is no NVIDIA GPU, or no driver for it");
    int device = 0;
    void* context = nullptr;
    call<unsigned>("cuInit", 0);
    call<int*, int>("cuDeviceGet", &device, 0);
    call<void**, int>("cuDevicePrimaryCtxRetain", &context, device);
    call<void*>("cuCtxSetCurrent", context);
    call<Stream*, unsigned>("cuStreamCreate", &stream_, kNonBlocking);
  }

  Stream stream() const { return stream_; }

  // Device memory that is filled with zeros and lasts as long as the process.
  void* zeros(size_t bytes) const {
    Address address = 0;
    call<Address*, size_t>("cuMemAlloc_v2", &address, bytes);
    call<Address, unsigned char, size_t, Stream>("cuMemsetD8Async", address, 0, bytes, stream_);
    return reinterpret_cast<void*>(address);
  }

  void upload(void* device, const void* host, size_t bytes) const {
    const auto address = reinterpret_cast<Address>(device);
    call<Address, const void*, size_t, Stream>("cuMemcpyHtoDAsync_v2", address, host, bytes,
                                               stream_);
  }

  void download(void* host, const void* device, size_t bytes) const {
    const auto address = reinterpret_cast<Address>(device);
    call<void*, Address, size_t, Stream>("cuMemcpyDtoHAsync_v2", host, address, bytes, stream_);
  }

  void wait() const { call<Stream>("cuStreamSynchronize", stream_); }

 private:
  static constexpr unsigned kNonBlocking = 1;

  template <typename... Arguments>
  void call(const char* name, Arguments... arguments) const {
    const auto function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library_, name));
    const int status = function == nullptr ? -1 : function(arguments...);
    if (status != 0) {
      throw std::runtime_error(std::string("the CUDA driver refuses ") + name + ": error " +
                               std::to_string(status));
    }
  }

  void* library_ = nullptr;
  Stream stream_ = nullptr;
};
