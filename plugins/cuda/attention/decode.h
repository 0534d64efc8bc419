// Attention of few query rows over packed pages and exact tokens: one block per item of work.h.
//
//   Each warp takes whole pages in turn, with a softmax state of its own, and copies its next page
//   into shared memory while it works on one. Then the warps share the exact tokens. Products are
//   those of keys.h, values.h and exact.h: 8 query rows by 64, or 16, tokens.
//
//   Pages are met in their rotated spaces: q is rotated once per item, their output back once. So
//   exact tokens have states of their own, that are added afterwards.
#pragma once

#include "cuda/attention/duties.h"
#include "cuda/attention/mask.h"
#include "cuda/attention/merge.h"
#include "cuda/attention/queries.h"
#include "cuda/attention/values.h"

namespace gear::cuda {

inline constexpr int kDecodeWarps = 4;
inline constexpr int kStages = 2;

// Bytes of a warp's scratch: the metadata of 64 tokens, or a tile of outliers.
GEAR_HOST_DEVICE constexpr int scratch_bytes(const PageConfig& config) {
  const int keys = key_metadata_bytes(config.head_dim);
  const int values = value_metadata_bytes(config.head_dim);
  int bytes = keys > values ? keys : values;
  if (config.outliers > 0) {
    const int lanes = config.head_dim > kSpan ? config.head_dim : kSpan;
    if (outlier_tile_bytes(lanes) > bytes) bytes = outlier_tile_bytes(lanes);
  }
  return (bytes + 127) / 128 * 128;
}

// Parts of shared memory, in bytes from its start. Staged queries lie where scratch does, states of
// the warps where pages do: they are needed at other times.
struct SharedLayout {
  int fragments;
  int scratch;
  int pages;
  int item;
  int flag;
  int bytes;
};

GEAR_HOST_DEVICE constexpr SharedLayout shared_layout(int head_dim, int warps, int warp_scratch,
                                                      int stage_bytes) {
  const int fragments = head_dim / 16 * kWarpLanes * 16;
  const int staged = kTileRows * head_dim * 4;
  const int scratch = warps * warp_scratch > staged ? warps * warp_scratch : staged;
  const int ring = warps * kStages * stage_bytes;
  const int states = (merge_bytes(head_dim, warps) + 127) / 128 * 128;
  SharedLayout layout{};
  layout.scratch = fragments;
  layout.pages = fragments + scratch;
  layout.item = layout.pages + (ring > states ? ring : states);
  layout.flag = layout.item + static_cast<int>(sizeof(Item));
  layout.bytes = layout.flag + 16;
  return layout;
}

template <int kHeadDim>
class Decode {
  static constexpr bool kIsStaged = kHeadDim != 0;
  static constexpr int kBlocks = kHeadDim == 0 ? kMaxHeadDim / kBlock : kHeadDim / kBlock;

 public:
  GEAR_DEVICE Decode(const AttentionParams& params, unsigned char* shared)
      : params_(params), call_(params.call) {
    const SharedLayout layout =
        shared_layout(head_dim(), warps(), params.scratch_bytes, params.stage_bytes);
    fragments_ = reinterpret_cast<uint4*>(shared + layout.fragments);
    staged_ = reinterpret_cast<float*>(shared + layout.scratch);
    scratch_ = shared + layout.scratch + warp() * params.scratch_bytes;
    pages_ = shared + layout.pages + warp() * kStages * params.stage_bytes;
    total_ = reinterpret_cast<float*>(shared + layout.pages);
    item_ = reinterpret_cast<Item*>(shared + layout.item);
    flag_ = reinterpret_cast<int*>(shared + layout.flag);
  }

  // All threads. The item lies in shared memory: registers are for the pages.
  GEAR_DEVICE void run(const Item& found) {
    if (threadIdx.x == 0) *item_ = found;
    __syncthreads();
    const Item& item = *item_;
    const bool has_pages = item.first_page < item.end_page;
    const bool has_exact = item.split == item.splits - 1;
    if (has_pages) attend_pages(item);
    if (has_exact) attend_exact_tokens(item, has_pages);
    finish(item);
    if (has_exact && item.tile == 0) append_exact(call_, item.sequence, item.head);
  }

 private:
  GEAR_DEVICE int head_dim() const { return kHeadDim == 0 ? call_.head_dim() : kHeadDim; }
  GEAR_DEVICE static int warp() { return threadIdx.x / kWarpLanes; }
  GEAR_DEVICE static int warps() { return blockDim.x / kWarpLanes; }

