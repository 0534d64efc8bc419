// Kernels on plain arrays of activations.

#include "cpu/kernels/rows.h"

#include "cpu/kernels/table.h"

namespace gear::cpu::GEAR_ISA {

int64_t find_beyond(const void* elements, DataType type, int64_t count, float limit) {
  for (int64_t i = 0; i < count; i += kWidth) {
    // NaN compares false and so counts as beyond.
    const Ints is_within = absolute(load_any(elements, type, i)) <= limit;
    for (int lane = 0; lane < kWidth; ++lane) {
      if (!is_within[lane]) return i + lane;
    }
  }
  return -1;
}

void convert_elements(const void* source, DataType source_type, void* target, DataType target_type,
                      int count) {
  convert(source, source_type, target, target_type, count);
}

}  // namespace gear::cpu::GEAR_ISA
