// The only way device code touches the GPU. Kernels are written once, in CUDA's own words
// (__global__, threadIdx, __syncthreads, __shfl_xor_sync, atomicAdd, __half2, ...), and include
// this header alone. nvcc compiles them for GPUs; with GEAR_EMULATED_GPU defined, a host compiler
// compiles the same source as C++17 and it runs on the CPU (cuda/emulator/emulator.h), one fibre
// per thread. What the emulator lacks is added there when a kernel needs it.
//
//   struct Shared { float row[64]; };
//
//   __global__ void __launch_bounds__(128) scale(const float* in, float* out) {
//     auto& shared = *shared_memory<Shared>();
//     ...
//   }
//
//   Error error = launch(scale, dim3(blocks), dim3(128), sizeof(Shared), stream, in, out);
//
// Rules that make one source serve both:
//   - Shared memory is dynamic only: shared_memory<T>(), its size given at the launch. The emulator
//     fills it with 0xff bytes (NaN, −1) before each block and guards its end.
//   - Blocks have whole warps, and warp collectives take the full mask. All threads of a block meet
//     at the same __syncthreads, all lanes of a warp at the same collective; the emulator aborts
//     with the place where they do not.
//   - The emulator runs blocks one after the other, and a thread runs until it waits: no thread may
//     spin on what another one writes. Counters ("the last block adds up") work.
//   - cp_async: its target may be read only after cp_async_wait. The emulator poisons the target
//     and copies at the wait, so that a missing wait shows. Meet at a barrier to see other threads'
//     copies.
//   - A missing barrier shows in the build that looks for races (emulator/races.h), and where the
//     threads' order matters: GEAR_EMULATOR_ORDER=reverse runs them from last to first, and tests
//     compare both orders. Shuffles are no barriers. Blocks share memory by __threadfence, atomics
//     and __ldcg.
//   - Functions: GEAR_DEVICE. No std:: in device code, no __noinline__, no __align__ (alignas).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "gear/attention.h"

namespace gear::cuda {

// What hosts set memory aside by for GPUs that they have not seen: the most multiprocessors that
// launches use, and the shared memory that a block of any GPU can have.
inline constexpr int kMaxMultiprocessors = 256;
inline constexpr int kLeastSharedBytes = 99 * 1024;

}  // namespace gear::cuda

#ifdef GEAR_EMULATED_GPU

#include "cuda/emulator/emulator.h"

#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define GEAR_DEVICE __device__ __forceinline__

namespace gear::cuda {

using Stream = cudaStream_t;

template <typename T>
GEAR_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

// Copies 4, 8 or 16 bytes from global to shared memory, both aligned to as many.
template <int kBytes>
GEAR_DEVICE void cp_async(void* shared, const void* global) {
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(global), "n"(kBytes)
                 : "memory");
  }
}

// Closes the group of this thread's copies since the last commit; it may be empty.
GEAR_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the newest `kGroups` groups of this thread are under way.
template <int kGroups>
GEAR_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// d += a · b for a [16, 16] row-major, b [16, 8] column-major, d [16, 8]; f16 products, f32 sums.
// Fragments of a lane, g = lane / 4 and t = lane % 4, two halves a register, lower one first:
//   a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)
//   b[0] rows 2t.., b[1] rows 2t + 8.., column g
//   d[0], d[1] (g, 2t..), d[2], d[3] (g + 8, 2t..)
GEAR_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Transposes an [8, 8] matrix of halves; a lane holds row lane / 4, columns 2 · (lane % 4)...
GEAR_DEVICE uint32_t movmatrix_trans(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Four [8, 8] matrices of halves in shared memory, transposed: lane 8i + r brings row r of matrix
// i, 8 halves aligned to 16 bytes; x[i] holds column lane / 4, rows 2 · (lane % 4).. of matrix i.
GEAR_DEVICE void ldmatrix_trans(uint32_t (&x)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

// Any bitwise function of three words; kTable is its truth table (a = 0xf0, b = 0xcc, c = 0xaa).
template <int kTable>
GEAR_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return result;
}

// The nearest bfloat16, ties to even, of two numbers; the first one in the low bits.
GEAR_DEVICE uint32_t pack_bfloat16(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}

// 2^x to about 2 ulp; 0 for −infinity.
GEAR_DEVICE float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

inline Error cuda_error(cudaError_t status) {
  if (status == cudaSuccess) return {};
  return std::string("CUDA: ") + cudaGetErrorString(status);
}

// Launches; the error, if any, is of this launch.
template <typename... Parameters, typename... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
             Stream stream, Arguments&&... arguments) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    const Error error = cuda_error(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    if (!error.empty()) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cuda_error(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

// Of the current device; 0 where there is none.
inline int num_multiprocessors() {
  const int count = device_attribute(cudaDevAttrMultiProcessorCount);
  return count < kMaxMultiprocessors ? count : kMaxMultiprocessors;
}
// As __CUDA_ARCH__.
inline int architecture() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) * 100 +
         device_attribute(cudaDevAttrComputeCapabilityMinor) * 10;
}
inline size_t max_shared_bytes() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

inline Error fill_bytes(void* device, int byte, size_t bytes, Stream stream) {
  return cuda_error(cudaMemsetAsync(device, byte, bytes, stream));
}

inline Error copy_device(void* to, const void* from, size_t bytes, Stream stream) {
  return cuda_error(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}

// Zeros in device memory, and zeros in host memory that kernels can write to. They are there on
// return: the streams of engines do not wait for the default one, on which they are written.
inline Error allocate(void** device, size_t bytes) {
  Error error = cuda_error(cudaMalloc(device, bytes));
  if (error.empty()) error = cuda_error(cudaMemset(*device, 0, bytes));
  return error.empty() ? cuda_error(cudaStreamSynchronize(cudaStreamLegacy)) : error;
}
inline Error allocate_shared(void** host, size_t bytes) {
  const Error error = cuda_error(cudaHostAlloc(host, bytes, cudaHostAllocMapped));
  if (error.empty()) memset(*host, 0, bytes);
  return error;
}
inline void free_device(void* device) { cudaFree(device); }
inline void free_shared(void* host) { cudaFreeHost(host); }

inline int current_device() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? device : 0;
}

// Waits for the stream.
inline Error read_device(void* host, const void* device, size_t bytes, Stream stream) {
  const Error error =
      cuda_error(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
  return error.empty() ? cuda_error(cudaStreamSynchronize(stream)) : error;
}

}  // namespace gear::cuda

#endif
