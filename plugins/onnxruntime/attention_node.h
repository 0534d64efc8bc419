// One GearAttention node of a graph, on any execution provider.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "attributes.h"
#include "gear/attention.h"
#include "ort_abi.h"
#include "tensors.h"

namespace gear::ort {

// It has no state of its own: the cache comes in and goes out as tensors. `Provider` is where they
// lie and what computes (cpu_provider.h, cuda_provider.h); one is made for each call.
template <typename Provider>
class AttentionNode {
 public:
  AttentionNode(const OrtApi& api, const OrtKernelInfo* info, DataType data_type,
                DataType buffer_type)
      : api_(api), data_type_(data_type), buffer_type_(buffer_type) {
    const Attributes reader(api, info);
    check_layout(reader.text("layout_hash"));  // first: another layout may have other attributes
    for_each_attribute(attributes_, [&](const char* name, auto& member, bool is_required) {
      reader.read(name, member, is_required);
    });
    name_ = std::string(gear_attention::kName) + " layer " + std::to_string(attributes_.layer);
    fail_on(name_, check_attributes(attributes_));
    check_buffer_type();
  }

  const OrtApi& api() const { return api_; }

  void compute(OrtKernelContext* context) const {
    namespace op = gear_attention;
    const PageConfig& page = attributes_.page;
    Axis batch("B"), seq_len("S"), num_pages("num_pages"), slots("slots"), max_pages("max_pages");
    Axis query_width(attributes_.num_heads * page.head_dim);
    Axis key_width(attributes_.num_kv_heads * page.head_dim);
    Axis kv_heads(attributes_.num_kv_heads), page_words(page_layout(page).page_words);
    Axis sides(2), rows(page.sinks + page.chunk), head_dim(page.head_dim);

    Provider provider(api_, context, resources_);
    const Tensors tensors(api_, context, name_);
    AttentionArgs args{};
    args.attributes = attributes_;
    args.data_type = data_type_;
    args.query = tensors.input(op::kQuery, "query", {&batch, &seq_len, &query_width});
    args.key = tensors.input(op::kKey, "key", {&batch, &seq_len, &key_width});
    args.value = tensors.input(op::kValue, "value", {&batch, &seq_len, &key_width});
    args.page_table = ints(tensors, op::kPageTable, "page_table", {&batch, &max_pages});
    args.slots = ints(tensors, op::kSlots, "slots", {&batch});
    args.past_lengths = ints(tensors, op::kPastLengths, "past_lengths", {&batch});
    args.new_lengths = ints(tensors, op::kNewLengths, "new_lengths", {&batch});
    args.page_pool = static_cast<int32_t*>(
        tensors.state(op::kPagePool, op::kPagePoolOut, "page_pool",
                      {&num_pages, &kv_heads, &page_words}, sizeof(int32_t), provider));
    args.residual_buffer = tensors.state(
        op::kResidualBuffer, op::kResidualBufferOut, "residual_buffer",
        {&slots, &kv_heads, &sides, &rows, &head_dim}, size_of(buffer_type_), provider);
    args.output = tensors.output(op::kOutput, {&batch, &seq_len, &query_width});
    args.batch = static_cast<int>(batch.size);
    args.seq_len = static_cast<int>(seq_len.size);
    args.max_pages = static_cast<int>(max_pages.size);
    args.num_pages = static_cast<int>(num_pages.size);
    args.num_slots = static_cast<int>(slots.size);

    fail_on(gear_attention::kName, provider.attention(args));
  }

 private:
  static size_t size_of(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

  static const int32_t* ints(const Tensors& tensors, int index, const char* name, Shape shape) {
    return static_cast<const int32_t*>(tensors.input(index, name, shape));
  }

  static void check_layout(const std::string& exported_for) {
    if (exported_for == kLayoutHash) return;
    throw std::runtime_error(std::string(gear_attention::kName) +
                             ": the graph was exported for page layout " + exported_for +
                             ", this library has " + kLayoutHash +
                             "; export the model again with gear-export");
  }

  void check_buffer_type() const {
    const bool needs_float32 = attributes_.page.key_bits == 32;
    if (needs_float32 == (buffer_type_ == DataType::kFloat32)) return;
    throw std::runtime_error(name_ + ": key_bits " + std::to_string(attributes_.page.key_bits) +
                             " needs a " + (needs_float32 ? "float32" : "float16") +
                             " residual_buffer");
  }

  // The kernels name the layer themselves where it matters.
  static void fail_on(const std::string& who, const Error& error) {
    if (!error.empty()) throw std::runtime_error(who + ": " + error);
  }

  const OrtApi& api_;
  DataType data_type_;
  DataType buffer_type_;
  GearAttentionAttributes attributes_{};
  std::string name_;
  typename Provider::Resources resources_;
};

}  // namespace gear::ort
