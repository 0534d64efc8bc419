#include <sys/mman.h>
#include <ucontext.h>

#include <csetjmp>
#include <cstdio>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/device.h"
#include "cuda/emulator/races.h"

dim3 threadIdx;
dim3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace gear::emulator {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 * 1024;
constexpr size_t kGuard = 4096;
constexpr size_t kStack = 128 * 1024;
constexpr unsigned char kPoison = 0xff;
constexpr unsigned char kUntouched = 0xa5;

struct Copy {
  void* target;
  const void* source;
  int bytes;
};

enum class Wait { kNothing, kWarp, kBlock };

// One CUDA thread. It lives for the whole process and runs one thread after the other.
struct Fiber {
  jmp_buf place;
  ucontext_t first;
  bool has_started = false;
  bool is_done = false;
  int index = 0;
  dim3 thread;
  Wait wait = Wait::kNothing;
  uint32_t meeting = 0;  // number of the meeting it waits for
  Site site{};
  std::vector<std::vector<Copy>> committed;
  std::vector<Copy> copies;
  uint32_t fences = 0;
};

// All threads of a warp, or of a block, come together; then the next meeting begins.
struct Meeting {
  uint32_t number = 0;
  int arrived = 0;
  Site site{};
};

struct Warp {
  Meeting meeting;
  Slots slots[2];  // of even and odd meetings: a lane may be one meeting ahead of another
  uint32_t barriers = 0;
};

struct Machine {
  std::mutex mutex;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Warp warps[kMaxThreads / kWarp];
  Meeting meeting;
  int sums[2] = {};
  int threads = 0;
  Fiber* current = nullptr;
  jmp_buf scheduler;
  alignas(128) unsigned char shared[kMaxShared + kGuard];
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  uint32_t launches = 0;
  uint32_t blocks = 0;
};

Machine& machine() {
  static auto* the_machine = new Machine;
  return *the_machine;
}

__attribute__((noinline)) void suspend() {
  if (_setjmp(machine().current->place) == 0) _longjmp(machine().scheduler, 1);
}

void live() {
  for (;;) {
    machine().body(machine().context);
    Fiber& fiber = *machine().current;
    commit_copies();
    for (const auto& group : fiber.committed) {
      if (!group.empty()) fail(fiber.site, "a thread ended with copies that it never waited for");
    }
    fiber.is_done = true;
    suspend();
  }
}

__attribute__((noinline)) void resume(Fiber& fiber) {
  Machine& gpu = machine();
  gpu.current = &fiber;
  threadIdx = fiber.thread;
  if (_setjmp(gpu.scheduler) != 0) return;
  if (fiber.has_started) _longjmp(fiber.place, 1);
  fiber.has_started = true;
  setcontext(&fiber.first);
}

// A stack with a page before it that nothing may touch.
void* make_stack() {
  void* memory = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) {
    fail({__FILE__, __LINE__}, "no memory for a thread's stack");
  }
  return static_cast<char*>(memory) + kGuard;
}

void make_fibers(int count) {
  auto& fibers = machine().fibers;
  while (static_cast<int>(fibers.size()) < count) {
    auto fiber = std::make_unique<Fiber>();
    fiber->index = static_cast<int>(fibers.size());
    getcontext(&fiber->first);
    fiber->first.uc_stack.ss_sp = make_stack();
    fiber->first.uc_stack.ss_size = kStack;
    fiber->first.uc_link = nullptr;
    makecontext(&fiber->first, &live, 0);
    fibers.push_back(std::move(fiber));
  }
}

bool can_run(const Fiber& fiber) {
  if (fiber.is_done) return false;
  if (fiber.wait == Wait::kNothing) return true;
  const Meeting& meeting =
      fiber.wait == Wait::kWarp ? machine().warps[fiber.index / kWarp].meeting : machine().meeting;
  return meeting.number != fiber.meeting;
}

