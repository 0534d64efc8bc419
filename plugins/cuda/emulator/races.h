// Races between threads, found whatever the order in which the emulator runs them: two accesses to
// one byte of which one writes, and no barrier between.
//
// Kernels are compiled with -fsanitize=thread, and races.cpp is what it calls at every access, in
// place of a compiler's own runtime library. Barriers are __syncthreads for the block and
// __syncwarp for the warp. Shuffles, votes and matrix products are none: they do not order memory.
//
// Blocks of a launch never meet. One reads with __ldcg what another has written, if that was handed
// on: by an atomic operation after a barrier, and a __threadfence of the writer before it. It must
// have made an atomic operation itself, by which it knows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gear::emulator {

// A moment of a thread's life: launches and blocks have numbers, barriers and fences are counted.
struct Moment {
  uint32_t launch;
  uint32_t block;
  uint32_t block_barriers;
  uint32_t warp_barriers;
  uint32_t fences;
  int thread;  // of the block
};

// --- emulator.cpp

Moment now();

// Of a thread of the running block, until now.
uint32_t fences_of(int thread);

enum class Memory { kShared, kGlobal, kPrivate };

// Where an address lies. Private: the thread's stack, what the emulator itself holds, and
// everything while no kernel runs.
Memory memory_at(const void* address);

enum class Action { kRead, kWrite, kReadPastCaches, kAtomic };

// Takes note of an access by code at `from`; null where races.cpp is not linked in.
extern void (*note_access)(const void* address, size_t bytes, Action action, const void* from);

}  // namespace gear::emulator
