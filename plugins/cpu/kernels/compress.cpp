// One page of rows to codes, metadata and corrections (gear_trt/reference/page.py). Codes,
// metadata and outlier positions equal the reference's bit for bit, so every FP32 operation is the
// reference's, in its order, and this file is compiled without contraction.
//
//   C = chunk, D = head_dim. K: V = D vectors of L = C elements. V: V = C vectors of L = D.

#include <cmath>

#include "core/fit.h"
#include "cpu/kernels/codes.h"
#include "cpu/kernels/lowrank.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/side.h"
#include "cpu/kernels/table.h"

namespace gear::cpu::GEAR_ISA {
namespace {

// First position of `value` in x; there is one.
int find(const float* x, int length, float value) {
  Floats first = broadcast(INFINITY);
  for (int i = 0; i < length; i += kWidth) {
    const Ints is_equal = load_floats(x + i) == value;
    first = minimum(first, is_equal ? to_floats(iota() + i) : broadcast(INFINITY));
  }
  return static_cast<int>(reduce_min(first));
}

float row_max(const float* x, int length) {
  Floats most = broadcast(-INFINITY);
  for (int i = 0; i < length; i += kWidth) most = maximum(most, load_floats(x + i));
  return reduce_max(most);
}

float row_min(const float* x, int length) {
  Floats least = broadcast(INFINITY);
  for (int i = 0; i < length; i += kWidth) least = minimum(least, load_floats(x + i));
  return reduce_min(least);
}

// Positions of the outliers of vector v: of half of them the largest elements, then the smallest;
// of equal elements the first one, none twice.
void find_outliers(const Side& side, int v, CompressScratch& scratch) {
  const int count = side.config.outliers;
  const int length = side.lanes;
  uint8_t* positions = scratch.outliers + v * count;
  float left[kMaxVectorLength];
  memcpy(left, scratch.x + v * length, sizeof(float) * length);
  for (int i = 0; i < count / 2; ++i) {
    positions[i] = static_cast<uint8_t>(find(left, length, row_max(left, length)));
    left[positions[i]] = -INFINITY;
  }
  for (int i = 0; i < count / 2; ++i) left[positions[i]] = INFINITY;
  for (int i = count / 2; i < count; ++i) {
    positions[i] = static_cast<uint8_t>(find(left, length, row_min(left, length)));
    left[positions[i]] = INFINITY;
  }
}

// A copy of a vector with its outliers replaced.
void replace_outliers(const Side& side, const float* x, const uint8_t* outliers, float value,
                      float* target) {
  memcpy(target, x, sizeof(float) * side.lanes);
  for (int i = 0; i < side.config.outliers; ++i) target[outliers[i]] = value;
}

// Ranges of the groups of vector v, outliers left out: low and high [groups, V].
void find_ranges(const Side& side, int v, CompressScratch& scratch) {
  const float* x = scratch.x + v * side.lanes;
  const float* for_low = x;
  const float* for_high = x;
  float above[kMaxVectorLength];
  float below[kMaxVectorLength];
  if (side.config.outliers > 0) {
    const uint8_t* outliers = scratch.outliers + v * side.config.outliers;
    replace_outliers(side, x, outliers, INFINITY, above);
    replace_outliers(side, x, outliers, -INFINITY, below);
    for_low = above;
    for_high = below;
  }
  for (int group = 0; group < side.at.groups; ++group) {
    const int start = group * side.config.group_size;
    const int left = side.lanes - start;
    const int count = left < side.config.group_size ? left : side.config.group_size;
    scratch.low[group * side.vectors + v] = row_min(for_low + start, count);
    scratch.high[group * side.vectors + v] = row_max(for_high + start, count);
  }
}

// The range of a group after one pass of the fit; `weights` are 0 at outliers and 1 elsewhere.
Range fit_range(const float* x, const float* weights, int length, Range range, float top_code,
                int pass) {
  constexpr float kUnits = kFitUnits;
  constexpr int kSums = 6;
  const float step = (range.high - range.low) / top_code;
  const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
  Floats parts[kSums] = {};
  for (int i = 0; i < length; i += kWidth) {
    const Floats weight = load_floats(weights + i);
    const Floats u = (load_floats(x + i) - range.low) * inverse;
    const Floats code = round_even(clip(u, 0.0f, top_code));
    const Floats rest = round_even(clip((u - code) * kUnits, 1.0f - kUnits, kUnits - 1.0f));
    const Floats c = code * weight;
    const Floats r = rest * weight;
    parts[0] += weight;
    parts[1] += c;
    parts[2] += r;
    parts[3] += c * c;
    parts[4] += c * r;
    parts[5] += r * r;
  }
  float sums[padded_to_batch(kSums)];
  reduce_each(kSums, sums, add, [&](int i) { return parts[i]; });
  return fitted_range(range, {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]}, top_code,
                      pass);
}

// One pass of the fit of vector v. Passes over all vectors follow one another, not passes over one:
// they wait for each other, and other vectors fill the time.
void fit_ranges(const Side& side, int v, float top_code, int pass, CompressScratch& scratch) {
  float ones[kMaxVectorLength];
  float weights[kMaxVectorLength];
  for (int i = 0; i < side.lanes; i += kWidth) store(ones + i, broadcast(1.0f));
  const uint8_t* outliers = scratch.outliers + v * side.config.outliers;
  replace_outliers(side, ones, outliers, 0.0f, weights);
  for (int group = 0; group < side.at.groups; ++group) {
    const int start = group * side.config.group_size;
    const int left = side.lanes - start;
    const int count = left < side.config.group_size ? left : side.config.group_size;
    float& low = scratch.low[group * side.vectors + v];
    float& high = scratch.high[group * side.vectors + v];
    if (low == high) continue;
    const Range range = fit_range(scratch.x + v * side.lanes + start, weights + start, count,
                                  {low, high}, top_code, pass);
    low = range.low;
    high = range.high;
  }
}

Floats from_halves(Halves halves) { return load_halves(&halves); }

// FP16 scales and mins: mins round down, scales round up, so that ranges never shrink.
void encode_halves(const Side& side, float top_code, CompressScratch& scratch, int32_t* page) {
  auto* scale_halves = reinterpret_cast<uint16_t*>(page + side.at.scales);
  auto* min_halves = reinterpret_cast<uint16_t*>(page + side.at.mins);
  for (int i = 0; i < side.at.groups * side.vectors; i += kWidth) {
    const Floats low = load_floats(scratch.low + i);
    const Floats high = load_floats(scratch.high + i);
    const Ints is_constant = low == high;
    const Floats min = is_constant ? from_halves(to_halves<Rounding::kNearest>(low))
                                   : from_halves(to_halves<Rounding::kDown>(low));
    const Floats step = is_constant ? Floats{} : (high - min) / top_code;
    const Halves scale = to_halves<Rounding::kUp>(step);
    store(min_halves + i, to_halves(min));
    store(scale_halves + i, scale);
    store(scratch.mins + i, min);
    store(scratch.scales + i, from_halves(scale));
  }
}

Floats floor(Floats x) {
  const Floats truncated = to_floats(__builtin_convertvector(x, Ints));
  return truncated > x ? truncated - 1.0f : truncated;
}

Floats ceil(Floats x) {
  const Floats truncated = to_floats(__builtin_convertvector(x, Ints));
  return truncated < x ? truncated + 1.0f : truncated;
}

// Largest magnitude of the elements that share a super-scale, as units of 1 / top rounded up.
uint16_t super_scale(const float* x, int count, float top) {
  Floats most = broadcast(-INFINITY);
  for (int i = 0; i < count; i += kWidth) most = maximum(most, load_floats(x + i));
  return half_up(reduce_max(most) / top);
}

// Two-level mins, then scales that cover the ranges from there.
void encode_two_level(const Side& side, float top_code, CompressScratch& scratch, int32_t* page) {
  auto* scales = reinterpret_cast<uint8_t*>(page + side.at.scales);
  auto* mins = reinterpret_cast<int8_t*>(page + side.at.mins);
  auto* super_scales = reinterpret_cast<uint16_t*>(page + side.at.super_scales);
  auto* super_mins = reinterpret_cast<uint16_t*>(page + side.at.super_mins);
  const int total = side.at.groups * side.vectors;
  for (int first = 0; first < total; first += kSuperBlock) {
    const int count = total - first < kSuperBlock ? total - first : kSuperBlock;
    const float* low = scratch.low + first;
    const float* high = scratch.high + first;
    alignas(64) float steps[kSuperBlock];
    alignas(64) int32_t integers[kSuperBlock];

    alignas(64) float magnitudes[kSuperBlock];
    for (int i = 0; i < count; i += kWidth) {
      store(magnitudes + i, absolute(load_floats(low + i)));
    }
    super_mins[first / kSuperBlock] = super_scale(magnitudes, count, 127.0f);
    const float min_unit = half_to_float(super_mins[first / kSuperBlock]);
    for (int i = 0; i < count; i += kWidth) {
      const Floats low_i = load_floats(low + i);
      const Floats high_i = load_floats(high + i);
      const Ints is_constant = low_i == high_i;
      const Floats ratio = min_unit > 0.0f ? low_i / min_unit : Floats{};
      const Floats rounded = clip(is_constant ? round_even(ratio) : floor(ratio), -128.0f, 127.0f);
      const Floats min = rounded * min_unit;
      store(integers + i, __builtin_convertvector(rounded, Ints));
      store(scratch.mins + first + i, min);
      store(steps + i, is_constant ? Floats{} : (high_i - min) / top_code);
    }
    for (int i = 0; i < count; ++i) mins[first + i] = static_cast<int8_t>(integers[i]);

    super_scales[first / kSuperBlock] = super_scale(steps, count, 255.0f);
    const float unit = half_to_float(super_scales[first / kSuperBlock]);
    for (int i = 0; i < count; i += kWidth) {
      const Floats ratio = unit > 0.0f ? load_floats(steps + i) / unit : Floats{};
      const Floats rounded = clip(ceil(ratio), 0.0f, 255.0f);
      store(integers + i, __builtin_convertvector(rounded, Ints));
      store(scratch.scales + first + i, rounded * unit);
    }
    for (int i = 0; i < count; ++i) scales[first + i] = static_cast<uint8_t>(integers[i]);
  }
}

// Codes of all vectors as bytes of code_units, and the values they stand for as `approximation`.
void quantize(const Side& side, float top_code, CompressScratch& scratch) {
  const int blocks = side.lanes / kLineWords;
  for (int v = 0; v < side.vectors; ++v) {
    const int unit = v / 4 * blocks;
    for (int l = 0; l < side.lanes; l += kWidth) {
      const int entry = l / side.config.group_size * side.vectors + v;
      const float scale = scratch.scales[entry];
      const float min = scratch.mins[entry];
      const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
      const float* x = scratch.x + v * side.lanes + l;
      const Floats code = round_even(clip((load_floats(x) - min) * inverse, 0.0f, top_code));
      store(scratch.approximation + v * side.lanes + l, code * scale + min);
      uint32_t* bytes = scratch.code_units + (unit + l / kLineWords) * kLineWords + l % kLineWords;
      const Words shifted = reinterpret_cast<Words>(__builtin_convertvector(code, Ints))
                            << (8 * (v % 4));
      store(bytes, v % 4 ? load<Words>(bytes) | shifted : shifted);
    }
  }
}

// Interleaves units: `bits` bits of each byte, from bit `first_bit` on.
void pack_plane(const uint32_t* units, int count, int bits, int first_bit, int32_t* target) {
  auto* plane = reinterpret_cast<uint32_t*>(target);
  const int per_line = 8 / bits;
  const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
  for (int unit = 0; unit < count; ++unit) {
    uint32_t* line = plane + unit / per_line * kLineWords;
    for (int i = 0; i < kLineWords; ++i) {
      const uint32_t part = (units[unit * kLineWords + i] >> first_bit & mask)
                            << (bits * (unit % per_line));
      line[i] = unit % per_line ? line[i] | part : part;
    }
  }
}

void pack_codes(const Side& side, const CompressScratch& scratch, int32_t* page) {
  const int units = side.lanes * side.vectors / 64;
  pack_plane(scratch.code_units, units, side.at.plane_bits, 0, page + side.at.codes);
  if (side.bits == 3) pack_plane(scratch.code_units, units, 1, 2, page + side.at.codes_high);
}

// The quantization error [V, L], 0 at outlier slots.
void find_error(const Side& side, CompressScratch& scratch) {
  for (int i = 0; i < side.vectors * side.lanes; i += kWidth) {
    store(scratch.error + i, load_floats(scratch.x + i) - load_floats(scratch.approximation + i));
  }
  const int outliers = side.config.outliers;
  for (int i = 0; i < side.vectors * outliers; ++i) {
    scratch.error[i / outliers * side.lanes + scratch.outliers[i]] = 0.0f;
  }
}

void store_outliers(const Side& side, const CompressScratch& scratch, int32_t* page) {
  const int outliers = side.config.outliers;
  const int count = side.vectors * outliers;
  auto* deltas = reinterpret_cast<uint16_t*>(page + side.at.outlier_deltas);
  memcpy(page + side.at.outlier_indices, scratch.outliers, count);
  for (int i = 0; i < count; ++i) {
    const int slot = i / outliers * side.lanes + scratch.outliers[i];
    deltas[i] = half_nearest(scratch.x[slot] - scratch.approximation[slot]);
  }
}

// x [V, L] of the rows [C, D], rotated where the config says so.
void load_vectors(const Side& side, const void* rows, DataType type, CompressScratch& scratch) {
  const PageConfig& config = side.config;
  float* target = side.is_key ? scratch.rows : scratch.x;
  convert(rows, type, target, DataType::kFloat32, config.chunk * config.head_dim);
  if (side.is_key ? config.rotate_keys : config.rotate_values) {
    rotate_rows(target, config.chunk, config.head_dim);
  }
  if (side.is_key) {
    transpose_matrix({target, config.head_dim}, {scratch.x, config.chunk}, config.chunk,
                     config.head_dim);
  }
}

void compress_side(const Side& side, const void* rows, DataType type, int32_t* page,
                   CompressScratch& scratch) {
  const PageConfig& config = side.config;
  if (!side.at.quantized) {
    memcpy(page + side.at.exact, rows, element_size(type) * config.chunk * config.head_dim);
    return;
  }
  load_vectors(side, rows, type, scratch);
  const float top_code = static_cast<float>((1 << side.bits) - 1);
  for (int v = 0; v < side.vectors; ++v) {
    if (config.outliers > 0) find_outliers(side, v, scratch);
    find_ranges(side, v, scratch);
  }
  for (int pass = 0; config.fit_ranges && pass < kFitPasses; ++pass) {
    for (int v = 0; v < side.vectors; ++v) fit_ranges(side, v, top_code, pass, scratch);
  }
  auto* encode = config.metadata_bits == 16 ? &encode_halves : &encode_two_level;
  encode(side, top_code, scratch, page);
  quantize(side, top_code, scratch);
  pack_codes(side, scratch, page);
  if (config.rank > 0) {
    find_error(side, scratch);
    correct_low_rank(side, scratch, page);
  }
  if (config.outliers > 0) store_outliers(side, scratch, page);
}

}  // namespace

void compress_page(const PageShape& shape, const void* keys, const void* values, int32_t* page,
                   CompressScratch& scratch) {
  memset(page, 0, sizeof(int32_t) * shape.layout.page_words);
  compress_side(make_side(shape, true), keys, shape.buffer_type(), page, scratch);
  compress_side(make_side(shape, false), values, shape.buffer_type(), page, scratch);
}

}  // namespace gear::cpu::GEAR_ISA
