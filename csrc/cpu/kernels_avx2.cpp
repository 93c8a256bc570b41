// The CPU kernels for processors with AVX2.

#include "standard.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define COPILOT_TARGET avx2
#define COPILOT_LANES 8
#define COPILOT_TABLE kAvx2
#define COPILOT_NAME "AVX2"
#include "vector.h"
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
