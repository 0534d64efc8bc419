// Device memory that the kernels work in, by device and stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/device.h"
#include "gear/gear_cuda.h"

namespace gear::ort {

struct CudaWorkspace {
  void* memory;  // aligned as gear_cuda.h wants it; zeros before its first use
  size_t bytes;
};

// Calls on one stream share a workspace, whichever session and layer they are of. None is replaced
// while a node lives: captured graphs keep its address.
class CudaWorkspaces {
 public:
  // Those of the process: made for its first node, freed with its last one.
  static std::shared_ptr<CudaWorkspaces> shared() {
    const std::lock_guard lock(shared_mutex());
    std::shared_ptr<CudaWorkspaces> found = current().lock();
    if (found == nullptr) current() = found = std::make_shared<CudaWorkspaces>();
    return found;
  }

  // Those that nodes have now; null where there is no node.
  static std::shared_ptr<CudaWorkspaces> existing() {
    const std::lock_guard lock(shared_mutex());
    return current().lock();
  }

  CudaWorkspaces() = default;
  CudaWorkspaces(const CudaWorkspaces&) = delete;
  CudaWorkspaces& operator=(const CudaWorkspaces&) = delete;
  ~CudaWorkspaces() {
    for (const auto& [key, block] : blocks_) cuda::free_device(block);
  }

  CudaWorkspace get(size_t bytes, cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    size_t size = kAlignment;
    while (size < bytes) size *= 2;  // few sizes, so that batches of all sizes share them
    void*& block = blocks_[{cuda::current_device(), stream, size}];
    if (block == nullptr) check(cuda::allocate(&block, size + kAlignment));
    return {aligned(block), size};
  }

  // Waits for the stream and says what its calls met since the last time; empty where all is well.
  Error status(cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    Error first;
    for (const auto& [key, block] : blocks_) {
      if (std::get<cuda::Stream>(key) != stream || block == nullptr) continue;
      char text[kErrorBytes];
      const bool is_fault = gear_cuda_status(aligned(block), stream, text, sizeof(text)) != 0;
      if (is_fault && first.empty()) first = text;
    }
    return first;
  }

 private:
  static constexpr size_t kAlignment = 256;
  static constexpr size_t kErrorBytes = 512;
  using Key = std::tuple<int, cuda::Stream, size_t>;  // device, stream, bytes

  static std::mutex& shared_mutex() {
    static std::mutex mutex;
    return mutex;
  }

  static std::weak_ptr<CudaWorkspaces>& current() {
    static std::weak_ptr<CudaWorkspaces> workspaces;
    return workspaces;
  }

  static void check(const Error& error) {
    if (!error.empty()) throw std::runtime_error("no device memory to work in: " + error);
  }

  static void* aligned(void* block) {
    const auto address = reinterpret_cast<uintptr_t>(block);
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

  std::mutex mutex_;
  std::map<Key, void*> blocks_;
};

}  // namespace gear::ort
