#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>

#ifdef GEAR_AARCH64_LINUX
#include <sys/auxv.h>
#endif

#include "cpu/kernels.h"

namespace gear::cpu {

namespace scalar {
extern const Kernels kKernels;
}
#ifdef GEAR_X86_64
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx_vnni {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_vnni {
extern const Kernels kKernels;
}
#endif
#ifdef GEAR_AARCH64_LINUX
namespace neon_dotprod {
extern const Kernels kKernels;
}
namespace neon_i8mm {
extern const Kernels kKernels;
}
#endif

namespace {

struct Candidate {
  const Kernels* kernels;
  bool is_supported;
};

// From the most portable to the fastest.
std::vector<Candidate> candidates() {
  std::vector<Candidate> all = {{&scalar::kKernels, true}};
#ifdef GEAR_X86_64
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  all.push_back({&avx2::kKernels, has_avx2});
  all.push_back({&avx_vnni::kKernels, has_avx2 && __builtin_cpu_supports("avxvnni")});
  all.push_back({&avx512::kKernels, has_avx512});
  all.push_back({&avx512_vnni::kKernels, has_avx512 && __builtin_cpu_supports("avx512vnni")});
#endif
#ifdef GEAR_AARCH64_LINUX
  const bool has_dotprod = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  const bool has_i8mm = has_dotprod && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
  all.push_back({&neon_dotprod::kKernels, has_dotprod});
  all.push_back({&neon_i8mm::kKernels, has_i8mm});
#endif
  return all;
}

const Kernels* find(const std::string& name, Error& error) {
  std::string names;
  for (const Candidate& candidate : candidates()) {
    if (name == candidate.kernels->name) {
      if (candidate.is_supported) return candidate.kernels;
      error = "this machine cannot run the instruction set '" + name + "'";
      return nullptr;
    }
    names += (names.empty() ? "" : ", ") + std::string(candidate.kernels->name);
  }
  error = "unknown instruction set '" + name + "', choose one of: " + names;
  return nullptr;
}

// What GEAR_CPU and the machine decide, once per process.
struct Choice {
  Choice() {
    const char* wanted = std::getenv("GEAR_CPU");
    if (wanted == nullptr || *wanted == '\0') {
      kernels = find(available_instruction_sets().back(), error);
    } else {
      kernels = find(wanted, error);
      if (!error.empty()) error = "GEAR_CPU: " + error;
    }
  }

  const Kernels* kernels;
  Error error;
};

std::atomic<const Kernels*> override_kernels{nullptr};

}  // namespace

std::vector<std::string> available_instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) {
    if (candidate.is_supported) names.push_back(candidate.kernels->name);
  }
  return names;
}

Error use_instruction_set(const std::string& name) {
  Error error;
  const Kernels* kernels = find(name, error);
  if (error.empty()) override_kernels = kernels;
  return error;
}

const Kernels* selected_kernels(Error& error) {
  if (const Kernels* kernels = override_kernels) return kernels;
  static const Choice choice;
  error = choice.error;
  return choice.kernels;
}

const char* instruction_set() {
  Error error;
  const Kernels* kernels = selected_kernels(error);
  return kernels == nullptr ? "" : kernels->name;
}

}  // namespace gear::cpu
