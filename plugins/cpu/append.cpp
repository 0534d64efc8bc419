#include "cpu/append.h"

#include <cstring>
#include <vector>

#include "cpu/scratch.h"

namespace gear::cpu {
namespace {

struct FullPage {
  int sequence;
  int index;  // in the sequence's row of the page table
};

// Rows [chunk, head_dim] of a page, in the buffer's type: old ones from the buffer, new ones
// rounded as the buffer would round them.
void gather_rows(const Call& call, const Kernels& kernels, const FullPage& page, int head, int side,
                 char* rows) {
  const DataType buffer_type = call.shape.buffer_type();
  const DataType type = call.args.data_type;
  const void* source = side == 0 ? call.args.key : call.args.value;
  const int past = call.past(page.sequence);
  const int start = page_start(call.config(), page.index);
  const int64_t row_bytes = call.head_dim * element_bytes(buffer_type);
  for (int t = 0; t < call.config().chunk; ++t) {
    const int position = start + t;
    char* row = rows + t * row_bytes;
    if (position < past) {
      const int buffered = buffer_row(call.config(), position);
      memcpy(row, call.buffer_at(page.sequence, head, side, buffered), row_bytes);
    } else {
      const int64_t offset = call.key_offset(page.sequence, position - past, head);
      kernels.convert(at(source, type, offset), type, row, buffer_type, call.head_dim);
    }
  }
}

void compress(const Call& call, const Kernels& kernels, const FullPage& page, int head) {
  auto& gathered = thread_scratch<GatheredRows>();
  gather_rows(call, kernels, page, head, 0, gathered.keys);
  gather_rows(call, kernels, page, head, 1, gathered.values);
  kernels.compress_page(call.shape, gathered.keys, gathered.values,
                        call.page_at(call.page_ids(page.sequence)[page.index], head),
                        thread_scratch<CompressScratch>());
}

// Of the tokens that share a buffer row only the last one is written.
void write_buffer(const Call& call, const Kernels& kernels, int sequence, int head) {
  const PageConfig& config = call.config();
  const DataType type = call.args.data_type;
  const int past = call.past(sequence);
  const int added = call.added(sequence);
  for (int token = 0; token < added; ++token) {
    const bool stays = past + token < config.sinks || token + config.chunk >= added;
    if (!stays) continue;
    const int row = buffer_row(config, past + token);
    const int64_t offset = call.key_offset(sequence, token, head);
    for (int side = 0; side < 2; ++side) {
      const void* source = side == 0 ? call.args.key : call.args.value;
      kernels.convert(at(source, type, offset), type, call.buffer_at(sequence, head, side, row),
                      call.shape.buffer_type(), call.head_dim);
    }
  }
}

}  // namespace

void append(const Call& call, const Kernels& kernels, const ParallelFor& parallel_for) {
  std::vector<FullPage> full;
  for (int b = 0; b < call.args.batch; ++b) {
    for (int i = call.full_pages(b); i < call.full_pages_after(b); ++i) full.push_back({b, i});
  }
  const int heads = call.kv_heads;
  run_parallel(parallel_for, static_cast<int>(full.size()) * heads,
               [&](int task) { compress(call, kernels, full[task / heads], task % heads); });
  for (int b = 0; b < call.args.batch; ++b) {
    for (int head = 0; head < heads; ++head) write_buffer(call, kernels, b, head);
  }
}

}  // namespace gear::cpu
