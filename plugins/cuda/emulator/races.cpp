#include "cuda/emulator/races.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

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

// The last atomic operation of a block, and the fences that its threads had made by then.
struct HandOver {
  Moment at;
  std::vector<uint32_t> fences;
};

// Of the blocks of a launch.
class HandOvers {
 public:
  void add(const Moment& at) {
    if (launch_ != at.launch) by_block_.clear();
    launch_ = at.launch;
    HandOver made{at, std::vector<uint32_t>(blockDim.x * blockDim.y * blockDim.z)};
    for (size_t i = 0; i < made.fences.size(); ++i) {
      made.fences[i] = fences_of(static_cast<int>(i));
    }
    by_block_[at.block] = std::move(made);
  }

  // Whether a thread may read at this moment what another block has written.
  bool hand_on(const Moment& write, const Moment& read) const {
    const auto from = by_block_.find(write.block);
    const auto to = by_block_.find(read.block);
    if (launch_ != read.launch || from == by_block_.end() || to == by_block_.end()) return false;
    const bool is_fenced = from->second.fences[write.thread] > write.fences;
    return is_fenced && is_ordered(write, from->second.at) && is_ordered(to->second.at, read);
  }

 private:
  uint32_t launch_ = 0;
  std::unordered_map<uint32_t, HandOver> by_block_;
};

HandOvers& hand_overs() {
  static auto* const all = new HandOvers;
  return *all;
}

void note_byte(Byte& byte, const Access& access, Action action) {
  const Access* other = nullptr;
  switch (action) {
    case Action::kRead:
      other = byte.racing_with_read(access.at);
      if (other != nullptr) report(*other, "reads", access.from);
      return byte.add_read(access);
    case Action::kWrite:
      other = byte.racing_with_write(access.at);
      if (other != nullptr) report(*other, "writes", access.from);
      return byte.add_write(access);
    case Action::kReadPastCaches:
      other = byte.racing_with_read(access.at);
      if (other != nullptr && !hand_overs().hand_on(other->at, access.at)) {
        report(*other, "reads past caches", access.from);
      }
      return;
    case Action::kAtomic:
      return hand_overs().add(access.at);
  }
}

void note(const void* address, size_t bytes, Action action, const void* from) {
  const Memory memory = memory_at(address);
  if (memory == Memory::kPrivate) return;
  const Access access{now(), from};
  const uint32_t period = memory == Memory::kShared ? access.at.block : access.at.launch;
  const auto first = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t at = first; at < first + bytes; ++at) {
    Byte& byte = byte_at(at);
    byte.begin(period);
    note_byte(byte, access, action);
  }
}

const bool is_linked_in = (note_access = &note) != nullptr;

}  // namespace
}  // namespace gear::emulator

// What compilers call.
#define GEAR_HOOK(name, bytes, action)                                   \
  void __tsan_##name(void* address) {                                    \
    gear::emulator::note(address, bytes, gear::emulator::Action::action, \
                         __builtin_return_address(0));                   \
  }
#define GEAR_HOOKS(bytes)                        \
  GEAR_HOOK(read##bytes, bytes, kRead)           \
  GEAR_HOOK(write##bytes, bytes, kWrite)         \
  GEAR_HOOK(unaligned_read##bytes, bytes, kRead) \
  GEAR_HOOK(unaligned_write##bytes, bytes, kWrite)

extern "C" {
GEAR_HOOKS(1)
GEAR_HOOKS(2)
GEAR_HOOKS(4)
GEAR_HOOKS(8)
GEAR_HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) {
  gear::emulator::note(address, bytes, gear::emulator::Action::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  gear::emulator::note(address, bytes, gear::emulator::Action::kWrite, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
