// Who does what: the work of a call in equal items, found by every block for itself on the device,
// since lengths are known only there.
//
// A sequence with new tokens has, per KV head and tile of 8 query rows, `splits` items over equal
// runs of its visible pages; the last one also has the exact tokens. Item numbers run over the
// sequences in order; inside one the tile runs fastest, so that blocks that read the same pages run
// side by side.
#pragma once

#include "cuda/append.h"
#include "cuda/attention/page.h"

namespace gear::cuda {

struct AttentionParams {
  Call call;
  float query_factor;  // scale · log2(e)
  float softcap;       // times log2(e); 0 turns it off
  float* log_sum_exp;  // [B, S, num_heads] or null
  float* partials;     // [items of more than one split][partial_floats]
  int32_t* counters;   // [B, H, max_tiles], splits that have arrived; 0 between launches
  int max_tiles;       // tiles of `seq_len` tokens
  int wanted_items;    // that keep the device busy
  int least_pages;     // of a split, where there are more
  int stage_bytes;     // of one page in shared memory; 0 where pages are read where they lie
  StagePlan stage_plan;
  int scratch_bytes;  // of a warp
};

struct Item {
  int sequence;
  int head;  // KV head
  int tile;
  int first_row;
  int split;
  int splits;
  int first_page;
  int end_page;
  int partial;  // number of the first split's partial result
};

// What a sequence asks for.
struct Demand {
  int tiles;
  int first_page;
  int pages;
};

GEAR_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

GEAR_DEVICE Demand demand_of(const Call& call, int sequence) {
  if (sequence >= call.batch || call.added(sequence) == 0 || !is_valid(call, sequence)) {
    return {0, 0, 0};
  }
  const int pages = call.full_pages(sequence);
  const int first = first_visible(call.past(sequence), call.attributes.sliding_window);
  const int behind =
      first > call.config().sinks ? (first - call.config().sinks) / call.config().chunk : 0;
  const int first_page = min(behind, pages);
  return {ceil_div(call.added(sequence) * call.group(), kTileRows), first_page, pages - first_page};
}

GEAR_DEVICE int warp_sum(int x) {
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, distance);
  }
  return x;
}

// Pages of one split, the same for all sequences.
GEAR_DEVICE int pages_per_split(const AttentionParams& params) {
  const Call& call = params.call;
  int pages = 0;
  for (int first = 0; first < call.batch; first += kWarpLanes) {
    const Demand demand = demand_of(call, first + lane_id());
    pages += demand.tiles * demand.pages;
  }
  const int64_t all = static_cast<int64_t>(warp_sum(pages)) * call.kv_heads();
  return max(params.least_pages,
             static_cast<int>((all + params.wanted_items - 1) / params.wanted_items));
}

GEAR_DEVICE Item make_item(const Demand& demand, int sequence, int splits, int first_item,
                           int index) {
  Item item;
  item.sequence = sequence;
  item.tile = index % demand.tiles;
  item.split = index / demand.tiles % splits;
  item.head = index / demand.tiles / splits;
  item.first_row = item.tile * kTileRows;
  item.splits = splits;
  item.first_page = demand.first_page + demand.pages * item.split / splits;
  item.end_page = demand.first_page + demand.pages * (item.split + 1) / splits;
  item.partial = first_item + (item.head * demand.tiles + item.tile) * splits;
  return item;
}

// Item number `index`, every warp for itself. False where there are fewer.
GEAR_DEVICE bool find_item(const AttentionParams& params, int split_pages, int index, Item& item) {
  const Call& call = params.call;
  int before = 0;
  for (int first = 0; first < call.batch; first += kWarpLanes) {
    const Demand mine = demand_of(call, first + lane_id());
    const int splits = max(1, ceil_div(mine.pages, split_pages));
    const int count = mine.tiles * splits * call.kv_heads();
    int end = count;
    for (int distance = 1; distance < kWarpLanes; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, end, distance);
      if (lane_id() >= distance) end += other;
    }
    const unsigned beyond = __ballot_sync(kAllLanes, before + end > index);
    if (beyond != 0) {
      const int lane = __ffs(beyond) - 1;
      const Demand demand = {__shfl_sync(kAllLanes, mine.tiles, lane),
                             __shfl_sync(kAllLanes, mine.first_page, lane),
                             __shfl_sync(kAllLanes, mine.pages, lane)};
      const int start = before + __shfl_sync(kAllLanes, end - count, lane);
      item = make_item(demand, first + lane, __shfl_sync(kAllLanes, splits, lane), start,
                       index - start);
      return true;
    }
    before += __shfl_sync(kAllLanes, end, kWarpLanes - 1);
  }
  return false;
}

}  // namespace gear::cuda
