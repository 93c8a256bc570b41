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

// With scratch memory of that many bytes, aligned to 8 of them.
int64_t mistake_cross_entropy_scratch(int64_t rows, int64_t vocabulary, int64_t k, DType dtype);
void mistake_cross_entropy(const MistakeCrossEntropy& job, int64_t rows, void* scratch, Stream stream);
void mistake_cross_entropy_backward(const MistakeCrossEntropyBackward& job, int64_t rows, Stream stream);

// Log p~ of every row; candidates are float32 and adjacent, in any order. `out` is (rows, vocabulary), adjacent, and
// `scratch` has rectify_scratch() bytes, which may be none.
void rectify(const RectifyInputs& inputs, float* out, void* scratch, Stream stream);
int64_t rectify_scratch(int64_t rows, int64_t vocabulary);

struct Sampling {
  float temperature;             // 0: greedy
  int64_t top_k;                 // below the vocabulary; 0: all
  double top_p;                  // 1: all
  const int64_t *seed, *offset;  // one of each
  int64_t* token;                // (rows,)
  float* log_prob;               // (rows,)
};

// A token of every row; `inputs` as above, `scratch` has rectify_sample_scratch() bytes.
void rectify_sample(const RectifyInputs& inputs, const Sampling& sampling, void* scratch, Stream stream);
int64_t rectify_sample_scratch(int64_t rows, int64_t vocabulary);

}  // namespace copilot::cuda
