// The first thing that was wrong with the data of a call, left in device memory by a kernel.
#pragma once

#include <cstdint>

namespace gear::cuda {

enum StatusKind : int32_t {
  kFine = 0,
  kBadNewLength,
  kBadPastLength,
  kBadSlot,
  kTooManyPages,
  kBadPage,
  kBadKey,
  kBadValue,
};

struct Status {
  int32_t kind;
  int32_t layer;
  int32_t sequence;
  int32_t head;
  int32_t token;   // position in the sequence
  int32_t number;  // the wrong length, slot, page id, or bits of a wrong value
  int32_t limit;   // what it must be below, or at most
  int32_t reserved;
};

}  // namespace gear::cuda