  GEAR_DEVICE void load_queries(const Item& item, bool is_rotated) {
    const int num_rows = call_.added(item.sequence) * call_.group();
    stage_queries(call_, item, num_rows, params_.query_factor, staged_);
    __syncthreads();
    if (is_rotated) {
      rotate_rows(staged_, kTileRows, head_dim());
      __syncthreads();
    }
    make_query_fragments(staged_, head_dim(), fragments_);
    __syncthreads();
  }

  // Adds the warps' states to the total.
  GEAR_DEVICE void merge(const SoftmaxState& state, const float (&output)[kBlocks][4],
                         bool has_total) {
    __syncthreads();
    write_state(state, output, head_dim(), total_ + (1 + warp()) * state_floats(head_dim()));
    __syncthreads();
    merge_warps(total_, has_total, head_dim());
    __syncthreads();
  }

  // --- Pages ---

  // Id of the sequence's page `index`, as it is; −1 beyond the item's pages.
  GEAR_DEVICE int page_id(const Item& item, int index) const {
    return index < item.end_page ? call_.page_ids(item.sequence)[index] : -1;
  }

  // Where a page lies in the pool; null where there is none.
  GEAR_DEVICE const unsigned char* page_bytes(const Item& item, int index, int id) const {
    if (index >= item.end_page) return nullptr;
    if (id < 0 || id >= call_.pool_pages) {
      checked_page(call_, item.sequence, index);
      return nullptr;
    }
    return reinterpret_cast<const unsigned char*>(call_.page_at(id, item.head));
  }

  GEAR_DEVICE unsigned char* stage_at(int stage) const {
    return pages_ + stage * params_.stage_bytes;
  }

  // Starts the copy of a page to one of the warp's stages.
  GEAR_DEVICE void fetch(const unsigned char* page, int stage) const {
    if (kIsStaged && page != nullptr) stage_page(params_.stage_plan, stage_at(stage), page);
    if (kIsStaged) cp_async_commit();
  }

  GEAR_DEVICE void attend_pages(const Item& item) {
    int index = item.first_page + warp();
    const unsigned char* page = page_bytes(item, index, page_id(item, index));
    fetch(page, 0);
    int next_id = page_id(item, index + warps());
    load_queries(item, call_.config().rotate_keys);
    SoftmaxState state;
    float output[kBlocks][4];
    reset(state, output);
    for (int stage = 0; index < item.end_page; index += warps(), stage ^= 1) {
      const unsigned char* next = page_bytes(item, index + warps(), next_id);
      fetch(next, stage ^ 1);
      next_id = page_id(item, index + 2 * warps());
      if (kIsStaged) cp_async_wait<1>();
      __syncwarp();
      if (page != nullptr) {
        attend_page(item, {kIsStaged ? stage_at(stage) : page, kIsStaged}, index, state, output);
      }
      __syncwarp();
      page = next;
    }
    merge(state, output, false);
    if (call_.config().rotate_values) {
      rotate_rows(total_, kTileRows, head_dim());
      __syncthreads();
    }
  }

  GEAR_DEVICE void attend_page(const Item& item, const PageView& page, int index,
                               SoftmaxState& state, float (&output)[kBlocks][4]) {
    for (int span = 0; span < call_.config().chunk / kSpan; ++span) {
      float scores[kScoreBlocks][4];
      page_scores<kHeadDim>(call_, page, fragments_, scratch_, span, head_dim(), scores);
      cap_scores(params_.softcap, scores);
      if (call_.attributes.sliding_window > 0) {
        mask_page(item, page_start(call_.config(), index) + span * kSpan, scores);
      }
      Quad weights[kScoreBlocks];
      weigh(scores, state, output, weights);
      add_page_values<kHeadDim>(call_, page, scratch_, span, head_dim(), weights, output);
    }
  }

  // Tokens of pages lie before all queries: only the window hides them.
  GEAR_DEVICE void mask_page(const Item& item, int start, float (&scores)[kScoreBlocks][4]) const {
    const Visible visible = visible_to(call_, item);
#pragma unroll
    for (int n = 0; n < kScoreBlocks; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int position = start + kBlock * n + 2 * lane_row() + i / 2;
        scores[n][i] = masked(scores[n][i], position, visible, i % 2);
      }
    }
  }

  // --- Sinks, the buffer's other rows and the new tokens, in the order of their positions ---

  // Exact token e is the sequence's token e, or, where pages lie between, that many further on.
  struct ExactRange {
    int sinks;
    int paged;
    int end;
  };

  GEAR_DEVICE ExactRange exact_range(const Item& item) const {
    const int past = call_.past(item.sequence);
    const int rows = call_.added(item.sequence) * call_.group();
    const int last_row = min(item.first_row + kTileRows, rows) - 1;
    const int paged = call_.full_pages(item.sequence) * call_.config().chunk;
    return {num_sinks(call_.config(), past), paged, past + last_row / call_.group() + 1 - paged};
  }

