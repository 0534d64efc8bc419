// 64 tokens of a page as FP16 tiles in shared memory, by all threads of a block, for many query
// rows to share: keys and values [64][D], rows `stride` halves apart, still rotated.
#pragma once

#include "cuda/attention/metadata.h"

namespace gear::cuda {

// A tile of tokens in shared memory.
struct Tile {
  uint16_t* halves;
  int stride;

  GEAR_DEVICE uint16_t* at(int token, int channel) const {
    return halves + token * stride + channel;
  }
};

GEAR_DEVICE uint16_t to_half_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }

// Codes of quads quad .. quad + 3 (a multiple of four) of one lane.
GEAR_DEVICE float4 load_codes(const unsigned char* page, const SideLayout& at, int bits, int lanes,
                              int lane, int quad) {
  const CodePlace place = code_place(lane, quad, lanes, plane_bits(bits));
  const uint32_t mask = ((1u << plane_bits(bits)) - 1) * 0x01010101u;
  const auto* words = reinterpret_cast<const uint32_t*>(page);
  uint32_t codes = words[at.codes + place.word] >> place.shift & mask;
  if (bits == 3) {
    const CodePlace high = code_place(lane, quad, lanes, 1);
    codes |= (words[at.codes_high + high.word] >> high.shift & 0x01010101u) << 2;
  }
  return make_float4(static_cast<float>(codes & 0xff), static_cast<float>(codes >> 8 & 0xff),
                     static_cast<float>(codes >> 16 & 0xff), static_cast<float>(codes >> 24));
}

// Factors index .. index + 3, index a multiple of four, as floats.
GEAR_DEVICE float4 load_factors(const unsigned char* field, int bits, int index) {
  const Quad x = load_factor_quad(field, bits, index);
  const __half2 even = halves_of(x.even);
  const __half2 odd = halves_of(x.odd);
  return make_float4(__low2float(even), __low2float(odd), __high2float(even), __high2float(odd));
}

GEAR_DEVICE float load_factor(const unsigned char* field, int bits, int index) {
  const __half2 pair = halves_of(load_factor_pair(field, bits, index & ~1));
  return index % 2 == 0 ? __low2float(pair) : __high2float(pair);
}

// x[quad ..] += Σ_j lane_factor[j][lane] · scale_j · quad_factor[j][quad ..].
GEAR_DEVICE float4 add_low_rank(const Call& call, const unsigned char* page, const SideLayout& at,
                                int lane_factors, int lanes, int lane, int quad_factors, int quads,
                                int quad, float4 x) {
  const int bits = call.config().factor_bits;
  for (int j = 0; j < call.config().rank; ++j) {
    const float along = load_factor(page + 4 * lane_factors, bits, j * lanes + lane) *
                        factor_scale(page, at, bits, j);
    const float4 factors = load_factors(page + 4 * quad_factors, bits, j * quads + quad);
    x = make_float4(fmaf(along, factors.x, x.x), fmaf(along, factors.y, x.y),
                    fmaf(along, factors.z, x.z), fmaf(along, factors.w, x.w));
  }
  return x;
}

GEAR_DEVICE float4 dequantize(float4 codes, const Metadata& metadata) {
  return make_float4(fmaf(codes.x, metadata.scales.x, metadata.mids.x),
                     fmaf(codes.y, metadata.scales.y, metadata.mids.y),
                     fmaf(codes.z, metadata.scales.z, metadata.mids.z),
                     fmaf(codes.w, metadata.scales.w, metadata.mids.w));
}

// Neighbouring threads take neighbouring tokens, which share lines of codes and metadata.
GEAR_DEVICE void unpack_keys(const Call& call, const unsigned char* page, int span, Tile tile) {
  const PageConfig& config = call.config();
  const SideLayout& at = call.layout.key;
  const int head_dim = config.head_dim;
  for (int i = threadIdx.x; i < kSpan * head_dim / 4; i += blockDim.x) {
    const int token = span * kSpan + i % kSpan;
    const int channel = i / kSpan * 4;
    const int entry = token / config.group_size * head_dim + channel;
    const Metadata metadata = load_metadata(page, at, config.metadata_bits, 0.0f, entry);
    const float4 codes = load_codes(page, at, config.key_bits, config.chunk, token, channel);
    const float4 x =
        add_low_rank(call, page, at, at.token_factors, config.chunk, token, at.channel_factors,
                     head_dim, channel, dequantize(codes, metadata));
    *reinterpret_cast<uint2*>(tile.at(i % kSpan, channel)) =
        make_uint2(pack_halves(x.x, x.y), pack_halves(x.z, x.w));
  }
}

