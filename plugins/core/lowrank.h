// Constants of the power iteration that fits the low-rank factors (gear_trt/reference/lowrank.py).
#pragma once

#include <cstdint>

#include "core/inline.h"

namespace gear {

// A column with less than this share of its norm left after orthogonalization has vanished.
inline constexpr float kVanished = 1e-5f;

// Fixed ±1 entry of the start matrix: a hash, so that no error pattern aligns with it.
GEAR_INLINE float start_sign(uint32_t token, uint32_t column) {
  uint32_t mixed = token * 0x9E3779B1u + (column + 1) * 0x85EBCA77u;
  mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6Du;
  mixed ^= mixed >> 12;
  return mixed & 1 ? -1.0f : 1.0f;
}

}  // namespace gear
