// Checks of what only the device knows, and the writing of new rows to the residual buffer.
#pragma once

#include "cuda/call.h"

namespace gear::cuda {

// The first fault stays. The claim is made before the rest is written, so that one thread writes.
GEAR_DEVICE void report(Status* status, Fault fault, const Status& details) {
  if (atomicCAS(&status->fault, 0, static_cast<int32_t>(fault)) != 0) return;
  status->layer = details.layer;
  status->sequence = details.sequence;
  status->head = details.head;
  status->token = details.token;
  status->number = details.number;
  status->limit = details.limit;
}

GEAR_DEVICE void report_sequence(const Call& call, Fault fault, int sequence, int number,
                                 int limit) {
  report(call.status, fault, {0, call.attributes.layer, sequence, 0, 0, number, limit});
}

// Whether lengths and slot of a sequence that has new tokens are in range. What is not is reported.
GEAR_DEVICE bool is_valid(const Call& call, int sequence) {
  const int added = call.added(sequence);
  const int past = call.past(sequence);
  const int slot = call.slots[sequence];
  if (added < 0 || added > call.seq_len) {
    report_sequence(call, Fault::kNewLength, sequence, added, call.seq_len);
    return false;
  }
  if (past < 0 || past > INT32_MAX - added) {
    report_sequence(call, Fault::kPastLength, sequence, past, 0);
    return false;
  }
  if (slot < 0 || slot >= call.num_slots) {
    report_sequence(call, Fault::kSlot, sequence, slot, call.num_slots);
    return false;
  }
  const int pages = num_pages(call.config(), past + added);
  if (pages > call.max_pages) {
    report(call.status, Fault::kTooManyPages,
           {0, call.attributes.layer, sequence, 0, past + added, pages, call.max_pages});
    return false;
  }
  return true;
}

// The id of a sequence's page, −1 where it is outside the pool; that is reported.
GEAR_DEVICE int checked_page(const Call& call, int sequence, int index) {
  const int page = call.page_ids(sequence)[index];
  if (page >= 0 && page < call.pool_pages) return page;
  report_sequence(call, Fault::kPage, sequence, page, call.pool_pages);
  return -1;
}

// Whether the buffer can hold four elements.
GEAR_DEVICE bool fits(float4 x, DataType buffer_type) {
  const float limit = buffer_type == DataType::kFloat32 ? 3.402823466e+38f : kHalfMax;
  return fabsf(x.x) <= limit && fabsf(x.y) <= limit && fabsf(x.z) <= limit && fabsf(x.w) <= limit;
}

GEAR_DEVICE float first_misfit(float4 x, DataType buffer_type) {
  const float4 others[3] = {make_float4(x.x, 0, 0, 0), make_float4(x.y, 0, 0, 0),
                            make_float4(x.z, 0, 0, 0)};
  for (const float4& one : others) {
    if (!fits(one, buffer_type)) return one.x;
  }
  return x.w;
}

GEAR_DEVICE void report_value(const Call& call, int sequence, int head, int side, int token,
                              float4 x) {
  report(call.status, side == 0 ? Fault::kKey : Fault::kValue,
         {0, call.attributes.layer, sequence, head, call.past(sequence) + token,
          __float_as_int(first_misfit(x, call.buffer_type)), 0});
}

// New tokens first .. end − 1 into the residual buffer.
GEAR_DEVICE void append_range(const Call& call, int sequence, int head, int side, int first,
                              int end, int thread, int threads) {
  const void* source = side == 0 ? call.key : call.value;
  const int past = call.past(sequence);
  const int quads = call.head_dim() / 4;
  for (int i = thread; i < (end - first) * quads; i += threads) {
    const int token = first + i / quads;
    const int channel = i % quads * 4;
    const float4 x =
        load4(source, call.data_type, call.key_offset(sequence, token, head) + channel);
    if (!fits(x, call.buffer_type)) {
      report_value(call, sequence, head, side, token, x);
      continue;
    }
    const int row = buffer_row(call.config(), past + token);
    store4(call.residual_buffer, call.buffer_type,
           call.buffer_offset(sequence, head, side, row) + channel, x);
  }
}

// Writes the new keys (side 0) or values (side 1) of one KV head to the residual buffer, on
// `threads` threads of which this is number `thread`. No barrier. Of the tokens that share a row
// only the last one is written; values that the buffer cannot hold are reported and not written.
GEAR_DEVICE void append_rows(const Call& call, int sequence, int head, int side, int thread,
                             int threads) {
  const int added = call.added(sequence);
  const int sinks = min(added, max(0, call.config().sinks - call.past(sequence)));
  const int newest = max(sinks, added - call.config().chunk);
  append_range(call, sequence, head, side, 0, sinks, thread, threads);
  append_range(call, sequence, head, side, newest, added, thread, threads);
}

}  // namespace gear::cuda
