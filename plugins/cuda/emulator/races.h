// Races between threads, found whatever the order in which the emulator runs them: two accesses to
// one byte of which one writes, and no barrier between.
//
// Kernels are compiled with -fsanitize=thread, and races.cpp is what it calls at every access, in
// place of a compiler's own runtime library. Barriers are __syncthreads for the block and
// __syncwarp for the warp. Shuffles, votes and matrix products are none: they do not order memory.
// Blocks of a launch never meet; what one reads of another it reads by atomics and __ldcg, which
// are not looked at.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gear::emulator {

// A moment of a thread's life: launches and blocks have numbers, barriers are counted.
struct Moment {
  uint32_t launch;
  uint32_t block;
  uint32_t block_barriers;
  uint32_t warp_barriers;
  int thread;  // of the block
};

// --- emulator.cpp

Moment now();

enum class Memory { kShared, kGlobal, kPrivate };

// Where an address lies. Private: the thread's stack, what the emulator itself holds, and
// everything while no kernel runs.
Memory memory_at(const void* address);

// Takes note of an access by code at `from`; null where races.cpp is not linked in.
extern void (*note_access)(const void* address, size_t bytes, bool is_write, const void* from);

}  // namespace gear::emulator
