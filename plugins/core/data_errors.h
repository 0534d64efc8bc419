// What every back end says of wrong data in a call: one line each.
#pragma once

#include "gear/attention.h"

namespace gear {

Error wrong_new_length(int sequence, int length, int seq_len);
Error wrong_past_length(int sequence, int length);
Error wrong_slot(int sequence, int slot, int num_slots);
Error too_many_pages(int sequence, int length, int pages, int max_pages);
Error wrong_page(int sequence, int page, int num_pages);

// `name` is "key" or "value", `token` a position in its sequence.
Error wrong_value(int layer, int head, int sequence, int token, const char* name, float value);

// Row `token` of a page that is compressed alone.
Error wrong_page_value(int token, const char* name);

}  // namespace gear
