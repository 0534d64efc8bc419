// One launch compresses every page that becomes full in a call, and appends the new tokens of the
// sequences that have one. A block takes one side of one page at a time:
//
//   rows from the buffer and from the new tokens → rotate → outliers, ranges, metadata → codes →
//   low rank of the error → deltas of the outliers (gear_trt/reference/page.py).

#include <algorithm>

#include "cuda/append.h"
#include "cuda/compress/lowrank.h"
#include "cuda/compress/quantize.h"
#include "cuda/compress/tile.h"
#include "cuda/kernels.h"

namespace gear::cuda {
namespace {

constexpr int kBlocksPerProcessor = 4;

// Pages to make: those that become full in `call`, or, where there are `rows`, `num_tasks` / 2
// pages of rows that lie one after the other.
struct Work {
  Call call;
  const void* rows[2];
  int num_tasks;
  float* tiles;  // one per block, where they do not fit into shared memory
};

// One side of one page. `first` is the position of its first token, or its first row.
struct Task {
  int sequence;
  int head;
  int side;
  int first;
  int32_t* page;
};

GEAR_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }

// Rounds as the buffer does.
GEAR_DEVICE float4 as_stored(float4 x, DataType buffer_type) {
  if (buffer_type == DataType::kFloat32) return x;
  return make_float4(half_to_float(half_nearest(x.x)), half_to_float(half_nearest(x.y)),
                     half_to_float(half_nearest(x.z)), half_to_float(half_nearest(x.w)));
}

// The rows of a task, checked, in the tile. Values that the buffer cannot hold are reported;
// returns whether this thread met one.
template <typename Load, typename Report>
GEAR_DEVICE bool gather(const PageConfig& config, DataType buffer_type, float* x, Load&& load,
                        Report&& report_misfit) {
  const int quads = config.head_dim / 4;
  bool has_misfit = false;
  for (int i = thread_index(); i < config.chunk * quads; i += kCompressThreads) {
    const int row = i / quads;
    const int channel = i % quads * 4;
    const float4 loaded = load(row, channel);
    if (!fits(loaded, buffer_type)) {
      report_misfit(row, loaded);
      has_misfit = true;
    }
    const float4 stored = as_stored(loaded, buffer_type);
    float* target = x + row * tile_stride(config) + channel;
    target[0] = stored.x;
    target[1] = stored.y;
    target[2] = stored.z;
    target[3] = stored.w;
  }
  return has_misfit;
}

// Rows of a page that becomes full: old ones from the buffer, new ones as the buffer would hold
// them.
GEAR_DEVICE bool gather_tokens(const Call& call, const Task& task, float* x) {
  const void* source = task.side == 0 ? call.key : call.value;
  const int past = call.past(task.sequence);
  return gather(
      call.config(), call.buffer_type, x,
      [&](int row, int channel) {
        const int position = task.first + row;
        if (position < past) {
          const int buffered = buffer_row(call.config(), position);
          const int64_t offset = call.buffer_offset(task.sequence, task.head, task.side, buffered);
          return load4(call.residual_buffer, call.buffer_type, offset + channel);
        }
        const int64_t offset = call.key_offset(task.sequence, position - past, task.head);
        return load4(source, call.data_type, offset + channel);
      },
      [&](int row, float4 misfit) {
        report_value(call, task.sequence, task.head, task.side, task.first + row - past, misfit);
      });
}

GEAR_DEVICE bool gather_rows(const Work& work, const Task& task, float* x) {
  const Call& call = work.call;
  const int64_t page_rows = static_cast<int64_t>(task.first) * call.head_dim();
  return gather(
      call.config(), call.buffer_type, x,
      [&](int row, int channel) {
        return load4(work.rows[task.side], call.buffer_type,
                     page_rows + row * call.head_dim() + channel);
      },
      [&](int row, float4 misfit) {
        report(call.status, task.side == 0 ? Fault::kPageKey : Fault::kPageValue,
               {0, 0, task.sequence, 0, row, __float_as_int(first_misfit(misfit, call.buffer_type)),
                0});
      });
}

// The rows as they are, for a side that is not quantized.
GEAR_DEVICE void store_exact(const Call& call, const Tile& tile, int32_t* page) {
  const int quads = call.head_dim() / 4;
  for (int i = thread_index(); i < call.config().chunk * quads; i += kCompressThreads) {
    const float* row = tile.x + i / quads * tile_stride(call.config()) + i % quads * 4;
    store4(page + tile.side.at.exact, call.buffer_type, int64_t{4} * i,
           make_float4(row[0], row[1], row[2], row[3]));
  }
}

// Words of the page that no field of the other side has, but for codes, which fill whole lines.
GEAR_DEVICE void zero_metadata(const PageLayout& layout, bool is_key, int32_t* page) {
  const int first = is_key ? layout.key.scales : layout.value.scales;
  const int end = is_key ? layout.value.scales : layout.page_words;
  for (int i = first + thread_index(); i < end; i += kCompressThreads) page[i] = 0;
}

GEAR_DEVICE void compress_tile(const Call& call, const Tile& tile, int32_t* page) {
  const PageConfig& config = call.config();
  zero_metadata(call.layout, tile.side.is_key, page);
  if (!tile.side.at.quantized) return store_exact(call, tile, page);
  const float top_code = static_cast<float>((1 << tile.side.bits) - 1);
  if (tile.side.is_rotated) rotate_tile(config, tile.x);
  if (config.outliers > 0) {
    find_outliers(tile, config.outliers);
    __syncthreads();
  }
  find_ranges(tile, config);
  __syncthreads();
  if (config.fit_ranges) {
    fit_ranges(tile, config, top_code);
    __syncthreads();
  }
  if (config.metadata_bits == 16) {
    encode_halves(tile, top_code, page);
  } else {
    encode_two_level(tile, top_code, page);
  }
  __syncthreads();
  quantize_and_pack(tile, config, top_code, page);
  __syncthreads();
  if (config.outliers > 0) {
    take_outliers(tile, config.outliers);
    __syncthreads();
  }
  if (config.rank > 0) correct_low_rank(tile, config, page);
  if (config.outliers > 0) store_outliers(tile, config, page);
}

GEAR_DEVICE Tile make_tile(const Call& call, const Side& side, float* memory, float* x) {
  const TilePlan plan = plan_tile(call.config());
  return {side,
          x,
          memory + plan.scales,
          memory + plan.mins,
          memory + plan.inverses,
          memory + plan.deltas,
          reinterpret_cast<uint8_t*>(memory + plan.positions),
          memory + plan.tokens,
          memory + plan.channels,
          memory + plan.partials};
}

// Task `index` of a call: one of two sides, of a head, of a sequence's next full page but `i`.
// False where there is no such page, or it cannot be made.
GEAR_DEVICE bool find_task(const Call& call, int index, Task& task, int& i) {
  task.side = index % 2;
  task.head = index / 2 % call.kv_heads();
  task.sequence = index / (2 * call.kv_heads()) % call.batch;
  i = index / (2 * call.kv_heads() * call.batch);
  if (call.added(task.sequence) == 0 || !is_valid(call, task.sequence)) return false;
  const int page_index = call.full_pages(task.sequence) + i;
  if (page_index >= call.full_pages_after(task.sequence)) return false;
  const int page = checked_page(call, task.sequence, page_index);
  if (page < 0) return false;
  task.first = page_start(call.config(), page_index);
  task.page = call.page_at(page, task.head);
  return true;
}

__global__ void __launch_bounds__(kCompressThreads, kBlocksPerProcessor)
    compress(const __grid_constant__ Work work) {
  const Call& call = work.call;
  const TilePlan plan = plan_tile(call.config());
  float* memory = shared_memory<float>();
  float* x = work.tiles == nullptr
                 ? memory + plan.x
                 : work.tiles + static_cast<int64_t>(blockIdx.x) * tile_floats(call.config());
  for (int index = static_cast<int>(blockIdx.x); index < work.num_tasks;
       index += static_cast<int>(gridDim.x)) {
    Task task{};
    int i = 0;
    bool has_misfit = false;
    if (work.rows[0] != nullptr) {
      task = {index / 2, 0, index % 2, index / 2 * call.config().chunk,
              call.page_pool + static_cast<int64_t>(index / 2) * call.layout.page_words};
      has_misfit = gather_rows(work, task, x);
    } else {
      if (!find_task(call, index, task, i)) continue;
      has_misfit = gather_tokens(call, task, x);
    }
    has_misfit = __syncthreads_or(has_misfit);
    // The old rows are in the tile now: the block of a sequence's first page writes the new ones.
    if (work.rows[0] == nullptr && i == 0) {
      append_rows(call, task.sequence, task.head, task.side, thread_index(), kCompressThreads);
    }
    if (!has_misfit) {
      const Side side = make_side(call.config(), call.layout, task.side == 0);
      compress_tile(call, make_tile(call, side, memory, x), task.page);
    }
    __syncthreads();
  }
}

bool fits_shared(const PageConfig& config, size_t shared_bytes) {
  return plan_tile(config).end * sizeof(float) <= shared_bytes;
}

int max_blocks() { return num_multiprocessors() * kBlocksPerProcessor; }

size_t tiles_bytes(const PageConfig& config, int64_t blocks) {
  return static_cast<size_t>(blocks) * tile_floats(config) * sizeof(float);
}

int64_t num_tasks(const Call& call) {
  return int64_t{2} * call.kv_heads() * call.batch * call.max_new_pages();
}

Error launch_work(Work work, const Workspace& workspace, Stream stream) {
  if (work.num_tasks == 0) return {};
  const PageConfig& config = work.call.config();
  const TilePlan plan = plan_tile(config);
  const auto blocks =
      static_cast<unsigned>(work.num_tasks < max_blocks() ? work.num_tasks : max_blocks());
  const dim3 threads(kCompressThreads);
  if (fits_shared(config, max_shared_bytes())) {
    return launch(compress, dim3(blocks), threads, plan.end * sizeof(float), stream, work);
  }
  if (workspace.bytes < tiles_bytes(config, blocks)) {
    return "the workspace has " + std::to_string(workspace.bytes) + " bytes for compression, " +
           std::to_string(tiles_bytes(config, blocks)) + " are needed";
  }
  work.tiles = static_cast<float*>(workspace.memory);
  return launch(compress, dim3(blocks), threads, plan.x * sizeof(float), stream, work);
}

}  // namespace

