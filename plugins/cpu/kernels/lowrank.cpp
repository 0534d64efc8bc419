// Power iteration on the quantization error E [C, D] (gear_trt/reference/lowrank.py):
//
//   B = orthonormalize(Eᵀ A), A = E B, `power_iters` times from a fixed ±1 matrix A;
//   A [C, r] are the token factors, B [D, r] the channel factors. Both are kept as rows.

#include "cpu/kernels/lowrank.h"

#include <cmath>

#include "core/lowrank.h"
#include "cpu/kernels/metadata.h"
#include "cpu/kernels/rows.h"

namespace gear::cpu::GEAR_ISA {
namespace {

float dot(const float* a, const float* b, int count) {
  Floats sum = {};
  for (int i = 0; i < count; i += kWidth) sum += load_floats(a + i) * load_floats(b + i);
  return reduce_add(sum);
}

void add_scaled(float* target, const float* source, float factor, int count) {
  for (int i = 0; i < count; i += kWidth) {
    store(target + i, load_floats(target + i) + factor * load_floats(source + i));
  }
}

// Modified Gram-Schmidt, twice per row; a row that vanishes becomes 0.
void orthonormalize(float* rows, int rank, int length) {
  for (int j = 0; j < rank; ++j) {
    float* row = rows + j * length;
    const float before = std::sqrt(dot(row, row, length));
    for (int pass = 0; pass < 2; ++pass) {
      for (int i = 0; i < j; ++i) {
        const float* other = rows + i * length;
        add_scaled(row, other, -dot(other, row, length), length);
      }
    }
    const float norm = std::sqrt(dot(row, row, length));
    const float factor = norm > kVanished * before ? 1.0f / norm : 0.0f;
    for (int i = 0; i < length; i += kWidth) store(row + i, load_floats(row + i) * factor);
  }
}

// target [rank, columns] = factors [rank, rows] · matrix [rows, columns].
void project(const float* factors, int rank, const float* matrix, int rows, int columns,
             float* target) {
  memset(target, 0, sizeof(float) * rank * columns);
  multiply({factors, rows}, {matrix, columns}, {target, columns}, rank, rows, columns);
}

void fit(const Side& side, CompressScratch& scratch) {
  const PageConfig& config = side.config;
  transpose_matrix({scratch.error, side.lanes}, {scratch.error_transposed, side.vectors},
                   side.vectors, side.lanes);
  const float* by_token = side.is_key ? scratch.error_transposed : scratch.error;    // [C, D]
  const float* by_channel = side.is_key ? scratch.error : scratch.error_transposed;  // [D, C]
  float* tokens = scratch.token_factors;
  float* channels = scratch.channel_factors;
  for (int j = 0; j < config.rank; ++j) {
    for (int t = 0; t < config.chunk; ++t) tokens[j * config.chunk + t] = start_sign(t, j);
  }
  for (int pass = 0; pass < config.power_iters; ++pass) {
    project(tokens, config.rank, by_token, config.chunk, config.head_dim, channels);
    orthonormalize(channels, config.rank, config.head_dim);
    project(channels, config.rank, by_channel, config.head_dim, config.chunk, tokens);
  }
}

void store_halves(const float* factors, int count, int32_t* target) {
  convert(factors, DataType::kFloat32, target, DataType::kFloat16, count);
}

// Rounds a row to integers −top..top; returns the value of one unit.
float store_integers(const float* row, int length, int bits, uint8_t* target) {
  const float top = static_cast<float>((1 << (bits - 1)) - 1);
  Floats most = {};
  for (int i = 0; i < length; i += kWidth) most = maximum(most, absolute(load_floats(row + i)));
  const float unit = reduce_max(most) / top;
  const float inverse = unit > 0.0f ? 1.0f / unit : 0.0f;
  alignas(64) int32_t integers[kMaxVectorLength];
  for (int i = 0; i < length; i += kWidth) {
    const Floats rounded = round_even(clip(load_floats(row + i) * inverse, -top, top));
    store(integers + i, __builtin_convertvector(rounded, Ints));
  }
  if (bits == 8) {
    for (int i = 0; i < length; ++i) target[i] = static_cast<uint8_t>(integers[i]);
  } else {
    for (int i = 0; i < length / 2; ++i) {
      const int low = integers[2 * i] & 15;
      const int high = integers[2 * i + 1] & 15;
      target[i] = static_cast<uint8_t>(low | high << 4);
    }
  }
  return unit;
}

void store_factors(const Side& side, const CompressScratch& scratch, int32_t* page) {
  const PageConfig& config = side.config;
  const float* tokens = scratch.token_factors;
  const float* channels = scratch.channel_factors;
  if (config.factor_bits == 16) {
    store_halves(tokens, config.rank * config.chunk, page + side.at.token_factors);
    store_halves(channels, config.rank * config.head_dim, page + side.at.channel_factors);
    return;
  }
  auto* token_bytes = reinterpret_cast<uint8_t*>(page + side.at.token_factors);
  auto* channel_bytes = reinterpret_cast<uint8_t*>(page + side.at.channel_factors);
  auto* scales = reinterpret_cast<uint16_t*>(page + side.at.factor_scales);
  for (int j = 0; j < config.rank; ++j) {
    const int token = j * config.chunk;
    const int channel = j * config.head_dim;
    const float token_unit = store_integers(tokens + token, config.chunk, config.factor_bits,
                                            token_bytes + token * config.factor_bits / 8);
    const float channel_unit =
        store_integers(channels + channel, config.head_dim, config.factor_bits,
                       channel_bytes + channel * config.factor_bits / 8);
    scales[j] = half_nearest(token_unit * channel_unit);
  }
}

}  // namespace

void correct_low_rank(const Side& side, CompressScratch& scratch, int32_t* page) {
  fit(side, scratch);
  store_factors(side, scratch, page);
  add_low_rank(side, page, scratch.approximation);
}

}  // namespace gear::cpu::GEAR_ISA
