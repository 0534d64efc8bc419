// Attention of many query rows, FP16 or bfloat16: each block takes 128 rows of one sequence and KV
// head, each warp 16 of them, and all share tiles of 64 tokens in shared memory.
//
//   scores [16 rows, 64 tokens] = Q · Kᵀ, output [16 rows, D] += P · V, rows on M.
//   row r = token · G + head, as in queries.h.
//
// Pages come first, unpacked once per block, in their rotated spaces; then their output is rotated
// back, and the exact tokens follow, copied two tiles deep while products run. Operands are FP16:
// bfloat16 becomes FP16 where it is loaded, new tokens by the threads that copied them.
#pragma once

#include "cuda/attention/duties.h"
#include "cuda/attention/mask.h"
#include "cuda/attention/queries.h"
#include "cuda/attention/unpack.h"

namespace gear::cuda {

inline constexpr int kPrefillWarps = 8;
inline constexpr int kPrefillRows = 16 * kPrefillWarps;
inline constexpr int kPrefillStages = 2;

// Strides that keep a warp's reads of 16 bytes in different banks: of keys two rows of 64 bytes at
// a time, of values eight of 16.
GEAR_HOST_DEVICE constexpr int key_stride(int head_dim) { return head_dim + 32 - head_dim % 64; }
GEAR_HOST_DEVICE constexpr int value_stride(int head_dim) { return head_dim + 8; }

// Tiles of keys and of values; before and between them, FP32 rows that are rotated.
GEAR_HOST_DEVICE constexpr int prefill_shared_bytes(int head_dim) {
  const int tiles = kPrefillStages * kSpan * 2 * (key_stride(head_dim) + value_stride(head_dim));
  const int rows = kPrefillRows * head_dim * 4;
  return tiles > rows ? tiles : rows;
}

template <int kHeadDim>
class Prefill {
  static constexpr int kPairs = kHeadDim / 32;   // steps of 32 channels
  static constexpr int kColumns = kHeadDim / 8;  // blocks of 8 channels of the output
  static constexpr int kTokens = kSpan / 8;      // blocks of 8 tokens of a tile

 public:
  GEAR_DEVICE Prefill(const AttentionParams& params, int sequence, int head, int first_row,
                      unsigned char* shared)
      : params_(params),
        call_(params.call),
        shared_(shared),
        sequence_(sequence),
        head_(head),
        past_(call_.past(sequence)),
        num_rows_(call_.added(sequence) * call_.group()),
        block_row_(first_row),
        warp_row_(first_row + static_cast<int>(threadIdx.x) / kWarpLanes * 16) {}

  GEAR_DEVICE void run() {
    reset();
    attend_pages();
    attend_exact_tokens();
    write_output();
  }

 private:
  GEAR_DEVICE Tile keys(int stage) const {
    return {reinterpret_cast<uint16_t*>(shared_) + stage * kSpan * key_stride(kHeadDim),
            key_stride(kHeadDim)};
  }
  GEAR_DEVICE Tile values(int stage) const {
    return {keys(kPrefillStages).halves + stage * kSpan * value_stride(kHeadDim),
            value_stride(kHeadDim)};
  }

  // Rows 0 and 1 of a lane: g and g + 8 of its warp.
  GEAR_DEVICE int row(int i) const { return warp_row_ + lane_row() + 8 * i; }
  GEAR_DEVICE int position(int a_row) const { return past_ + a_row / call_.group(); }
  // The last row of the block that there is.
  GEAR_DEVICE int last_row() const { return min(block_row_ + kPrefillRows, num_rows_) - 1; }
  GEAR_DEVICE int first_seen(int a_row) const {
    return first_visible(position(a_row), call_.attributes.sliding_window);
  }

  GEAR_DEVICE int64_t row_offset(int a_row) const {
    const int head = head_ * call_.group() + a_row % call_.group();
    return call_.query_offset(sequence_, a_row / call_.group(), head);
  }

  GEAR_DEVICE void reset() {
    for (int i = 0; i < 2; ++i) {
      largest_[i] = -INFINITY;
      sum_[i] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) clear(output_[n]);
  }

  // --- Queries: for every 32 channels the lane's 8 of both rows, which are k of two products ---

