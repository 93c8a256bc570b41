// The kernels for NVIDIA GPUs, without torch. Every function launches its work on a stream of the current device and
// returns; pointers are the device's. What a launch refuses raises std::runtime_error.

#pragma once

#include "copilot/kernels.h"

struct CUstream_st;

namespace copilot::cuda {

using Stream = CUstream_st*;  // cudaStream_t

}  // namespace copilot::cuda
