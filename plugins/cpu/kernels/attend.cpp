// Attention of one share of a sequence: query rows over pages, then over exact tokens.
//
//   R rows = token · G + head, D = head_dim, C = chunk. Scores [R, C], acc [R, D].
//   Pages are met in their rotated spaces (q is rotated once, acc is rotated back once).

#include "cpu/kernels/product.h"
#include "cpu/kernels/softmax.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/tile.h"

namespace gear::cpu::GEAR_ISA {
namespace {

class Attention {
 public:
  Attention(const Sequence& sequence, const Share& share, AttendScratch& scratch)
      : sequence_(sequence),
        share_(share),
        scratch_(scratch),
        config_(sequence.shape->config),
        state_{{}, {}, scratch.acc, config_.head_dim} {}

  void run() {
    load_queries();
    reset(state_, share_.num_rows);
    if (share_.first_page < share_.end_page) attend_pages();
    if (share_.with_exact) attend_exact_tokens();
  }

  void write_output() const {
    for (int row = 0; row < share_.num_rows; ++row) {
      float* acc = state_.acc + row * config_.head_dim;
      scale_row(acc, config_.head_dim, 1.0f / reduce_add(state_.sums[row]));
      store_row(sequence_, share_.first_row + row, acc);
    }
  }

  void write_partial(const Partial& partial) const {
    for (int row = 0; row < share_.num_rows; ++row) {
      partial.largest[row] = state_.largest[row];
      partial.sum[row] = reduce_add(state_.sums[row]);
    }
    memcpy(partial.acc, state_.acc, sizeof(float) * share_.num_rows * config_.head_dim);
  }

 private:
  int position(int row) const {
    return sequence_.past + (share_.first_row + row) / sequence_.group;
  }

  int first_seen(int row) const { return first_visible(position(row), sequence_.sliding_window); }

  void load_queries() {
    for (int row = 0; row < share_.num_rows; ++row) {
      float* target = scratch_.query + row * config_.head_dim;
      const int64_t source = row_offset(sequence_, share_.first_row + row);
      for (int d = 0; d < config_.head_dim; d += kWidth) {
        store(target + d,
              load_any(sequence_.query, sequence_.data_type, source + d) * sequence_.scale);
      }
    }
  }

  const float* page_queries() {
    if (!config_.rotate_keys) return scratch_.query;
    const int count = share_.num_rows * config_.head_dim;
    memcpy(scratch_.rotated_query, scratch_.query, sizeof(float) * count);
    rotate_rows(scratch_.rotated_query, share_.num_rows, config_.head_dim);
    return scratch_.rotated_query;
  }

  void attend_pages() {
    const Side key_side = make_side(*sequence_.shape, true);
    const Side value_side = make_side(*sequence_.shape, false);
    const float* query = page_queries();
    const int most = is_direct(key_side) && is_direct(value_side) ? kPageBatch : 1;
    int i = share_.first_page;
    while (i < share_.end_page && is_before(config_, i, first_seen(0))) ++i;
    for (; i < share_.end_page; i += most) {
      const PageBatch batch = batch_at(i, most);
      const int tokens = batch.count * config_.chunk;
      for (int t = 0; t < tokens; ++t) positions_[t] = page_start(config_, i) + t;
      for (int page = 0; page < batch.count; ++page) prefetch(batch.next[page]);
      key_product(key_side, batch, query);
      weigh(tokens, tokens);
      value_product(value_side, batch);
    }
    if (config_.rotate_values) rotate_rows(state_.acc, share_.num_rows, config_.head_dim);
  }

  // Up to `most` pages of the share, and those that come after them.
  PageBatch batch_at(int first, int most) const {
    PageBatch batch{};
    for (int i = first; i < share_.end_page && batch.count < most; ++i, ++batch.count) {
      batch.pages[batch.count] = page_at(i);
      batch.next[batch.count] = page_at(i + most < share_.end_page ? i + most : i);
    }
    return batch;
  }

  // Sinks, the buffer's other rows and the new tokens, in the order of their positions. Exact
  // token e is the sequence's token e, or where pages lie between, that many tokens further on.
  void attend_exact_tokens() {
    const int sinks = num_sinks(config_, sequence_.past);
    const int paged = num_pages(config_, sequence_.past) * config_.chunk;
    const int end = position(share_.num_rows - 1) + 1 - paged;
    const int first = first_seen(0);
    for (int e = 0; e < end; e += config_.chunk) {
      const int count = end - e < config_.chunk ? end - e : config_.chunk;
      for (int t = 0; t < count; ++t) positions_[t] = e + t < sinks ? e + t : e + t + paged;
      if (positions_[count - 1] < first) continue;
      const int width = (count + 15) / 16 * 16;
      for (int t = count; t < width; ++t) positions_[t] = INT32_MAX;
      load_exact_tokens(count, width);
      attend_tile(scratch_.query, count, width);
    }
  }

