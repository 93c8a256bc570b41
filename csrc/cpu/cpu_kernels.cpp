// Chooses the CPU kernels at run time.

#include "cpu_kernels.h"

#include <cstdlib>
#include <cstring>

namespace copilot {

namespace {

const CpuKernels& choose() {
#if defined(__x86_64__)
  const char* wish = std::getenv("COPILOT_CPU");
  const bool portable = wish != nullptr && std::strcmp(wish, "portable") == 0;
  const bool at_most_avx2 = wish != nullptr && std::strcmp(wish, "avx2") == 0;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !at_most_avx2 && !portable) return kAvx512;
  if (has_avx2 && !portable) return kAvx2;
#endif
  return kPortable;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

}  // namespace copilot
