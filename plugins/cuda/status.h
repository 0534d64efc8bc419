// The first thing that was wrong with the data of a call, left in device memory by a kernel.
#pragma once

#include <cstdint>

namespace gear::cuda {

enum class Fault : int32_t {
  kNone,
  kNewLength,
  kPastLength,
  kSlot,
  kTooManyPages,
  kPage,
  kKey,
  kValue,
  kPageKey,  // of compress_pages, where `sequence` is the page and `token` its row
  kPageValue,
};

struct Status {
  int32_t fault;
  int32_t layer;
  int32_t sequence;
  int32_t head;
  int32_t token;   // position in its sequence, or the sequence's length
  int32_t number;  // the wrong length, slot, page id or count; of a wrong value its bits
  int32_t limit;   // what `number` had to fit
};

}  // namespace gear::cuda
