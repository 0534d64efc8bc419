#include "cuda/emulator/races.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <unordered_map>

#include "cuda/emulator/emulator.h"

namespace gear::emulator {
namespace {

constexpr uintptr_t kPageBytes = 4096;

struct Access {
  Moment at{};
  const void* from = nullptr;  // null: there was none
};

bool is_ordered(const Moment& before, const Moment& after) {
  if (before.block != after.block) return false;
  if (before.thread == after.thread) return true;
  if (before.block_barriers != after.block_barriers) return true;
  return before.thread / kWarp == after.thread / kWarp &&
         before.warp_barriers != after.warp_barriers;
}

// What the running launch, or for shared memory the running block, has done to one byte.
class Byte {
 public:
  // The access that a read, or a write, at this moment races with; null where there is none.
  const Access* racing_with_read(const Moment& at) const {
    return write_.from != nullptr && !is_ordered(write_.at, at) ? &write_ : nullptr;
  }
  const Access* racing_with_write(const Moment& at) const {
    if (const Access* write = racing_with_read(at); write != nullptr) return write;
    if (foreign_read_.from != nullptr && foreign_read_.at.block != at.block) return &foreign_read_;
    if (read_.from == nullptr) return nullptr;
    if (read_.at.block != at.block) return &read_;
    if (read_.at.block_barriers != at.block_barriers) return nullptr;
    if (warps_ & ~warp_bit(at)) return &read_;
    return read_.at.warp_barriers == at.warp_barriers && lanes_ & ~lane_bit(at) ? &read_ : nullptr;
  }

  void add_write(const Access& access) { write_ = access; }

  void add_read(const Access& access) {
    const Moment& at = access.at;
    const bool is_same_block = read_.from != nullptr && read_.at.block == at.block;
    if (read_.from != nullptr && !is_same_block) foreign_read_ = read_;
    const bool is_same_phase = is_same_block && read_.at.block_barriers == at.block_barriers;
    const bool is_same_warp = is_same_phase && read_.at.thread / kWarp == at.thread / kWarp;
    if (!is_same_phase) warps_ = 0;
    if (!is_same_warp || read_.at.warp_barriers != at.warp_barriers) lanes_ = 0;
    warps_ |= warp_bit(at);
    lanes_ |= lane_bit(at);
    read_ = access;
  }

  // Forgets what lies in an earlier launch, or block.
  void begin(uint32_t period) {
    if (period_ != period) *this = Byte();
    period_ = period;
  }

 private:
  static uint32_t warp_bit(const Moment& at) { return 1u << at.thread / kWarp; }
  static uint32_t lane_bit(const Moment& at) { return 1u << at.thread % kWarp; }

  uint32_t period_ = 0;
  Access write_;
  Access read_;          // the last one
  Access foreign_read_;  // the last one of another block than that one's
  uint32_t warps_ = 0;   // that have read since the last barrier of the block
  uint32_t lanes_ = 0;   // of the last reader's warp, since the warp's last barrier
};

struct Page {
  Byte bytes[kPageBytes];
};

Byte& byte_at(uintptr_t address) {
  static auto* const pages = new std::unordered_map<uintptr_t, std::unique_ptr<Page>>;
  static uintptr_t last_number = 0;
  static Page* last = nullptr;
  const uintptr_t number = address / kPageBytes;
  if (last == nullptr || number != last_number) {
    std::unique_ptr<Page>& page = (*pages)[number];
    if (page == nullptr) page = std::make_unique<Page>();
    last = page.get();
    last_number = number;
  }
  return last->bytes[address % kPageBytes];
}

// The library and the offset that addr2line takes.
void print_place(const void* code) {
  Dl_info info{};
  if (dladdr(code, &info) == 0) return;
  const char* slash = strrchr(info.dli_fname, '/');
  fprintf(stderr, "%s+0x%zx", slash == nullptr ? info.dli_fname : slash + 1,
          static_cast<size_t>(static_cast<const char*>(code) -
                              static_cast<const char*>(info.dli_fbase)));
}

[[noreturn]] void report(const Access& before, const char* what, const void* from) {
  fprintf(stderr, "emulated GPU: ");
  print_place(from);
  fprintf(stderr,
          ": block (%u, %u, %u), thread (%u, %u, %u): races: %s what thread %d of %s block ",
          blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, what,
          before.at.thread, before.at.block == now().block ? "this" : "another");
  fprintf(stderr, "accessed at ");
  print_place(before.from);
  fprintf(stderr, "\n");
  fflush(stderr);
  abort();
}

void note(const void* address, size_t bytes, bool is_write, const void* from) {
  const Memory memory = memory_at(address);
  if (memory == Memory::kPrivate) return;
  const Access access{now(), from};
  const uint32_t period = memory == Memory::kShared ? access.at.block : access.at.launch;
  const auto first = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t at = first; at < first + bytes; ++at) {
    Byte& byte = byte_at(at);
    byte.begin(period);
    const Access* other =
        is_write ? byte.racing_with_write(access.at) : byte.racing_with_read(access.at);
    if (other != nullptr) report(*other, is_write ? "writes" : "reads", from);
    is_write ? byte.add_write(access) : byte.add_read(access);
  }
}

const bool is_linked_in = (note_access = &note) != nullptr;

}  // namespace
}  // namespace gear::emulator

// What compilers call.
#define GEAR_HOOK(name, bytes, is_write)                                         \
  void __tsan_##name(void* address) {                                            \
    gear::emulator::note(address, bytes, is_write, __builtin_return_address(0)); \
  }
#define GEAR_HOOKS(bytes)                        \
  GEAR_HOOK(read##bytes, bytes, false)           \
  GEAR_HOOK(write##bytes, bytes, true)           \
  GEAR_HOOK(unaligned_read##bytes, bytes, false) \
  GEAR_HOOK(unaligned_write##bytes, bytes, true)

extern "C" {
GEAR_HOOKS(1)
GEAR_HOOKS(2)
GEAR_HOOKS(4)
GEAR_HOOKS(8)
GEAR_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) {
  gear::emulator::note(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  gear::emulator::note(address, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