void report_deadlock() {
  Machine& gpu = machine();
  const Fiber* waiting = nullptr;
  const Fiber* other = nullptr;
  for (int i = 0; i < gpu.threads; ++i) {
    const Fiber* fiber = gpu.fibers[i].get();
    if (fiber->is_done) {
      other = fiber;
    } else {
      waiting = fiber;
    }
  }
  char text[200];
  if (other != nullptr) {
    snprintf(text, sizeof(text), "thread %d waits here for thread %d, which has left the kernel",
             waiting->index, other->index);
  } else {
    snprintf(text, sizeof(text), "deadlock: thread %d waits here, others wait elsewhere",
             waiting->index);
  }
  fail(waiting->site, text);
}

// Runs the lanes of a warp until none can go on; returns whether any ran.
bool run_warp(int warp, bool reversed) {
  Machine& gpu = machine();
  bool has_run = false;
  for (bool again = true; again;) {
    again = false;
    for (int i = 0; i < kWarp; ++i) {
      Fiber& fiber = *gpu.fibers[warp * kWarp + (reversed ? kWarp - 1 - i : i)];
      if (!can_run(fiber)) continue;
      fiber.wait = Wait::kNothing;
      resume(fiber);
      again = has_run = true;
    }
  }
  return has_run;
}

void begin_block(dim3 block) {
  Machine& gpu = machine();
  for (int i = 0; i < gpu.threads; ++i) {
    Fiber& fiber = *gpu.fibers[i];
    const unsigned index = static_cast<unsigned>(i);
    fiber.thread = {index % block.x, index / block.x % block.y, index / (block.x * block.y)};
    fiber.is_done = false;
    fiber.wait = Wait::kNothing;
    fiber.committed.clear();
    fiber.copies.clear();
  }
  for (int warp = 0; warp < gpu.threads / kWarp; ++warp) gpu.warps[warp].meeting.arrived = 0;
  gpu.meeting.arrived = 0;
  gpu.sums[0] = gpu.sums[1] = 0;
}

bool all_done() {
  const Machine& gpu = machine();
  for (int i = 0; i < gpu.threads; ++i) {
    if (!gpu.fibers[i]->is_done) return false;
  }
  return true;
}

void run_block(dim3 block, size_t shared_bytes, bool reversed) {
  Machine& gpu = machine();
  begin_block(block);
  ++gpu.blocks;
  memset(gpu.shared, kPoison, shared_bytes);
  memset(gpu.shared + shared_bytes, kUntouched, kGuard);
  const int warps = gpu.threads / kWarp;
  while (!all_done()) {
    bool has_run = false;
    for (int i = 0; i < warps; ++i) has_run |= run_warp(reversed ? warps - 1 - i : i, reversed);
    if (!has_run) report_deadlock();
  }
  for (size_t i = 0; i < kGuard; ++i) {
    if (gpu.shared[shared_bytes + i] == kUntouched) continue;
    fail({__FILE__, __LINE__}, "a block wrote beyond the shared memory of its launch");
  }
}

// Counts this thread in; returns the meeting's number.
uint32_t arrive(Meeting& meeting, int expected, Wait wait, Site site, bool& is_last) {
  Fiber& fiber = *machine().current;
  if (meeting.arrived == 0) {
    meeting.site = site;
  } else if (meeting.site.line != site.line || strcmp(meeting.site.file, site.file) != 0) {
    char text[200];
    snprintf(text, sizeof(text), "thread %d meets others that wait at %s:%d", fiber.index,
             meeting.site.file, meeting.site.line);
    fail(site, text);
  }
  fiber.site = site;
  fiber.wait = wait;
  fiber.meeting = meeting.number;
  is_last = ++meeting.arrived == expected;
  return meeting.number;
}

void go_on(Meeting& meeting) {
  meeting.arrived = 0;
  ++meeting.number;
  machine().current->wait = Wait::kNothing;
}

