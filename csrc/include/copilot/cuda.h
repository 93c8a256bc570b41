// The kernels for NVIDIA GPUs, without torch. Every function launches its work on a stream of the current device and
// returns; pointers are the device's. What a launch refuses raises std::runtime_error.

#pragma once

#include "copilot/kernels.h"

struct CUstream_st;

namespace copilot::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// `layers` is the host's; of every layer `n_rows` rows are there, `count` of them are pooled.
void pool_layers(const PoolLayers& job, int64_t n_rows, int64_t count, Stream stream);

void candidate_loss(const CandidateLoss& job, int64_t n_rows, Stream stream);
void candidate_loss_backward(const CandidateLossBackward& job, int64_t n_rows, Stream stream);

}  // namespace copilot::cuda
