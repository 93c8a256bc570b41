#pragma once

#include "copilot/kernels.h"

namespace copilot {

// The kernels for the best instruction set that this processor has and COPILOT_CPU, if set, allows ("avx2",
// "portable").
const CpuKernels& cpu_kernels();

}  // namespace copilot