  GEAR_DEVICE static int position_of(const ExactRange& range, int e) {
    return e < range.sinks ? e : e + range.paged;
  }

  GEAR_DEVICE ExactRow exact_row(const Item& item, int side, int position) const {
    const int past = call_.past(item.sequence);
    const bool is_new = position >= past;
    const DataType type = is_new ? call_.data_type : call_.buffer_type;
    const void* base = !is_new ? call_.residual_buffer : side == 0 ? call_.key : call_.value;
    const int64_t offset = is_new ? call_.key_offset(item.sequence, position - past, item.head)
                                  : call_.buffer_offset(item.sequence, item.head, side,
                                                        buffer_row(call_.config(), position));
    return {static_cast<const char*>(base) + offset * (type == DataType::kFloat32 ? 4 : 2), type};
  }

  // Tokens beyond the end are out of sight: the last one stands in for them.
  GEAR_DEVICE ExactTokens exact_tokens(const Item& item, const ExactRange& range, int side,
                                       int first) const {
    ExactTokens tokens;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int e = min(first + 2 * lane_row() + i, range.end - 1);
      tokens.rows[i] = exact_row(item, side, position_of(range, e));
    }
    tokens.has_floats =
        call_.buffer_type == DataType::kFloat32 || call_.data_type == DataType::kFloat32;
    return tokens;
  }

  GEAR_DEVICE void attend_exact_tokens(const Item& item, bool has_total) {
    if (!has_total || call_.config().rotate_keys) load_queries(item, false);
    const ExactRange range = exact_range(item);
    const Visible visible = visible_to(call_, item);
    SoftmaxState state;
    float output[kBlocks][4];
    reset(state, output);
    for (int first = warp() * kBlock; first < range.end; first += warps() * kBlock) {
      attend_exact_block(item, range, first, visible, state, output);
    }
    merge(state, output, has_total);
  }

  GEAR_DEVICE void attend_exact_block(const Item& item, const ExactRange& range, int first,
                                      const Visible& visible, SoftmaxState& state,
                                      float (&output)[kBlocks][4]) {
    float scores[1][4];
    exact_scores(exact_tokens(item, range, 0, first), fragments_, head_dim(), scores[0]);
    cap_scores(params_.softcap, scores);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int e = first + 2 * lane_row() + i / 2;
      const int position = e < range.end ? position_of(range, e) : INT32_MAX;
      scores[0][i] = masked(scores[0][i], position, visible, i % 2);
    }
    Quad weights[1];
    weigh(scores, state, output, weights);
    add_exact_values<kHeadDim>(exact_tokens(item, range, 1, first), weights[0], head_dim(), output);
  }

  // --- Results ---

  GEAR_DEVICE void finish(const Item& item) {
    if (item.splits > 1) {
      const int stride = state_floats(head_dim());
      float* partials = params_.partials + static_cast<int64_t>(item.partial) * stride;
      write_partial(total_, head_dim(), partials + item.split * stride);
      int32_t* counter = params_.counters +
                         (item.sequence * call_.kv_heads() + item.head) * params_.max_tiles +
                         item.tile;
      if (!is_last_split(counter, item.splits, flag_)) return;
      merge_splits(partials, item.splits, head_dim(), total_);
      __syncthreads();
    }
    write_output(params_, item, total_);
  }

  const AttentionParams& params_;
  const Call& call_;
  uint4* fragments_;  // of the queries
  float* staged_;
  unsigned char* scratch_;
  unsigned char* pages_;  // the warp's stages
  float* total_;
  Item* item_;
  int* flag_;
};

#ifdef __CUDA_ARCH__
inline constexpr int kArchitecture = __CUDA_ARCH__;
#else
inline constexpr int kArchitecture = 0;
#endif

// Blocks per multiprocessor that registers must allow: three where ptxas gets by without spills.
GEAR_HOST_DEVICE constexpr int decode_blocks(int head_dim, int architecture) {
  if (architecture >= 860 && architecture <= 900) return head_dim == 0 ? 2 : 3;
  return head_dim == 64 ? 3 : 2;
}

template <int kHeadDim>
__global__ void __launch_bounds__(kDecodeWarps* kWarpLanes, decode_blocks(kHeadDim, kArchitecture))
    attend_decode(const AttentionParams params) {
  Decode<kHeadDim> decode(params, shared_memory<unsigned char>());
  const int split_pages = pages_per_split(params);
  Item item;
  for (int index = blockIdx.x; find_item(params, split_pages, index, item); index += gridDim.x) {
    decode.run(item);
    __syncthreads();
  }
  clear_idle_rows(params);
}

}  // namespace gear::cuda
