#include <atomic>
#include <cstring>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"
#include "gear/attention.h"
#include "gear/gear.h"

namespace gear::cpu {
namespace {

// Runs `body`, which returns an Error, and reports that or what it threw.
template <typename Body>
int reported(char* error, size_t error_size, Body&& body) noexcept {
  const auto report = [&](const char* text) {
    if (error_size == 0) return;
    size_t length = 0;
    for (; text[length] != '\0' && length + 1 < error_size; ++length) error[length] = text[length];
    error[length] = '\0';
  };
  try {
    const Error refused = body();
    if (refused.empty()) return 0;
    report(refused.c_str());
  } catch (const std::exception& exception) {
    report(exception.what());
  }
  return 1;
}

PageConfig read_config(const int32_t* members) {
  PageConfig config;
  static_assert(sizeof(config) % sizeof(int32_t) == 0, "PageConfig holds ints only");
  memcpy(&config, members, sizeof(config));
  return config;
}

// Threads for one loop: callers of this interface are tests and tools.
void run_on_threads(void* host, int count, void (*body)(void*, int), void* context) {
  const int num_threads = *static_cast<const int*>(host);
  std::atomic<int> next{0};
  const auto work = [&] {
    for (int index = next++; index < count; index = next++) body(context, index);
  };
  std::vector<std::thread> helpers;
  try {
    for (int i = 1; i < num_threads && i < count; ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that there are do the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}

AttentionArgs read_call(const GearAttentionCall& call) {
  AttentionArgs args{};
  args.attributes.page = read_config(call.page_config);
  args.attributes.num_heads = call.num_heads;
  args.attributes.num_kv_heads = call.num_kv_heads;
  args.attributes.layer = call.layer;
  args.attributes.scale = call.scale;
  args.attributes.softcap = call.softcap;
  args.attributes.sliding_window = call.sliding_window;
  args.data_type = call.is_float16 ? DataType::kFloat16 : DataType::kFloat32;
  args.batch = call.batch;
  args.seq_len = call.seq_len;
  args.max_pages = call.max_pages;
  args.num_pages = call.num_pages;
  args.num_slots = call.num_slots;
  args.query = call.query;
  args.key = call.key;
  args.value = call.value;
  args.page_pool = call.page_pool;
  args.residual_buffer = call.residual_buffer;
  args.page_table = call.page_table;
  args.slots = call.slots;
  args.past_lengths = call.past_lengths;
  args.new_lengths = call.new_lengths;
  args.output = call.output;
  return args;
}

std::string build_info() {
  std::string sets;
  for (const std::string& name : available_instruction_sets()) {
    sets += (sets.empty() ? "\"" : ", \"") + name + "\"";
  }
  return std::string("{\"version\": \"") + GEAR_VERSION + "\", \"layout_hash\": \"" + kLayoutHash +
         "\", \"compiler\": \"" + __VERSION__ + "\", \"instruction_sets\": [" + sets + "]}";
}

}  // namespace
}  // namespace gear::cpu

extern "C" {

const char* gear_layout_hash(void) { return gear::kLayoutHash; }

const char* gear_build_info(void) {
  static const std::string info = gear::cpu::build_info();
  return info.c_str();
}

const char* gear_instruction_set(void) { return gear::cpu::instruction_set(); }

int gear_use_instruction_set(const char* name, char* error, size_t error_size) {
  return gear::cpu::reported(error, error_size,
                             [&] { return gear::cpu::use_instruction_set(name); });
}

int gear_compress_page(const int32_t* page_config, const void* keys, const void* values,
                       int32_t* page, char* error, size_t error_size) {
  return gear::cpu::reported(error, error_size, [&] {
    return gear::cpu::compress_page(gear::cpu::read_config(page_config), keys, values, page);
  });
}

int gear_attention(const GearAttentionCall* call, char* error, size_t error_size) {
  return gear::cpu::reported(error, error_size, [&] {
    int num_threads = call->num_threads;
    const gear::ParallelFor parallel_for{&num_threads, num_threads, &gear::cpu::run_on_threads};
    return gear::cpu::attention(gear::cpu::read_call(*call), parallel_for);
  });
}

}  // extern "C"
