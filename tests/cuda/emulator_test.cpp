// Kernels that show what the emulated GPU does: `emulator_test NAME` runs one, and fails or aborts
// where a result is wrong. tests/cuda/test_emulator.py calls it. This is also the example to copy:
// a kernel, its shared memory, its launch.

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace gear::cuda {
namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "wrong: %s\n", what);
  ++failures;
}

struct SumShared {
  float of_warp[4];
};

// One sum per block of 128 elements.
__global__ void __launch_bounds__(128) block_sums(const float* x, float* sums) {
  auto& shared = *shared_memory<SumShared>();
  float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int flip = 16; flip > 0; flip /= 2) sum += __shfl_xor_sync(~0u, sum, flip);
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    sums[blockIdx.x] =
        shared.of_warp[0] + shared.of_warp[1] + shared.of_warp[2] + shared.of_warp[3];
  }
}

void test_block_sums() {
  std::vector<float> x(384);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  std::vector<float> sums(3);
  const Error error =
      launch(block_sums, dim3(3), dim3(128), sizeof(SumShared), Stream{}, x.data(), sums.data());
  expect(error.empty(), "the launch succeeds");
  for (int block = 0; block < 3; ++block) {
    expect(sums[block] == 128 * (128 * block) + 127 * 64, "sum of a block");
  }
}

__global__ void collectives(int* results) {
  const int lane = static_cast<int>(threadIdx.x);
  results[0 * 32 + lane] = __shfl_sync(~0u, lane, 5);
  results[1 * 32 + lane] = __shfl_sync(~0u, lane, 5, 8);
  results[2 * 32 + lane] = __shfl_up_sync(~0u, lane, 3);
  results[3 * 32 + lane] = __shfl_down_sync(~0u, lane, 3, 16);
  results[4 * 32 + lane] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  results[5 * 32 + lane] = __any_sync(~0u, lane == 31) + 2 * __all_sync(~0u, lane < 31);
}

void test_collectives() {
  std::vector<int> results(6 * 32);
  launch(collectives, dim3(1), dim3(32), 0, Stream{}, results.data());
  for (int lane = 0; lane < 32; ++lane) {
    expect(results[lane] == 5, "shfl");
    expect(results[32 + lane] == lane / 8 * 8 + 5, "shfl of width 8");
    expect(results[64 + lane] == (lane < 3 ? lane : lane - 3), "shfl_up");
    expect(results[96 + lane] == (lane % 16 < 13 ? lane + 3 : lane), "shfl_down of width 16");
    expect(results[128 + lane] == 0x49249249, "ballot");
    expect(results[160 + lane] == 1, "any and all");
  }
}

__global__ void last_block(int* counter, int* result) {
  const int count = __syncthreads_count(threadIdx.x % 2 == 0);
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(counter, 1) == static_cast<int>(gridDim.x) - 1) *result = count;
}

void test_last_block() {
  int counter = 0;
  int result = 0;
  launch(last_block, dim3(7), dim3(64), 0, Stream{}, &counter, &result);
  expect(counter == 7 && result == 32, "the last block sees all others");
}

// d [16, 8] = a [16, 16] · b [16, 8]: the factors travel by the fragment layout of PTX.
__global__ void multiply(const __half* a, const __half* b, float* d) {
  const int group = static_cast<int>(threadIdx.x) / 4;
  const int pair = 2 * (static_cast<int>(threadIdx.x) % 4);
  const auto word = [](__half low, __half high) {
    return __half_as_ushort(low) | static_cast<uint32_t>(__half_as_ushort(high)) << 16;
  };
  uint32_t a_fragment[4];
  for (int i = 0; i < 4; ++i) {
    const __half* from = a + (group + 8 * (i % 2)) * 16 + pair + 8 * (i / 2);
    a_fragment[i] = word(from[0], from[1]);
  }
  uint32_t b_fragment[2];
  for (int i = 0; i < 2; ++i) {
    const __half* from = b + (pair + 8 * i) * 8 + group;
    b_fragment[i] = word(from[0], from[8]);
  }
  float sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma_m16n8k16(sum, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) d[(group + 8 * (i / 2)) * 8 + pair + i % 2] = sum[i];
}

