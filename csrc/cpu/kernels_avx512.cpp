// The CPU kernels for processors with AVX-512.

#include "standard.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define COPILOT_TARGET avx512
#define COPILOT_LANES 16
#define COPILOT_TABLE kAvx512
#define COPILOT_NAME "AVX-512"
#include "vector.h"
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