  void load_exact_tokens(int count, int width) {
    const int head_dim = config_.head_dim;
    const DataType buffer_type = sequence_.shape->buffer_type();
    for (int t = 0; t < count; ++t) {
      float* key = scratch_.rows + t * head_dim;
      float* value = scratch_.values + t * head_dim;
      const bool is_new = positions_[t] >= sequence_.past;
      const DataType type = is_new ? sequence_.data_type : buffer_type;
      const int64_t offset =
          is_new ? (positions_[t] - sequence_.past) * sequence_.key_stride
                 : static_cast<int64_t>(buffer_row(config_, positions_[t])) * head_dim;
      const void* keys = is_new ? sequence_.keys : sequence_.buffer_keys;
      const void* values = is_new ? sequence_.values : sequence_.buffer_values;
      convert(element_at(keys, type, offset), type, key, DataType::kFloat32, head_dim);
      convert(element_at(values, type, offset), type, value, DataType::kFloat32, head_dim);
    }
    memset(scratch_.rows + count * head_dim, 0, sizeof(float) * (width - count) * head_dim);
    transpose_matrix({scratch_.rows, head_dim}, {scratch_.keys, config_.chunk}, width, head_dim);
  }

  const int32_t* page_at(int index) const {
    return sequence_.pages + sequence_.page_ids[index] * sequence_.page_stride;
  }

  // Asks for what follows the codes, whose products ask for theirs.
  void prefetch(const int32_t* page) const {
    const PageLayout& layout = sequence_.shape->layout;
    for (int word = layout.key.scales; word < layout.page_words; word += kLineWords) {
      __builtin_prefetch(page + word, 0, 2);
    }
  }

  // scores = query · K.
  void key_product(const Side& side, const PageBatch& batch, const float* query) {
    clear_scores();
    if (is_direct(side)) {
      multiply_side(side, batch, {{query, config_.head_dim}, 0},
                    {{scratch_.scores, kScoreStride}, config_.chunk}, share_.num_rows,
                    product_scratch());
    } else {
      decode_side(side, batch.pages[0], scratch_, scratch_.keys);
      multiply_keys(query, config_.chunk);
    }
  }

  // acc += weights · V.
  void value_product(const Side& side, const PageBatch& batch) {
    if (is_direct(side)) {
      multiply_side(side, batch, {{scratch_.scores, kScoreStride}, config_.chunk},
                    {{state_.acc, config_.head_dim}, 0}, share_.num_rows, product_scratch());
    } else {
      decode_side(side, batch.pages[0], scratch_, scratch_.values);
      multiply_values(config_.chunk);
    }
  }

  bool is_direct(const Side& side) const {
    return side.at.quantized && sequence_.new_tokens * sequence_.group <= kFewRows;
  }

  ProductScratch product_scratch() {
    return {scratch_.scales, scratch_.mins, scratch_.folded, scratch_.folded_bytes};
  }

  // Attends to the first `count` tokens of the tiles; `width` is that number padded to 16.
  void attend_tile(const float* query, int count, int width) {
    clear_scores();
    multiply_keys(query, width);
    weigh(count, width);
    multiply_values(count);
  }

  void clear_scores() {
    for (int row = 0; row < share_.num_rows; ++row) {
      memset(scratch_.scores + row * kScoreStride, 0, sizeof(float) * kPageBatch * config_.chunk);
    }
  }

  void multiply_keys(const float* query, int width) {
    multiply({query, config_.head_dim}, {scratch_.keys, config_.chunk},
             {scratch_.scores, kScoreStride}, share_.num_rows, config_.head_dim, width);
  }

  void multiply_values(int count) {
    multiply({scratch_.scores, kScoreStride}, {scratch_.values, config_.head_dim},
             {state_.acc, config_.head_dim}, share_.num_rows, count, config_.head_dim);
  }

  // Scores to softmax weights.
  void weigh(int count, int width) {
    const bool all_visible = count == width && positions_[count - 1] <= position(0) &&
                             positions_[0] >= first_seen(share_.num_rows - 1);
    for (int row = 0; row < share_.num_rows; ++row) {
      float* scores = scratch_.scores + row * kScoreStride;
      if (sequence_.softcap > 0.0f) cap(scores, width);
      if (!all_visible) mask(scores, row, width);
    }
    add_scores(state_, share_.num_rows, scratch_.scores, kScoreStride, width);
  }

  void cap(float* scores, int width) const {
    for (int i = 0; i < width; i += kWidth) {
      store(scores + i,
            sequence_.softcap * tanh(load_floats(scores + i) * (1.0f / sequence_.softcap)));
    }
  }

  void mask(float* scores, int row, int width) const {
    const int first = first_seen(row);
    const int last = position(row);
    for (int i = 0; i < width; i += kWidth) {
      const Ints token = load<Ints>(positions_ + i);
      const Ints is_visible = (token >= first) & (token <= last);
      store(scores + i, is_visible ? load_floats(scores + i) : broadcast(-INFINITY));
    }
  }

  const Sequence& sequence_;
  const Share& share_;
  AttendScratch& scratch_;
  const PageConfig& config_;
  SoftmaxState state_;
  int32_t positions_[kPageBatch * kMaxChunk];
};

}  // namespace

void attend(const Sequence& sequence, const Share& share, AttendScratch& scratch) {
  Attention attention(sequence, share, scratch);
  attention.run();
  attention.write_output();
}

void attend_partly(const Sequence& sequence, const Share& share, AttendScratch& scratch,
                   const Partial& partial) {
  Attention attention(sequence, share, scratch);
  attention.run();
  attention.write_partial(partial);
}

}  // namespace gear::cpu::GEAR_ISA
