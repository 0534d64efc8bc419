// One call of GearAttention: validate, attend in parallel shares, append.

#include "gear/attention.h"

#include <cfloat>
#include <cstring>
#include <vector>

#include "core/data_errors.h"
#include "cpu/append.h"
#include "cpu/scratch.h"
#include "cpu/validate.h"

namespace gear::cpu {
namespace {

// Pages of a share that shares a sequence's few rows with others. Fixed, so that results do not
// depend on the number of threads.
constexpr int kTokensPerShare = 1024;

Sequence make_sequence(const Call& call, int b, int head) {
  const AttentionArgs& args = call.args;
  const DataType type = args.data_type;
  const int64_t key_offset = call.key_offset(b, 0, head);
  Sequence sequence{};
  sequence.shape = &call.shape;
  sequence.pages = call.page_at(0, head);
  sequence.page_stride = static_cast<int64_t>(call.kv_heads) * call.shape.layout.page_words;
  sequence.page_ids = call.page_ids(b);
  sequence.buffer_keys = call.buffer_at(b, head, 0, 0);
  sequence.buffer_values = call.buffer_at(b, head, 1, 0);
  sequence.data_type = type;
  sequence.query = at(args.query, type, call.query_offset(b, head));
  sequence.keys = at(args.key, type, key_offset);
  sequence.values = at(args.value, type, key_offset);
  sequence.output = at(args.output, type, call.query_offset(b, head));
  sequence.query_stride = static_cast<int64_t>(args.attributes.num_heads) * call.head_dim;
  sequence.key_stride = static_cast<int64_t>(call.kv_heads) * call.head_dim;
  sequence.past = call.past(b);
  sequence.new_tokens = call.added(b);
  sequence.group = call.group;
  sequence.scale = args.attributes.scale;
  sequence.softcap = args.attributes.softcap;
  sequence.sliding_window = args.attributes.sliding_window;
  return sequence;
}

// A share of sequence b and one KV head. `partial` counts the partial results of the call, −1
// where the share covers all tokens of its rows.
struct Task {
  int b;
  int head;
  Share share;
  int partial;
};

// Partial results first .. first + count − 1 of one sequence and head.
struct Merge {
  int b;
  int head;
  int num_rows;
  int first;
  int count;
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<Merge> merges;
  int partials = 0;
};

void plan_by_pages(const Call& call, int b, int head, Plan& plan) {
  const int rows = call.added(b) * call.group;
  const int pages = call.full_pages(b);
  const int step = kTokensPerShare / call.config().chunk;
  const int shares = pages <= step ? 1 : (pages + step - 1) / step;
  if (shares == 1) {
    plan.tasks.push_back({b, head, {0, rows, 0, pages, true}, -1});
    return;
  }
  plan.merges.push_back({b, head, rows, plan.partials, shares});
  for (int i = 0; i < shares; ++i) {
    const int end = i + 1 == shares ? pages : (i + 1) * step;
    plan.tasks.push_back({b, head, {0, rows, i * step, end, i + 1 == shares}, plan.partials++});
  }
}

void plan_by_rows(const Call& call, int b, int head, Plan& plan) {
  const int rows = call.added(b) * call.group;
  for (int first = 0; first < rows; first += kRowBlock) {
    const int count = rows - first < kRowBlock ? rows - first : kRowBlock;
    plan.tasks.push_back({b, head, {first, count, 0, call.full_pages(b), true}, -1});
  }
}

Plan make_plan(const Call& call) {
  Plan plan;
  for (int b = 0; b < call.args.batch; ++b) {
    if (call.added(b) == 0) continue;
    const bool few_rows = call.added(b) * call.group <= kFewRows;
    for (int head = 0; head < call.kv_heads; ++head) {
      (few_rows ? plan_by_pages : plan_by_rows)(call, b, head, plan);
    }
  }
  return plan;
}

// Memory for partial results: per result kFewRows rows of head_dim values, and their two sums.
class Partials {
 public:
  Partials(int count, int head_dim) : head_dim_(head_dim), floats_(thread_floats()) {
    const size_t needed = static_cast<size_t>(count) * stride();
    if (floats_.size() < needed) floats_.resize(needed);
  }

  Partial at(int index) const {
    float* first = floats_.data() + static_cast<size_t>(index) * stride();
    return {first, first + kFewRows, first + 2 * kFewRows};
  }

 private:
  static std::vector<float>& thread_floats() {
    thread_local std::vector<float> floats;
    return floats;
  }

  size_t stride() const { return static_cast<size_t>(kFewRows) * (head_dim_ + 2); }

  int head_dim_;
  std::vector<float>& floats_;
};

void attend(const Call& call, const Kernels& kernels, const ParallelFor& parallel_for) {
  const Plan plan = make_plan(call);
  const Partials partials(plan.partials, call.head_dim);
  run_parallel(parallel_for, static_cast<int>(plan.tasks.size()), [&](int index) {
    const Task& task = plan.tasks[index];
    const Sequence sequence = make_sequence(call, task.b, task.head);
    auto& scratch = thread_scratch<AttendScratch>();
    if (task.partial < 0) {
      kernels.attend(sequence, task.share, scratch);
    } else {
      kernels.attend_partly(sequence, task.share, scratch, partials.at(task.partial));
    }
  });
  // A thousandth of the work: waking threads for it would take longer.
  std::vector<Partial> parts;
  for (const Merge& merge : plan.merges) {
    parts.clear();
    for (int i = 0; i < merge.count; ++i) parts.push_back(partials.at(merge.first + i));
    kernels.merge(make_sequence(call, merge.b, merge.head), merge.num_rows, parts.data(),
                  merge.count);
  }
}

void zero_idle_rows(const Call& call) {
  const AttentionArgs& args = call.args;
  const int64_t width = static_cast<int64_t>(args.attributes.num_heads) * call.head_dim;
  for (int b = 0; b < args.batch; ++b) {
    const int64_t first = (static_cast<int64_t>(b) * args.seq_len + call.added(b)) * width;
    const int64_t count = (args.seq_len - call.added(b)) * width;
    memset(at(args.output, args.data_type, first), 0, count * element_bytes(args.data_type));
  }
}

}  // namespace

Error attention(const AttentionArgs& args, const ParallelFor& parallel_for) {
  Error error = check_attributes(args.attributes);
  if (!error.empty()) return error;
  const Kernels* kernels = selected_kernels(error);
  if (kernels == nullptr) return error;
  const Call call(args);
  error = validate(call, *kernels);
  if (!error.empty()) return error;
  attend(call, *kernels, parallel_for);
  zero_idle_rows(call);
  append(call, *kernels, parallel_for);
  return {};
}

Error compress_page(const PageConfig& config, const void* keys, const void* values, int32_t* page) {
  Error error = check_config(config);
  if (!error.empty()) return error;
  const Kernels* kernels = selected_kernels(error);
  if (kernels == nullptr) return error;
  const PageShape shape(config);
  const int64_t count = static_cast<int64_t>(config.chunk) * config.head_dim;
  for (const void* rows : {keys, values}) {
    const int64_t index = kernels->find_beyond(rows, shape.buffer_type(), count, FLT_MAX);
    if (index < 0) continue;
    return wrong_page_value(static_cast<int>(index / config.head_dim),
                            rows == keys ? "key" : "value");
  }
  kernels->compress_page(shape, keys, values, page, thread_scratch<CompressScratch>());
  return {};
}

}  // namespace gear::cpu