void test_mma() {
  std::vector<__half> a(256);
  std::vector<__half> b(128);
  for (int i = 0; i < 256; ++i) a[i] = __float2half_rn(static_cast<float>(i * 7 % 31 - 15));
  for (int i = 0; i < 128; ++i) b[i] = __float2half_rn(static_cast<float>(i * 5 % 23 - 11));
  std::vector<float> d(128);
  launch(multiply, dim3(1), dim3(32), 0, Stream{}, a.data(), b.data(), d.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float expected = 1.0f;
      for (int k = 0; k < 16; ++k) {
        expected += __half2float(a[row * 16 + k]) * __half2float(b[k * 8 + column]);
      }
      expect(d[row * 8 + column] == expected, "element of the product");
    }
  }
}

__global__ void transpose(uint32_t* words) {
  words[threadIdx.x] = movmatrix_trans(words[threadIdx.x]);
}

void test_movmatrix() {
  uint16_t matrix[8][8];
  for (int i = 0; i < 64; ++i) matrix[i / 8][i % 8] = static_cast<uint16_t>(i);
  uint32_t words[32];
  memcpy(words, matrix, sizeof(words));
  launch(transpose, dim3(1), dim3(32), 0, Stream{}, words);
  memcpy(matrix, words, sizeof(words));
  for (int i = 0; i < 64; ++i) expect(matrix[i % 8][i / 8] == i, "transposed element");
}

struct CopyShared {
  alignas(16) int stages[2][32 * 4];
};

// Copies two stages, waits for the first one only if told to wait for none.
__global__ void copy(const int* in, int* out) {
  auto& shared = *shared_memory<CopyShared>();
  const int first = static_cast<int>(threadIdx.x) * 4;
  for (int stage = 0; stage < 2; ++stage) {
    cp_async<16>(shared.stages[stage] + first, in + stage * 128 + first);
    cp_async_commit();
  }
  cp_async_wait<1>();
  for (int i = 0; i < 4; ++i) out[first + i] = shared.stages[0][first + i];
  for (int i = 0; i < 4; ++i) out[128 + first + i] = shared.stages[1][first + i];
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) out[256 + first + i] = shared.stages[1][first + i];
}

void test_cp_async() {
  alignas(16) int in[256];
  for (int i = 0; i < 256; ++i) in[i] = i;
  int out[384];
  launch(copy, dim3(1), dim3(32), sizeof(CopyShared), Stream{}, in, out);
  for (int i = 0; i < 128; ++i) {
    expect(out[i] == i, "a group that was waited for");
    expect(out[128 + i] == -1, "a group that was not waited for is poisoned");
    expect(out[256 + i] == 128 + i, "all groups after wait<0>");
  }
}

void test_half() {
  // 2049 lies between 2048 and 2050: ties go to even, also behind an inexact product.
  const auto half_of = [](float x) { return __float2half_rn(x); };
  expect(__half2float(__hadd(half_of(2048), half_of(1))) == 2048, "a tie rounds to even");
  expect(__half2float(__hadd(half_of(2048), half_of(3))) == 2052, "a tie rounds to even, upwards");
  expect(__half2float(__hfma(half_of(2048), half_of(1), half_of(1.001f))) == 2050, "fused");
  expect(__half2float(__hmul(half_of(300), half_of(300))) == INFINITY, "overflow is infinite");
  expect(__half2float(half_of(65519)) == 65504, "just below the overflow");
  // 1 + 2^-11 (a tie) + 2^-24·2^-20: only a sum without double rounding goes up.
  const __half tiny = half_of(0x1p-14f);
  const float up = __half2float(__hfma(tiny, half_of(0x1p-24f), half_of(1.0f)));
  expect(up == 1.0f, "far below half a step");
  const __half2 pair =
      __hfma2(__floats2half2_rn(1, 2), __floats2half2_rn(3, 4), __float2half2_rn(5));
  expect(__low2float(pair) == 8 && __high2float(pair) == 13, "pairs");
  expect(lop3<0xea>(0x0f, 0x3c, 0x40) == ((0x0fu & 0x3cu) | 0x40u), "lop3: a & b | c");
  expect(__byte_perm(0x33221100, 0x77665544, 0x7410) == 0x77441100, "byte_perm");
}