  GEAR_DEVICE void set_query(int pair, int i, uint4 x) {
    queries_[2 * pair][i] = x.x;
    queries_[2 * pair][2 + i] = x.y;
    queries_[2 * pair + 1][i] = x.z;
    queries_[2 * pair + 1][2 + i] = x.w;
  }

  GEAR_DEVICE bool has_bfloat16() const { return call_.data_type == DataType::kBFloat16; }

  // Eight activations as halves.
  GEAR_DEVICE uint4 as_halves(uint4 x) const {
    if (!has_bfloat16()) return x;
    return make_uint4(halves_of_bfloat16(x.x), halves_of_bfloat16(x.y), halves_of_bfloat16(x.z),
                      halves_of_bfloat16(x.w));
  }

  GEAR_DEVICE void load_queries() {
    const auto* query = static_cast<const uint16_t*>(call_.query);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint16_t* source = query + row_offset(min(row(i), num_rows_ - 1)) + 8 * lane_quad();
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        set_query(pair, i, as_halves(*reinterpret_cast<const uint4*>(source + 32 * pair)));
      }
    }
  }

  GEAR_DEVICE void load_rotated_queries() {
    auto* rows = reinterpret_cast<float*>(shared_);
    for (int i = threadIdx.x; i < kPrefillRows * kHeadDim / 4; i += blockDim.x) {
      const int source = min(block_row_ + i / (kHeadDim / 4), num_rows_ - 1);
      reinterpret_cast<float4*>(rows)[i] =
          load4(call_.query, call_.data_type, row_offset(source) + i % (kHeadDim / 4) * 4);
    }
    __syncthreads();
    rotate_rows(rows, kPrefillRows, kHeadDim);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* source = rows + (row(i) - block_row_) * kHeadDim + 8 * lane_quad();
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const float* x = source + 32 * pair;
        set_query(pair, i,
                  make_uint4(pack_halves(x[0], x[1]), pack_halves(x[2], x[3]),
                             pack_halves(x[4], x[5]), pack_halves(x[6], x[7])));
      }
    }
    __syncthreads();
  }

  // --- Products ---

  GEAR_DEVICE void multiply_keys(Tile tile, float (&scores)[kTokens][4]) const {
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      clear(scores[n]);
      const uint16_t* source = tile.at(8 * n + lane_row(), 8 * lane_quad());
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint4 x = *reinterpret_cast<const uint4*>(source + 32 * pair);
        multiply(scores[n], queries_[2 * pair], {x.x, x.y});
        multiply(scores[n], queries_[2 * pair + 1], {x.z, x.w});
      }
    }
  }

  GEAR_DEVICE void multiply_values(Tile tile, const float (&weights)[kTokens][4]) {
    const int matrix = lane_id() / 8;
    const uint16_t* source = tile.at(matrix % 2 * 8 + lane_id() % 8, matrix / 2 * 8);
#pragma unroll
    for (int step = 0; step < kTokens / 2; ++step) {
      const float (&low)[4] = weights[2 * step];
      const float (&high)[4] = weights[2 * step + 1];
      const uint32_t a[4] = {pack_halves(low[0], low[1]), pack_halves(low[2], low[3]),
                             pack_halves(high[0], high[1]), pack_halves(high[2], high[3])};
#pragma unroll
      for (int pair = 0; pair < kColumns / 2; ++pair) {
        uint32_t b[4];
        ldmatrix_trans(b, source + step * 16 * tile.stride + 16 * pair);
        multiply(output_[2 * pair], a, {b[0], b[1]});
        multiply(output_[2 * pair + 1], a, {b[2], b[3]});
      }
    }
  }

  GEAR_DEVICE void weigh(float (&scores)[kTokens][4]) {
    float largest[2] = {largest_[0], largest_[1]};
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
    }
    float factor[2];
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAllLanes, largest[i], 1));
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(kAllLanes, largest[i], 2));
      // No token was in sight so far: every score is −infinity, and −infinity − 0 stays so.
      base[i] = largest[i] == -INFINITY ? 0.0f : largest[i];
      factor[i] = fast_exp2(largest_[i] - base[i]);
      largest_[i] = largest[i];
      sum_[i] *= factor[i];
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output_[n][i] *= factor[i / 2];
    }
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = fast_exp2(scores[n][i] - base[i / 2]);
        sum_[i / 2] += scores[n][i];  // of the lane's tokens
      }
    }
  }

  // Attends to a tile; position(token) is that of a token of the tile.
  template <typename Position>
  GEAR_DEVICE void attend_tile(int stage, bool is_masked, Position&& token_position) {
    float scores[kTokens][4];
    multiply_keys(keys(stage), scores);
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] *= params_.query_factor;
    }
    cap_scores(params_.softcap, scores);
    if (is_masked) {
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = token_position(8 * n + 2 * lane_quad() + i % 2);
          const int last = position(row(i / 2));
          const bool is_seen =
              at <= last && at >= first_visible(last, call_.attributes.sliding_window);
          if (!is_seen) scores[n][i] = -INFINITY;
        }
      }
    }
    weigh(scores);
    multiply_values(values(stage), scores);
  }

  // --- Pages ---

  GEAR_DEVICE void attend_pages() {
    const PageConfig& config = call_.config();
    const int pages = call_.full_pages(sequence_);
    const int first = first_seen(block_row_);
    int index = first > config.sinks ? (first - config.sinks) / config.chunk : 0;
    if (index >= pages) return;
    if (config.rotate_keys) {
      load_rotated_queries();
    } else {
      load_queries();
    }
    for (; index < pages; ++index) {
      const int page = checked_page(call_, sequence_, index);
      if (page < 0) continue;
      const auto* bytes = reinterpret_cast<const unsigned char*>(call_.page_at(page, head_));
      for (int span = 0; span < config.chunk / kSpan; ++span) attend_span(bytes, index, span);
    }
    if (config.rotate_values) rotate_output();
  }

  GEAR_DEVICE void attend_span(const unsigned char* page, int index, int span) {
    const int start = page_start(call_.config(), index) + span * kSpan;
    __syncthreads();
    unpack_page(call_, page, span, keys(0), values(0));
    __syncthreads();
    attend_tile(0, start < first_seen(last_row()), [&](int token) { return start + token; });
  }

  GEAR_DEVICE void rotate_output() {
    auto* rows = reinterpret_cast<float*>(shared_);
    __syncthreads();
    for_each_output([&](int i, int channel, float& x, float& y) {
      *reinterpret_cast<float2*>(rows + (row(i) - block_row_) * kHeadDim + channel) =
          make_float2(x, y);
    });
    __syncthreads();
    rotate_rows(rows, kPrefillRows, kHeadDim);
    __syncthreads();
    for_each_output([&](int i, int channel, float& x, float& y) {
      const float2 rotated =
          *reinterpret_cast<const float2*>(rows + (row(i) - block_row_) * kHeadDim + channel);
      x = rotated.x;
      y = rotated.y;
    });
  }

  // Calls visit(row of the lane, channel, its element, the next one).
  template <typename Visit>
  GEAR_DEVICE void for_each_output(Visit&& visit) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        visit(i, 8 * n + 2 * lane_quad(), output_[n][2 * i], output_[n][2 * i + 1]);
      }
    }
  }

  // --- Exact tokens, in the order of their positions (see decode.h) ---

  GEAR_DEVICE void attend_exact_tokens() {
    const int sinks = num_sinks(call_.config(), past_);
    const int paged = call_.full_pages(sequence_) * call_.config().chunk;
    const int end = position(last_row()) + 1 - paged;
    const int first = first_seen(block_row_);
    const auto token_position = [&](int e) { return e < sinks ? e : e + paged; };
    // The tiles before the one that holds the first visible token are out of sight.
    int tile = 0;
    while ((tile + 1) * kSpan < end && token_position((tile + 1) * kSpan - 1) < first) ++tile;

    load_queries();
    __syncthreads();
    copy_tile(tile * kSpan, end, token_position, 0);
    cp_async_commit();
    for (int stage = 0; tile * kSpan < end; ++tile, stage ^= 1) {
      const int start = tile * kSpan;
      if (start + kSpan < end) copy_tile(start + kSpan, end, token_position, stage ^ 1);
      cp_async_commit();
      cp_async_wait<1>();
      if (has_bfloat16()) convert_tile(start, end, token_position, stage);
      __syncthreads();
      const bool is_masked = token_position(start) < first_seen(last_row()) ||
                             start + kSpan > end ||
                             token_position(start + kSpan - 1) > position(block_row_);
      attend_tile(stage, is_masked, [&](int token) {
        return start + token < end ? token_position(start + token) : INT32_MAX;
      });
      __syncthreads();
    }
  }

  // Calls visit(token of the tile, channel, its position) for the thread's chunks of eight channels
  // of exact tokens first .. first + 63; the last token stands in for those beyond.
  template <typename Position, typename Visit>
  GEAR_DEVICE void for_each_chunk(int first, int end, const Position& token_position,
                                  Visit&& visit) const {
    constexpr int kRowChunks = kHeadDim / 8;
    for (int i = threadIdx.x; i < kSpan * kRowChunks; i += blockDim.x) {
      const int token = i / kRowChunks;
      visit(token, i % kRowChunks * 8, token_position(min(first + token, end - 1)));
    }
  }

  // Starts the copy of a tile of exact tokens.
  template <typename Position>
  GEAR_DEVICE void copy_tile(int first, int end, const Position& token_position, int stage) {
    for_each_chunk(first, end, token_position, [&](int token, int channel, int at) {
      cp_async<16>(keys(stage).at(token, channel), exact_row(0, at) + channel);
      cp_async<16>(values(stage).at(token, channel), exact_row(1, at) + channel);
    });
  }

  // Makes halves of the new tokens that this thread has copied.
  template <typename Position>
  GEAR_DEVICE void convert_tile(int first, int end, const Position& token_position, int stage) {
    for_each_chunk(first, end, token_position, [&](int token, int channel, int at) {
      if (at < past_) return;
      auto* key = reinterpret_cast<uint4*>(keys(stage).at(token, channel));
      auto* value = reinterpret_cast<uint4*>(values(stage).at(token, channel));
      *key = as_halves(*key);
      *value = as_halves(*value);
    });
  }

  GEAR_DEVICE const uint16_t* exact_row(int side, int at) const {
    if (at >= past_) {
      return static_cast<const uint16_t*>(side == 0 ? call_.key : call_.value) +
             call_.key_offset(sequence_, at - past_, head_);
    }
    return static_cast<const uint16_t*>(call_.residual_buffer) +
           call_.buffer_offset(sequence_, head_, side, buffer_row(call_.config(), at));
  }

  // --- Results ---

  GEAR_DEVICE void write_output() {
    constexpr float kLogOf2 = 0.693147181f;
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum_[i] += __shfl_xor_sync(kAllLanes, sum_[i], 1);
      sum_[i] += __shfl_xor_sync(kAllLanes, sum_[i], 2);
      factor[i] = 1.0f / sum_[i];
      if (params_.log_sum_exp != nullptr && row(i) < num_rows_ && lane_quad() == 0) {
        params_.log_sum_exp[row_offset(row(i)) / kHeadDim] =
            kLogOf2 * (largest_[i] + log2f(sum_[i]));
      }
    }
    auto* output = static_cast<uint16_t*>(call_.output);
    for_each_output([&](int i, int channel, float& x, float& y) {
      if (row(i) >= num_rows_) return;
      *reinterpret_cast<uint32_t*>(output + row_offset(row(i)) + channel) =
          has_bfloat16() ? pack_bfloat16(x * factor[i], y * factor[i])
                         : pack_halves(x * factor[i], y * factor[i]);
    });
  }

  const AttentionParams& params_;
  const Call& call_;
  unsigned char* shared_;
  int sequence_;
  int head_;
  int past_;
  int num_rows_;
  int block_row_;
  int warp_row_;
  float largest_[2];
  float sum_[2];
  uint32_t queries_[2 * kPairs][4];
  float output_[kColumns][4];
};

// One block per tile of rows, the longest first, KV head and sequence.
template <int kHeadDim>
__global__ void __launch_bounds__(kPrefillWarps* kWarpLanes, 1)
    attend_prefill(const AttentionParams params) {
  const Call& call = params.call;
  const int sequence = blockIdx.z;
  const int head = blockIdx.y;
  const int first_row = (gridDim.x - 1 - blockIdx.x) * kPrefillRows;
  if (call.added(sequence) > 0 && is_valid(call, sequence)) {
    if (first_row < call.added(sequence) * call.group()) {
      Prefill<kHeadDim>(params, sequence, head, first_row, shared_memory<unsigned char>()).run();
    }
    if (first_row == 0) append_exact(call, sequence, head);
  }
  clear_idle_rows(params);
}

}  // namespace gear::cuda
