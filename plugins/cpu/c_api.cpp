#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "core/c_interface.h"
#include "cpu/dispatch.h"

namespace gear::cpu {
namespace {

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
  return gear::reported(error, error_size, [&] { return gear::cpu::use_instruction_set(name); });
}

int gear_compress_page(const int32_t* page_config, const void* keys, const void* values,
                       int32_t* page, char* error, size_t error_size) {
  return gear::reported(error, error_size, [&] {
    return gear::cpu::compress_page(gear::read_config(page_config), keys, values, page);
  });
}

int gear_attention(const GearAttentionCall* call, char* error, size_t error_size) {
  return gear::reported(error, error_size, [&] {
    if (gear::Error refused = gear::check_data_type(*call); !refused.empty()) return refused;
    int num_threads = call->num_threads;
    const gear::ParallelFor parallel_for{&num_threads, num_threads, &gear::cpu::run_on_threads};
    return gear::cpu::attention(gear::read_call(*call), parallel_for);
  });
}

}  // extern "C"
