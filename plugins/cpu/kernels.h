// What the kernels of one instruction set offer to the code that plans and checks.
#pragma once

#include <cstdint>

#include "core/positions.h"
#include "gear/attention.h"

namespace gear::cpu {

inline constexpr int kMaxChunk = 128;
inline constexpr int kMaxRank = 8;
inline constexpr int kMaxOutliers = 4;
inline constexpr int kMaxVectorLength = kMaxHeadDim > kMaxChunk ? kMaxHeadDim : kMaxChunk;
inline constexpr int kMaxTile = kMaxChunk * kMaxHeadDim;
// Scales of one side of a page: groups of at least 32 elements.
inline constexpr int kMaxScales = kMaxTile / 32;
inline constexpr int kMaxGroups = kMaxVectorLength / 32;
// Pages that a product with few rows takes together: what one waits for, the other one computes.
inline constexpr int kPageBatch = 2;
// Up to this many query rows are multiplied with packed pages; more share a decoded page.
inline constexpr int kFewRows = 16;
// Query rows that share one decoded page.
inline constexpr int kRowBlock = 64;

// Scores of a row in memory: of a batch of pages.
inline constexpr int kScoreStride = kPageBatch * kMaxChunk;

// A config and what derives from it, worked out once per call.
struct PageShape {
  explicit PageShape(const PageConfig& page_config)
      : config(page_config), layout(page_layout(page_config)) {}

  DataType buffer_type() const {
    return config.key_bits == 32 ? DataType::kFloat32 : DataType::kFloat16;
  }

  PageConfig config;
  PageLayout layout;
};

// Memory of one thread that attends. Tiles hold one page or up to `chunk` exact tokens.
struct alignas(64) AttendScratch {
  float query[kRowBlock * kMaxHeadDim];
  float rotated_query[kRowBlock * kMaxHeadDim];
  float acc[kRowBlock * kMaxHeadDim];
  float scores[kRowBlock * kScoreStride];
  float keys[kMaxTile];    // [head_dim, tokens]
  float values[kMaxTile];  // [tokens, head_dim]
  float rows[kMaxTile];    // [tokens, head_dim]
  float scales[kPageBatch * kMaxScales];
  float mins[kPageBatch * kMaxScales];
  float folded[kPageBatch * 8 * kMaxScales];  // scales times the weights of a block of rows
  uint8_t folded_bytes[kPageBatch * 8 * kMaxGroups * kMaxVectorLength];
};

// Memory of one thread that compresses. V vectors of L elements: keys are transposed.
struct alignas(64) CompressScratch {
  float rows[kMaxTile];           // [chunk, head_dim], rotated
  float x[kMaxTile];              // [V, L]
  float approximation[kMaxTile];  // [V, L]
  float error[kMaxTile];          // [V, L]
  float error_transposed[kMaxTile];
  uint32_t code_units[kMaxTile / 4];
  float low[kMaxScales];
  float high[kMaxScales];
  float scales[kMaxScales];
  float mins[kMaxScales];
  float token_factors[kMaxRank * kMaxChunk];
  float channel_factors[kMaxRank * kMaxHeadDim];
  uint8_t outliers[kMaxVectorLength * kMaxOutliers];
};

// One sequence and KV head of a call. Strides count elements.
struct Sequence {
  const PageShape* shape;
  const int32_t* pages;  // page p of the pool and this head: pages + p · page_stride
  int64_t page_stride;
  const int32_t* page_ids;
  const void* buffer_keys;    // [sinks + chunk, head_dim]
  const void* buffer_values;  // likewise
  DataType data_type;         // of query, keys, values, output
  const void* query;          // [new tokens, group, head_dim], rows query_stride apart
  const void* keys;           // [new tokens, head_dim], rows key_stride apart
  const void* values;         // likewise
  void* output;               // as query
  int64_t query_stride;
  int64_t key_stride;
  int past;
  int new_tokens;
  int group;
  float scale;
  float softcap;
  int sliding_window;
};

// A share of a sequence's work: query rows (token · group + head) over pages, and, where
// `with_exact`, over every token that is in no page.
struct Share {
  int first_row;
  int num_rows;
  int first_page;
  int end_page;
  bool with_exact;
};

// Result of a share that others complete, per row: the largest score, the sum of e^(score −
// largest), and the sum of the values weighted by the same.
struct Partial {
  float* largest;  // [rows]
  float* sum;      // [rows]
  float* acc;      // [rows, head_dim]
};

struct Kernels {
  const char* name;

  // Writes the output rows of a share that covers all their tokens.
  void (*attend)(const Sequence&, const Share&, AttendScratch&);

  void (*attend_partly)(const Sequence&, const Share&, AttendScratch&, const Partial&);

  // Writes the output rows that `count` partial results add up to.
  void (*merge)(const Sequence&, int num_rows, const Partial* partials, int count);

  // `keys` and `values` are [chunk, head_dim] of the buffer's type.
  void (*compress_page)(const PageShape&, const void* keys, const void* values, int32_t* page,
                        CompressScratch&);

  // Index of the first of `count` elements that is not within ±limit, −1 where all are.
  int64_t (*find_beyond)(const void* elements, DataType, int64_t count, float limit);

  void (*convert)(const void* source, DataType source_type, void* target, DataType target_type,
                  int count);
};

// The table that GEAR_CPU names, or the best that this machine can run; null with `error` set
// where there is none of that name.
const Kernels* selected_kernels(Error& error);

}  // namespace gear::cpu