void test_bfloat16() {
  // 1 + 2^-8 lies between 1 and 1 + 2^-7.
  expect(pack_bfloat16(1 + 0x1p-8f, 1 + 3 * 0x1p-8f) == 0x3f823f80, "ties go to even");
  expect(pack_bfloat16(-0x1.fffffep127f, NAN) == 0x7fffff80, "overflow is infinite, NaN is NaN");
}

__global__ void early_exit() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}

__global__ void diverged_warp(int* out) {
  if (threadIdx.x < 16) {
    *out = __shfl_sync(~0u, 1, 0);
  } else {
    *out = __shfl_sync(~0u, 2, 0);
  }
}

__global__ void diverged_block() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void part_of_a_warp() { __syncwarp(0xff); }

__global__ void out_of_shared() { shared_memory<unsigned char>()[64 + threadIdx.x] = 0; }

__global__ void unwaited_copy(const int* in) {
  cp_async<4>(shared_memory<int>() + threadIdx.x, in + threadIdx.x);
}

__global__ void misaligned_copy(const int* in) { cp_async<16>(shared_memory<int>(), in + 1); }

// Every thread reads its neighbour's element, after what `kMeet` does.
template <void (*kMeet)()>
__global__ void read_neighbour(int* out) {
  int* shared = shared_memory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  kMeet();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

void do_not_meet() {}
void shuffle() { __shfl_sync(~0u, 0, 0); }
void sync_warp() { __syncwarp(); }
void sync_block() { __syncthreads(); }

template <void (*kMeet)(), int kThreads>
void test_read_neighbour() {
  int out[kThreads];
  launch(read_neighbour<kMeet>, dim3(1), dim3(kThreads), 4 * kThreads, Stream{}, out);
  for (int i = 0; i < kThreads; ++i) expect(out[i] == (i ^ 1), "the neighbour's element");
}

// Every warp reads the elements of the next one.
__global__ void read_next_warp(int* out) {
  int* shared = shared_memory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = shared[(threadIdx.x + 32) % blockDim.x];
}

// Every thread waits for its own copy, and reads its neighbour's.
__global__ void read_neighbours_copy(const int* in, int* out) {
  int* shared = shared_memory<int>();
  cp_async<4>(shared + threadIdx.x, in + threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// A stage is filled again while the warp's other lanes may still read it.
__global__ void refill(const int* in, int* out) {
  int* shared = shared_memory<int>();
  for (int turn = 0; turn < 2; ++turn) {
    cp_async<4>(shared + threadIdx.x, in + threadIdx.x);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    out[threadIdx.x] = shared[threadIdx.x ^ 1];
  }
}

__global__ void misaligned_vector(const int* in, int4* out) {
  *out = *reinterpret_cast<const int4*>(in + 1);
}

// Block 0 hands numbers on to block 1, by all that is needed or by less.
enum Handing { kRight, kNoFence, kNoBarrier, kNoAtomic, kUnasked, kThroughCaches };

template <int kHanding>
__global__ void hand_on(int* numbers, int* counter, int* sum) {
  if (blockIdx.x == 0) numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kHanding != kNoFence) __threadfence();
  if (kHanding != kNoBarrier) __syncthreads();
  const bool is_asking = blockIdx.x == 0 ? kHanding != kNoAtomic : kHanding != kUnasked;
  if (threadIdx.x == 0 && is_asking) atomicAdd(counter, 1);
  __syncthreads();
  if (blockIdx.x == 0 || threadIdx.x != 0) return;
  *sum = 0;
  for (int i = 0; i < 64; ++i) {
    *sum += kHanding == kThroughCaches ? numbers[i] : __ldcg(numbers + i);
  }
}

template <int kHanding>
void test_hand_on() {
  int numbers[64];
  int counter = 0;
  int sum = 0;
  launch(hand_on<kHanding>, dim3(2), dim3(64), 0, Stream{}, numbers, &counter, &sum);
  expect(counter == 2 && sum == 63 * 32, "the numbers of the other block");
}

alignas(16) int ints[64];
int sink;

const struct {
  const char* name;
  void (*run)();
} kTests[] = {
    {"block_sums", test_block_sums},
    {"collectives", test_collectives},
    {"last_block", test_last_block},
    {"mma", test_mma},
    {"movmatrix", test_movmatrix},
    {"cp_async", test_cp_async},
    {"half", test_half},
    {"bfloat16", test_bfloat16},
    {"neighbours_of_a_warp", test_read_neighbour<sync_warp, 32>},
    {"neighbours_of_a_block", test_read_neighbour<sync_block, 128>},
    {"hand_on", test_hand_on<kRight>},
    {"no_barrier", test_read_neighbour<do_not_meet, 32>},
    {"shuffle_is_no_barrier", test_read_neighbour<shuffle, 32>},
    {"warp_barrier_for_a_block",
     [] { launch(read_next_warp, dim3(1), dim3(64), 256, Stream{}, ints); }},
    {"neighbours_copy",
     [] { launch(read_neighbours_copy, dim3(1), dim3(32), 128, Stream{}, ints, ints + 32); }},
    {"refilled_while_read",
     [] { launch(refill, dim3(1), dim3(32), 128, Stream{}, ints, ints + 32); }},
    {"misaligned_vector",
     [] {
       alignas(16) int4 out;
       launch(misaligned_vector, dim3(1), dim3(32), 0, Stream{}, ints, &out);
     }},
    {"hand_on_without_fence", test_hand_on<kNoFence>},
    {"hand_on_without_barrier", test_hand_on<kNoBarrier>},
    {"hand_on_without_atomic", test_hand_on<kNoAtomic>},
    {"hand_on_unasked", test_hand_on<kUnasked>},
    {"hand_on_through_caches", test_hand_on<kThroughCaches>},
    {"early_exit", [] { launch(early_exit, dim3(1), dim3(64), 0, Stream{}); }},
    {"diverged_warp", [] { launch(diverged_warp, dim3(1), dim3(32), 0, Stream{}, &sink); }},
    {"diverged_block", [] { launch(diverged_block, dim3(1), dim3(64), 0, Stream{}); }},
    {"part_of_a_warp", [] { launch(part_of_a_warp, dim3(1), dim3(32), 0, Stream{}); }},
    {"out_of_shared", [] { launch(out_of_shared, dim3(1), dim3(32), 64, Stream{}); }},
    {"unwaited_copy", [] { launch(unwaited_copy, dim3(1), dim3(32), 128, Stream{}, ints); }},
    {"misaligned_copy", [] { launch(misaligned_copy, dim3(1), dim3(32), 128, Stream{}, ints); }},
    {"half_a_warp", [] { launch(early_exit, dim3(1), dim3(48), 0, Stream{}); }},
};

}  // namespace
}  // namespace gear::cuda

int main(int count, char** arguments) {
  for (const auto& test : gear::cuda::kTests) {
    if (count == 2 && strcmp(arguments[1], test.name) != 0) continue;
    if (count != 2) {
      printf("%s\n", test.name);
      continue;
    }
    test.run();
    return gear::cuda::failures == 0 ? 0 : 1;
  }
  return count == 2;
}