GEAR_DEVICE void unpack_values(const Call& call, const unsigned char* page, int span, Tile tile) {
  const PageConfig& config = call.config();
  const SideLayout& at = call.layout.value;
  const int head_dim = config.head_dim;
  for (int i = threadIdx.x; i < kSpan * head_dim / 4; i += blockDim.x) {
    const int channel = i % head_dim;
    const int first = i / head_dim * 4;
    const int token = span * kSpan + first;
    const int entry = channel / config.group_size * config.chunk + token;
    const Metadata metadata = load_metadata(page, at, config.metadata_bits, 0.0f, entry);
    const float4 codes = load_codes(page, at, config.value_bits, head_dim, channel, token);
    const float4 x =
        add_low_rank(call, page, at, at.channel_factors, head_dim, channel, at.token_factors,
                     config.chunk, token, dequantize(codes, metadata));
    *tile.at(first, channel) = to_half_bits(x.x);
    *tile.at(first + 1, channel) = to_half_bits(x.y);
    *tile.at(first + 2, channel) = to_half_bits(x.z);
    *tile.at(first + 3, channel) = to_half_bits(x.w);
  }
}

// Outliers are at different places of the tile, so that each is one addition.
GEAR_DEVICE void add_outlier(uint16_t* target, uint16_t delta) {
  *target = to_half_bits(half_bits_to_float(*target) + half_bits_to_float(delta));
}

GEAR_DEVICE void unpack_key_outliers(const Call& call, const unsigned char* page, int span,
                                     Tile tile) {
  const SideLayout& at = call.layout.key;
  const auto* deltas = reinterpret_cast<const uint16_t*>(page + 4 * at.outlier_deltas);
  const unsigned char* indices = page + 4 * at.outlier_indices;
  const int outliers = call.config().outliers;
  for (int i = threadIdx.x; i < call.head_dim() * outliers; i += blockDim.x) {
    const int token = indices[i] - span * kSpan;
    if (token >= 0 && token < kSpan) add_outlier(tile.at(token, i / outliers), deltas[i]);
  }
}

GEAR_DEVICE void unpack_value_outliers(const Call& call, const unsigned char* page, int span,
                                       Tile tile) {
  const SideLayout& at = call.layout.value;
  const int outliers = call.config().outliers;
  const int first = span * kSpan * outliers;
  const auto* deltas = reinterpret_cast<const uint16_t*>(page + 4 * at.outlier_deltas) + first;
  const unsigned char* indices = page + 4 * at.outlier_indices + first;
  for (int i = threadIdx.x; i < kSpan * outliers; i += blockDim.x) {
    add_outlier(tile.at(i / outliers, indices[i]), deltas[i]);
  }
}

// FP16 rows of a pass-through side.
GEAR_DEVICE void copy_exact(const unsigned char* rows, int head_dim, Tile tile) {
  for (int i = threadIdx.x; i < kSpan * head_dim / 8; i += blockDim.x) {
    const int token = i / (head_dim / 8);
    const int channel = i % (head_dim / 8) * 8;
    *reinterpret_cast<uint4*>(tile.at(token, channel)) =
        *reinterpret_cast<const uint4*>(rows + (token * head_dim + channel) * 2);
  }
}

// Tokens 64 · span .. of a page. All threads, which have met at a barrier and do so after it.
GEAR_DEVICE void unpack_page(const Call& call, const unsigned char* page, int span, Tile keys,
                             Tile values) {
  const PageLayout& layout = call.layout;
  const int head_dim = call.head_dim();
  const int exact_bytes = span * kSpan * head_dim * 2;
  if (layout.key.quantized) {
    unpack_keys(call, page, span, keys);
  } else {
    copy_exact(page + 4 * layout.key.exact + exact_bytes, head_dim, keys);
  }
  if (layout.value.quantized) {
    unpack_values(call, page, span, values);
  } else {
    copy_exact(page + 4 * layout.value.exact + exact_bytes, head_dim, values);
  }
  if (call.config().outliers == 0) return;
  __syncthreads();
  if (layout.key.quantized) unpack_key_outliers(call, page, span, keys);
  if (layout.value.quantized) unpack_value_outliers(call, page, span, values);
}

}  // namespace gear::cuda