size_t compress_workspace_bytes(const PageConfig& config) {
  if (fits_shared(config, max_shared_bytes())) return 0;
  return tiles_bytes(config, max_blocks());
}

size_t compress_workspace_bound(const Call& largest) {
  if (fits_shared(largest.config(), kLeastSharedBytes)) return 0;
  constexpr int64_t kMaxBlocks = int64_t{kMaxMultiprocessors} * kBlocksPerProcessor;
  return tiles_bytes(largest.config(), std::min(num_tasks(largest), kMaxBlocks));
}

Error launch_compress(const Call& call, const Workspace& workspace, Stream stream) {
  const int64_t tasks = num_tasks(call);
  if (tasks > INT32_MAX) return "batch, seq_len and num_kv_heads are too large for one call";
  return launch_work({call, {nullptr, nullptr}, static_cast<int>(tasks), nullptr}, workspace,
                     stream);
}

Error launch_compress_pages(const PageConfig& config, const void* keys, const void* values,
                            int count, int32_t* pages, Status* status, const Workspace& workspace,
                            Stream stream) {
  Call call{};
  call.attributes.page = config;
  call.attributes.num_heads = call.attributes.num_kv_heads = 1;
  call.layout = page_layout(config);
  call.buffer_type = config.key_bits == 32 ? DataType::kFloat32 : DataType::kFloat16;
  call.page_pool = pages;
  call.status = status;
  return launch_work({call, {keys, values}, 2 * count, nullptr}, workspace, stream);
}

}  // namespace gear::cuda