bool is_inside(const void* pointer, size_t bytes, const void* memory, size_t size) {
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  return at >= begin && at + bytes <= begin + size;
}

bool is_in_shared(const void* pointer, size_t bytes) {
  return is_inside(pointer, bytes, machine().shared, kMaxShared);
}

void note(const void* address, size_t bytes, Action action, const void* from) {
  if (note_access != nullptr) note_access(address, bytes, action, from);
}

}  // namespace

void (*note_access)(const void*, size_t, Action, const void*) = nullptr;

Moment now() {
  const Machine& gpu = machine();
  const int thread = gpu.current->index;
  return {gpu.launches,        gpu.blocks, gpu.meeting.number, gpu.warps[thread / kWarp].barriers,
          gpu.current->fences, thread};
}

uint32_t fences_of(int thread) { return machine().fibers[static_cast<size_t>(thread)]->fences; }

Memory memory_at(const void* address) {
  const Machine& gpu = machine();
  if (gpu.current == nullptr) return Memory::kPrivate;
  if (is_in_shared(address, 1)) return Memory::kShared;
  const void* const stack = gpu.current->first.uc_stack.ss_sp;
  const bool is_private =
      is_inside(address, 1, stack, kStack) || is_inside(address, 1, &gpu, sizeof(gpu));
  return is_private ? Memory::kPrivate : Memory::kGlobal;
}

void fail(Site site, const char* text) {
  fprintf(stderr, "emulated GPU: %s:%d: block (%u, %u, %u), thread (%u, %u, %u): %s\n", site.file,
          site.line, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z,
          text);
  fflush(stderr);
  abort();
}

int lane() { return machine().current->index % kWarp; }

Slots& next_slots() {
  Warp& warp = machine().warps[machine().current->index / kWarp];
  return warp.slots[warp.meeting.number & 1];
}

void meet_warp(uint32_t mask, Site site, void (*combine)(Slots&)) {
  if (mask != ~0u) fail(site, "a warp collective needs the full mask");
  Warp& warp = machine().warps[machine().current->index / kWarp];
  bool is_last = false;
  const uint32_t number = arrive(warp.meeting, kWarp, Wait::kWarp, site, is_last);
  if (!is_last) return suspend();
  if (combine != nullptr) combine(warp.slots[number & 1]);
  go_on(warp.meeting);
}

void sync_warp(uint32_t mask, Site site) {
  meet_warp(mask, site,
            [](Slots&) { ++machine().warps[machine().current->index / kWarp].barriers; });
}

int meet_block(int value, Site site) {
  Machine& gpu = machine();
  int& sum = gpu.sums[gpu.meeting.number & 1];
  sum += value;
  bool is_last = false;
  const uint32_t number = arrive(gpu.meeting, gpu.threads, Wait::kBlock, site, is_last);
  if (!is_last) {
    suspend();
  } else {
    gpu.sums[(number + 1) & 1] = 0;
    go_on(gpu.meeting);
  }
  return sum;
}

void fence() { ++machine().current->fences; }

void read_past_caches(void* to, const void* from, size_t bytes) {
  note(from, bytes, Action::kReadPastCaches, __builtin_return_address(0));
  memcpy(to, from, bytes);
}

void begin_atomic(const void* target, size_t bytes) {
  note(target, bytes, Action::kAtomic, __builtin_return_address(0));
}

void copy_unwatched(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }

void* shared_bytes() { return machine().shared; }

void begin_copy(void* shared, const void* global, int bytes, Site site) {
  Fiber& fiber = *machine().current;
  const auto align = static_cast<uintptr_t>(bytes) - 1;
  if (!is_in_shared(shared, static_cast<size_t>(bytes))) fail(site, "cp_async: not shared memory");
  if (reinterpret_cast<uintptr_t>(shared) & align) fail(site, "cp_async: target is not aligned");
  if (reinterpret_cast<uintptr_t>(global) & align) fail(site, "cp_async: source is not aligned");
  memset(shared, kPoison, static_cast<size_t>(bytes));
  note(shared, static_cast<size_t>(bytes), Action::kWrite, __builtin_return_address(0));
  note(global, static_cast<size_t>(bytes), Action::kRead, __builtin_return_address(0));
  fiber.site = site;
  fiber.copies.push_back({shared, global, bytes});
}

