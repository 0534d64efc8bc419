// Kernels on plain arrays of activations.

#include "cpu/kernels/rows.h"

#include "cpu/kernels/table.h"

namespace gear::cpu::GEAR_ISA {

namespace {

// Whether all of `count` elements from `index` on are within ±limit; NaN is not.
bool all_within(const void* elements, DataType type, int64_t index, int64_t count, float limit) {
  Ints are_within = Ints{} == 0;
  for (int64_t i = index; i < index + count; i += kWidth) {
    are_within &= absolute(load_any(elements, type, i)) <= limit;
  }
  const Ints all = Ints{} == 0;
  return memcmp(&are_within, &all, sizeof(all)) == 0;
}

}  // namespace

int64_t find_beyond(const void* elements, DataType type, int64_t count, float limit) {
  constexpr int64_t kBlock = 1024;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t length = count - first < kBlock ? count - first : kBlock;
    if (all_within(elements, type, first, length, limit)) continue;
    for (int64_t i = first;; i += kWidth) {
      const Ints is_within = absolute(load_any(elements, type, i)) <= limit;
      for (int lane = 0; lane < kWidth; ++lane) {
        if (!is_within[lane]) return i + lane;
      }
    }
  }
  return -1;
}

void convert_elements(const void* source, DataType source_type, void* target, DataType target_type,
                      int count) {
  convert(source, source_type, target, target_type, count);
}

}  // namespace gear::cpu::GEAR_ISA
