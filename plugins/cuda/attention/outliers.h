// Outliers of one side of a page as a dense operand: the deltas of 16 vectors are written into a
// tile of zeros, multiplied like any other operand, and taken out again. No sums in shared memory.
//
//   tile [lanes / 2][t][parity of the lane][4 vectors in the order of fragments], halves
//
// so that a lane reads the four registers of a fragment, block by block, as one 16-byte word.
// K: vector = channel, lane = token. V: vector = token, lane = channel.
#pragma once

#include "cuda/attention/fragments.h"

namespace gear::cuda {

// Bytes of a tile of so many lanes.
GEAR_HOST_DEVICE constexpr int outlier_tile_bytes(int lanes) { return lanes * 16 * 2; }

GEAR_DEVICE void clear_outlier_tile(unsigned char* tile, int lanes) {
  for (int i = lane_id(); i < outlier_tile_bytes(lanes) / 16; i += kWarpLanes) {
    reinterpret_cast<uint4*>(tile)[i] = make_uint4(0, 0, 0, 0);
  }
}

// Where element (lane, vector) of 16 vectors lies.
GEAR_DEVICE int outlier_place(int lane, int vector) {
  const int quad = vector / 4;
  const int element = vector % 4;
  const int in_order = element / 2 + element % 2 * 2;  // 0, 2, 1, 3
  return lane / 2 * 64 + quad * 16 + lane % 2 * 8 + in_order * 2;
}

// Writes (or, with kErase, takes out) the outliers of vectors first .. first + 15 in lanes
// first_lane .. first_lane + lanes − 1.
template <bool kErase>
GEAR_DEVICE void write_outliers(unsigned char* tile, const unsigned char* deltas,
                                const unsigned char* indices, int outliers, int first,
                                int first_lane, int lanes) {
  for (int i = lane_id(); i < 16 * outliers; i += kWarpLanes) {
    const int entry = first * outliers + i;
    const int lane = indices[entry] - first_lane;
    if (lane < 0 || lane >= lanes) continue;
    const uint16_t delta = kErase ? 0 : reinterpret_cast<const uint16_t*>(deltas)[entry];
    *reinterpret_cast<uint16_t*>(tile + outlier_place(lane, i / outliers)) = delta;
  }
}

// Fragment of block `block` of 16 lanes.
GEAR_DEVICE void load_outliers(const unsigned char* tile, int block, uint32_t (&a)[4]) {
  const uint4 x = reinterpret_cast<const uint4*>(tile)[(8 * block + lane_row()) * 4 + lane_quad()];
  a[0] = x.x;
  a[1] = x.z;
  a[2] = x.y;
  a[3] = x.w;
}

}  // namespace gear::cuda
