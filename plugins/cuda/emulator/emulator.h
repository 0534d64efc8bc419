// A GPU on the CPU, for tests: what cuda/device.h offers, with the same meaning and more checks.
// A wrong kernel aborts with one line that says where; see cuda/device.h for the rules.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "cuda/emulator/half.h"
#include "cuda/emulator/vectors.h"
#include "gear/attention.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define GEAR_DEVICE inline

// Of the running thread; the scheduler sets them.
extern dim3 threadIdx;
extern dim3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

namespace gear::emulator {

// Where a thread waits: all that meet must come from the same place.
struct Site {
  const char* file;
  int line;
};

inline constexpr int kWarp = 32;
inline constexpr int kSlotBytes = 64;

// What the lanes of a warp bring to a collective, and take from it.
struct Slots {
  alignas(16) unsigned char bytes[kWarp][kSlotBytes];

  template <typename T>
  T get(int lane) const {
    static_assert(sizeof(T) <= kSlotBytes && std::is_trivially_copyable_v<T>);
    T value;
    memcpy(&value, bytes[lane], sizeof(value));
    return value;
  }

  template <typename T>
  void set(int lane, const T& value) {
    static_assert(sizeof(T) <= kSlotBytes && std::is_trivially_copyable_v<T>);
    memcpy(bytes[lane], &value, sizeof(value));
  }
};

[[noreturn]] void fail(Site site, const char* text);

int lane();

// The slots that this lane's next collective uses.
Slots& next_slots();

// Waits for the warp's other lanes; the last one to come runs `combine` where there is one.
void meet_warp(uint32_t mask, Site site, void (*combine)(Slots&) = nullptr);

// Waits for the warp's other lanes, and puts their accesses to memory in order (races.h).
void sync_warp(uint32_t mask, Site site);

// Waits for the block; returns the sum of what its threads brought.
int meet_block(int value, Site site);

void* shared_bytes();

// What puts accesses of different blocks in order (races.h).
void fence();
void begin_atomic(const void* target, size_t bytes);
void read_past_caches(void* to, const void* from, size_t bytes);

// Of the atomic operation's own accesses nobody takes note.
void copy_unwatched(void* to, const void* from, size_t bytes);

void begin_copy(void* shared, const void* global, int bytes, Site site);
void commit_copies();
void wait_copies(int groups);

// Runs body(context) for every thread of the grid.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context);

// The result of lane `source` of the operand `x`, which every lane brings.
template <typename T>
T shuffle(uint32_t mask, T x, int source, Site site) {
  Slots& slots = next_slots();
  slots.set(lane(), x);
  meet_warp(mask, site);
  return slots.get<T>(source);
}

inline uint32_t vote(uint32_t mask, bool x, Site site) {
  Slots& slots = next_slots();
  slots.set(lane(), x);
  meet_warp(mask, site);
  uint32_t votes = 0;
  for (int i = 0; i < kWarp; ++i) votes |= static_cast<uint32_t>(slots.get<bool>(i)) << i;
  return votes;
}

void multiply_fragments(Slots& slots);
void transpose_fragments(Slots& slots);

struct MmaOperands {
  float d[4];
  uint32_t a[4];
  uint32_t b[2];
};

}  // namespace gear::emulator

