#include "core/data_errors.h"

#include <cmath>

namespace gear {
namespace {

std::string text(int number) { return std::to_string(number); }

std::string of_sequence(int sequence) { return " of sequence " + text(sequence); }

}  // namespace

Error wrong_new_length(int sequence, int length, int seq_len) {
  return "new_lengths" + of_sequence(sequence) + " is " + text(length) + ", must be in 0.." +
         text(seq_len);
}

Error wrong_past_length(int sequence, int length) {
  return "past_lengths" + of_sequence(sequence) + " is " + text(length);
}

Error wrong_slot(int sequence, int slot, int num_slots) {
  return "slot " + text(slot) + of_sequence(sequence) + " is outside the residual buffer's " +
         text(num_slots);
}

Error too_many_pages(int sequence, int length, int pages, int max_pages) {
  return "length " + text(length) + of_sequence(sequence) + " needs " + text(pages) +
         " pages, page_table has " + text(max_pages);
}

Error wrong_page(int sequence, int page, int num_pages) {
  return "page " + text(page) + of_sequence(sequence) + " is outside the pool's " + text(num_pages);
}

Error wrong_value(int layer, int head, int sequence, int token, const char* name, float value) {
  return "layer " + text(layer) + ", KV head " + text(head) + ", token " + text(token) +
         of_sequence(sequence) + ": " + name + " has the value " + std::to_string(value) +
         (std::isfinite(value) ? ", which is beyond FP16" : ", which is not finite");
}

Error wrong_page_value(int token, const char* name) {
  return std::string(name) + " of token " + text(token) + " is not finite";
}

}  // namespace gear
