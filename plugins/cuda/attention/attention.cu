// Launches of the attention kernels.

#include <algorithm>

#include "cuda/attention/decode.h"
#include "cuda/attention/prefill.h"
#include "cuda/kernels.h"

namespace gear::cuda {
namespace {

// Items per block that keep all blocks busy to the end, where sequences are long enough.
constexpr int kItemsPerBlock = 2;
// The most blocks of one multiprocessor that registers allow on any GPU (decode_blocks).
constexpr int kMaxBlocks = 3;
// Shared memory that CUDA takes for itself in every block.
constexpr int kReservedBytes = 1024;

using DecodeKernel = void (*)(AttentionParams);

// How a call is run: by which kernel, on which blocks.
struct Plan {
  DecodeKernel kernel;
  int warps;
  int stage_bytes;
  size_t shared_bytes;
  int blocks;
  int max_tiles;
  bool is_split;
};

int shared_bytes(const Call& call, int warps, int stage_bytes) {
  return shared_layout(call.head_dim(), warps, scratch_bytes(call.config()), stage_bytes).bytes;
}

DecodeKernel staged_kernel(int head_dim) {
  switch (head_dim) {
    case 64:
      return attend_decode<64>;
    case 128:
      return attend_decode<128>;
    default:
      return nullptr;
  }
}

// Blocks that a multiprocessor runs at once; it has as much memory as its largest block takes up.
int resident_blocks(int head_dim, int shared_bytes, int largest_block) {
  const int blocks = (largest_block + kReservedBytes) / (shared_bytes + kReservedBytes);
  return std::clamp(blocks, 1, decode_blocks(head_dim, architecture()));
}

Plan make_plan(const Call& call) {
  Plan plan{};
  plan.kernel = staged_kernel(call.head_dim());
  plan.warps = kDecodeWarps;
  plan.stage_bytes = (call.layout.page_words * 4 + 127) / 128 * 128;
  const int limit = static_cast<int>(max_shared_bytes());
  while (plan.warps > 1 && shared_bytes(call, plan.warps, plan.stage_bytes) > limit) {
    plan.warps /= 2;
  }
  if (plan.kernel == nullptr || shared_bytes(call, plan.warps, plan.stage_bytes) > limit) {
    plan.kernel = attend_decode<0>;
    plan.stage_bytes = 0;
    plan.warps = kDecodeWarps;
  }
  plan.shared_bytes = shared_bytes(call, plan.warps, plan.stage_bytes);
  const int template_dim = plan.stage_bytes == 0 ? 0 : call.head_dim();
  plan.blocks = num_multiprocessors() *
                resident_blocks(template_dim, static_cast<int>(plan.shared_bytes), limit);
  plan.max_tiles = (call.seq_len * call.group() + kTileRows - 1) / kTileRows;
  plan.is_split = static_cast<int64_t>(call.batch) * call.kv_heads() * plan.max_tiles <= kCounters;
  return plan;
}

using PrefillKernel = void (*)(AttentionParams);

// For FP16 and bfloat16 calls of more rows than a tile. FP32 ones keep to the decode kernel, which
// loses fewer digits.
PrefillKernel prefill_kernel(const Call& call) {
  if (call.data_type == DataType::kFloat32 || call.buffer_type == DataType::kFloat32) {
    return nullptr;
  }
  if (call.seq_len * call.group() <= kPrefillRows) return nullptr;
  switch (call.head_dim()) {
    case 64:
      return attend_prefill<64>;
    case 96:
      return attend_prefill<96>;
    case 128:
      return attend_prefill<128>;
    default:
      return nullptr;
  }
}

Error launch_prefill(PrefillKernel kernel, const AttentionParams& params, Stream stream) {
  const Call& call = params.call;
  const int tiles = (call.seq_len * call.group() + kPrefillRows - 1) / kPrefillRows;
  return launch(kernel, dim3(tiles, call.kv_heads(), call.batch), dim3(kPrefillWarps * kWarpLanes),
                prefill_shared_bytes(call.head_dim()), stream, params);
}

}  // namespace

size_t attention_workspace_bytes(const Call& call) {
  if (prefill_kernel(call) != nullptr) return 0;
  const Plan plan = make_plan(call);
  if (!plan.is_split) return 0;
  const size_t items = static_cast<size_t>(plan.blocks) * kItemsPerBlock +
                       static_cast<size_t>(call.batch) * call.kv_heads() * plan.max_tiles;
  return items * state_floats(call.head_dim()) * sizeof(float);
}

size_t attention_workspace_bound(const Call& largest) {
  const bool has_prefill = prefill_kernel(largest) != nullptr;
  const int rows = has_prefill ? kPrefillRows : largest.seq_len * largest.group();
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t counters = std::min<int64_t>(tiles * largest.batch * largest.kv_heads(), kCounters);
  const int64_t items = int64_t{kMaxMultiprocessors} * kMaxBlocks * kItemsPerBlock + counters;
  return static_cast<size_t>(items) * state_floats(largest.head_dim()) * sizeof(float);
}

Error launch_attention(const Call& call, const Workspace& workspace, float* log_sum_exp,
                       Stream stream) {
  constexpr float kLog2OfE = 1.442695041f;
  AttentionParams params{};
  params.call = call;
  params.query_factor = call.attributes.scale * kLog2OfE;
  params.softcap = call.attributes.softcap * kLog2OfE;
  params.log_sum_exp = log_sum_exp;
  if (const PrefillKernel kernel = prefill_kernel(call); kernel != nullptr) {
    return launch_prefill(kernel, params, stream);
  }
  const Plan plan = make_plan(call);
  params.partials = static_cast<float*>(workspace.memory);
  params.counters = workspace.counters;
  params.max_tiles = plan.max_tiles;
  params.wanted_items = plan.blocks * kItemsPerBlock;
  params.least_pages = plan.is_split ? plan.warps : std::max(call.max_pages, 1);
  params.stage_bytes = plan.stage_bytes;
  params.stage_plan = make_stage_plan(call.config(), call.layout);
  params.scratch_bytes = scratch_bytes(call.config());
  return launch(plan.kernel, dim3(plan.blocks), dim3(plan.warps * kWarpLanes), plan.shared_bytes,
                stream, params);
}

}  // namespace gear::cuda