void commit_copies() {
  Fiber& fiber = *machine().current;
  fiber.committed.push_back(std::move(fiber.copies));
  fiber.copies.clear();
}

void wait_copies(int groups) {
  auto& committed = machine().current->committed;
  const size_t kept = static_cast<size_t>(groups);
  const size_t done = committed.size() > kept ? committed.size() - kept : 0;
  for (size_t i = 0; i < done; ++i) {
    for (const Copy& copy : committed[i]) {
      const auto bytes = static_cast<size_t>(copy.bytes);
      memcpy(copy.target, copy.source, bytes);
      note(copy.target, bytes, Action::kWrite, __builtin_return_address(0));
    }
  }
  committed.erase(committed.begin(), committed.begin() + static_cast<std::ptrdiff_t>(done));
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context) {
  Machine& gpu = machine();
  const std::lock_guard<std::mutex> lock(gpu.mutex);
  const unsigned threads = block.x * block.y * block.z;
  const Site here{__FILE__, __LINE__};
  if (threads == 0 || threads % kWarp != 0 || threads > kMaxThreads) {
    fail(here, "a block must have whole warps and at most 1024 threads");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    fail(here, "the grid is empty, or longer than 65535 in y or z");
  }
  if (shared_bytes > kMaxShared) fail(here, "a block has at most 227 KiB of shared memory");
  const char* order = getenv("GEAR_EMULATOR_ORDER");
  const bool reversed = order != nullptr && strcmp(order, "reverse") == 0;
  make_fibers(static_cast<int>(threads));
  gpu.threads = static_cast<int>(threads);
  gpu.body = body;
  gpu.context = context;
  gridDim = grid;
  blockDim = block;
  ++gpu.launches;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(block, shared_bytes, reversed);
      }
    }
  }
  gpu.current = nullptr;
}

// Fragments as PTX defines them for mma.m16n8k16 with 16-bit factors.
void multiply_fragments(Slots& slots) {
  float a[16][16];
  float b[16][8];
  float d[16][8];
  const auto low = [](uint32_t word) { return half_to_float(static_cast<uint16_t>(word)); };
  const auto high = [](uint32_t word) { return half_to_float(static_cast<uint16_t>(word >> 16)); };
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto operands = slots.get<MmaOperands>(lane);
    const int group = lane / 4;
    const int pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i % 2);
      const int column = pair + 8 * (i / 2);
      a[row][column] = low(operands.a[i]);
      a[row][column + 1] = high(operands.a[i]);
      d[group + 8 * (i / 2)][pair + i % 2] = operands.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[pair + 8 * i][group] = low(operands.b[i]);
      b[pair + 8 * i + 1][group] = high(operands.b[i]);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    float result[4];
    for (int i = 0; i < 4; ++i) result[i] = d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    memcpy(slots.bytes[lane], result, sizeof(result));
  }
}

void transpose_fragments(Slots& slots) {
  uint16_t matrix[8][8];
  for (int lane = 0; lane < kWarp; ++lane)
    memcpy(&matrix[lane / 4][2 * (lane % 4)], slots.bytes[lane], 4);
  for (int lane = 0; lane < kWarp; ++lane) {
    const int row = lane / 4;
    const int column = 2 * (lane % 4);
    slots.set(lane, static_cast<uint32_t>(matrix[column][row]) |
                        static_cast<uint32_t>(matrix[column + 1][row]) << 16);
  }
}

}  // namespace gear::emulator