#define GEAR_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Warp collectives.
template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, GEAR_SITE_PARAMETERS) {
  const int lane = gear::emulator::lane();
  const int from = (lane & ~(width - 1)) | (source & (width - 1));
  return gear::emulator::shuffle(mask, x, from, {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int flip, int width = 32, GEAR_SITE_PARAMETERS) {
  const int lane = gear::emulator::lane();
  const int from = lane ^ flip;
  const bool is_inside = (from & ~(width - 1)) <= (lane & ~(width - 1));
  return gear::emulator::shuffle(mask, x, is_inside ? from : lane, {file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32, GEAR_SITE_PARAMETERS) {
  const int lane = gear::emulator::lane();
  const int from = lane + static_cast<int>(delta);
  const bool is_inside = (lane & (width - 1)) + static_cast<int>(delta) < width;
  return gear::emulator::shuffle(mask, x, is_inside ? from : lane, {file, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, GEAR_SITE_PARAMETERS) {
  const int lane = gear::emulator::lane();
  const bool is_inside = (lane & (width - 1)) >= static_cast<int>(delta);
  return gear::emulator::shuffle(mask, x, is_inside ? lane - static_cast<int>(delta) : lane,
                                 {file, line});
}

inline unsigned __ballot_sync(unsigned mask, bool x, GEAR_SITE_PARAMETERS) {
  return gear::emulator::vote(mask, x, {file, line});
}
inline int __any_sync(unsigned mask, bool x, GEAR_SITE_PARAMETERS) {
  return gear::emulator::vote(mask, x, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, bool x, GEAR_SITE_PARAMETERS) {
  return gear::emulator::vote(mask, x, {file, line}) == ~0u;
}
inline void __syncwarp(unsigned mask = ~0u, GEAR_SITE_PARAMETERS) {
  gear::emulator::sync_warp(mask, {file, line});
}

// Block barriers.
inline void __syncthreads(GEAR_SITE_PARAMETERS) { gear::emulator::meet_block(0, {file, line}); }
inline int __syncthreads_count(int x, GEAR_SITE_PARAMETERS) {
  return gear::emulator::meet_block(x != 0, {file, line});
}
inline int __syncthreads_or(int x, GEAR_SITE_PARAMETERS) {
  return gear::emulator::meet_block(x != 0, {file, line}) != 0;
}
inline int __syncthreads_and(int x, GEAR_SITE_PARAMETERS) {
  return gear::emulator::meet_block(x == 0, {file, line}) == 0;
}

// One thread runs at a time, so plain memory accesses are atomic and in order.
inline void __threadfence() { gear::emulator::fence(); }
inline void __threadfence_block() {}

// Puts update(*target) there; returns what was there.
template <typename T, typename Update>
T gear_atomic(T* target, Update&& update) {
  gear::emulator::begin_atomic(target, sizeof(T));
  T before;
  gear::emulator::copy_unwatched(&before, target, sizeof(T));
  const T after = update(before);
  gear::emulator::copy_unwatched(target, &after, sizeof(T));
  return before;
}
template <typename T>
T atomicAdd(T* target, std::common_type_t<T> x) {
  return gear_atomic(target, [x](T before) { return before + x; });
}
template <typename T>
T atomicMax(T* target, std::common_type_t<T> x) {
  return gear_atomic(target, [x](T before) { return before < x ? x : before; });
}
template <typename T>
T atomicMin(T* target, std::common_type_t<T> x) {
  return gear_atomic(target, [x](T before) { return x < before ? x : before; });
}
template <typename T>
T atomicExch(T* target, std::common_type_t<T> x) {
  return gear_atomic(target, [x](T) { return x; });
}
template <typename T>
T atomicCAS(T* target, std::common_type_t<T> expected, std::common_type_t<T> x) {
  return gear_atomic(target, [expected, x](T before) { return before == expected ? x : before; });
}

// Arithmetic. The host compiler must not contract (-ffp-contract=off); fmaf stays fused.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(std::ceil(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int __float_as_int(float x) { return static_cast<int>(gear::float_bits(x)); }
inline unsigned __float_as_uint(float x) { return gear::float_bits(x); }
inline float __int_as_float(int x) { return gear::bits_float(static_cast<uint32_t>(x)); }
inline float __uint_as_float(unsigned x) { return gear::bits_float(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned index = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * index) & 0xff) << (8 * i);
  }
  return result;
}

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

template <typename T>
T __ldg(const T* source) {
  return *source;
}
template <typename T>
T __ldcg(const T* source) {
  T x;
  gear::emulator::read_past_caches(&x, source, sizeof(T));
  return x;
}
template <typename T>
T __ldcs(const T* source) {
  return *source;
}

namespace gear::cuda {

using Stream = void*;

template <typename T>
T* shared_memory() {
  return static_cast<T*>(emulator::shared_bytes());
}

template <int kBytes>
void cp_async(void* shared, const void* global, GEAR_SITE_PARAMETERS) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::begin_copy(shared, global, kBytes, {file, line});
}
inline void cp_async_commit() { emulator::commit_copies(); }
template <int kGroups>
void cp_async_wait() {
  emulator::wait_copies(kGroups);
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         GEAR_SITE_PARAMETERS) {
  emulator::MmaOperands operands;
  memcpy(operands.d, d, sizeof(d));
  memcpy(operands.a, a, sizeof(a));
  memcpy(operands.b, b, sizeof(b));
  emulator::Slots& slots = emulator::next_slots();
  const int lane = emulator::lane();
  slots.set(lane, operands);
  emulator::meet_warp(~0u, {file, line}, &emulator::multiply_fragments);
  memcpy(d, slots.bytes[lane], sizeof(d));
}

inline uint32_t movmatrix_trans(uint32_t x, GEAR_SITE_PARAMETERS) {
  emulator::Slots& slots = emulator::next_slots();
  const int lane = emulator::lane();
  slots.set(lane, x);
  emulator::meet_warp(~0u, {file, line}, &emulator::transpose_fragments);
  return slots.get<uint32_t>(lane);
}

inline void ldmatrix_trans(uint32_t (&x)[4], const void* row, GEAR_SITE_PARAMETERS) {
  emulator::Slots& slots = emulator::next_slots();
  const int lane = emulator::lane();
  slots.set(lane, row);
  emulator::meet_warp(~0u, {file, line});
  for (int i = 0; i < 4; ++i) {
    uint32_t halves[2];
    for (int j = 0; j < 2; ++j) {
      const void* source = slots.get<const void*>(8 * i + 2 * (lane % 4) + j);
      halves[j] = static_cast<const uint16_t*>(source)[lane / 4];
    }
    x[i] = halves[0] | halves[1] << 16;
  }
}

template <int kTable>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i) {
    if (!(kTable >> i & 1)) continue;
    result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}

inline uint32_t pack_bfloat16(float first, float second) {
  const auto nearest = [](float x) -> uint32_t {
    const uint32_t bits = float_bits(x);
    if (std::isnan(x)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return nearest(first) | nearest(second) << 16;
}

inline float fast_exp2(float x) { return std::exp2(x); }

template <typename... Parameters, typename... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
             Arguments&&... arguments) {
  auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  emulator::run_grid(
      grid, block, shared_bytes, [](void* context) { (*static_cast<decltype(body)*>(context))(); },
      &body);
  return {};
}

// Few processors, so that blocks and warps have much to do in turn; sm_86's shared memory.
inline int num_multiprocessors() { return 1; }
inline int architecture() { return 860; }
inline size_t max_shared_bytes() { return 99 * 1024; }

inline Error fill_bytes(void* device, int byte, size_t bytes, Stream) {
  memset(device, byte, bytes);
  return {};
}

inline Error copy_device(void* to, const void* from, size_t bytes, Stream) {
  memcpy(to, from, bytes);
  return {};
}

inline Error allocate(void** device, size_t bytes) {
  *device = calloc(1, bytes);
  return *device == nullptr ? "out of memory" : Error{};
}
inline Error allocate_shared(void** host, size_t bytes) { return allocate(host, bytes); }
inline void free_device(void* device) { free(device); }
inline void free_shared(void* host) { free(host); }

inline int current_device() { return 0; }

inline Error read_device(void* host, const void* device, size_t bytes, Stream) {
  memcpy(host, device, bytes);
  return {};
}

}  // namespace gear::cuda
