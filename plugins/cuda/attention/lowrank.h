// Products with the low-rank correction of one side of a page, x[k][m] += Σ_j a[j][k] · b[j][m]:
//
//   along[j][n] = Σ_k a[j][k] · w[k][n], result[m][n] += Σ_j b[j][m] · along[j][n]
//
// K: k = channel, m = token, w = q. V: k = token, m = channel, w = weights.
#pragma once

#include "cuda/attention/metadata.h"

namespace gear::cuda {

// a[j][16 step ..] as rows of M; rows at and beyond the rank are 0.
GEAR_DEVICE void load_factor_rows(const unsigned char* field, int bits, int rank, int length,
                                  int first, uint32_t (&a)[4]) {
  const int j = lane_row();
  Quad x = {0, 0};
  if (j < rank) x = load_factor_quad(field, bits, j * length + first + 4 * lane_quad());
  a[0] = x.even;
  a[1] = 0;
  a[2] = x.odd;
  a[3] = 0;
}

// b[j][16 block ..] as columns of k: pairs 2t, 2t + 1 of j, M as in codes.
GEAR_DEVICE void load_factor_columns(const unsigned char* field, int bits, int rank, int length,
                                     int first, uint32_t (&a)[4]) {
  const int j = 2 * lane_quad();
  const int index = j * length + first + 2 * lane_row();
  uint32_t low = 0;
  uint32_t high = 0;
  if (j < rank) low = load_factor_pair(field, bits, index);
  if (j + 1 < rank) high = load_factor_pair(field, bits, index + length);
  a[0] = first_halves(low, high);
  a[1] = second_halves(low, high);
  a[2] = 0;
  a[3] = 0;
}

// along, times the factors' scales, as the second operand of the product with b.
GEAR_DEVICE Quad scale_along(const unsigned char* page, const SideLayout& at, int bits, int rank,
                             float (&along)[4]) {
  const int j = lane_row();
  const float scale = j < rank ? factor_scale(page, at, bits, j) : 0.0f;
  return {movmatrix_trans(pack_halves(along[0] * scale, along[1] * scale)), 0};
}

}  // namespace gear::cuda
