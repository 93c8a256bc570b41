// What the kernels compute, without torch: the CPU's functions here take ranges of rows, so that the caller chooses the
// threads. copilot/ops/reference.py is the specification.

#pragma once

#include <cstdint>

namespace copilot {

enum class DType : int { kFloat32, kBFloat16, kFloat16 };

// Rows of adjacent elements; row i starts i * stride elements behind `data`.
struct Rows {
  const void* data;
  int64_t stride;
  DType dtype;
};

struct MutableRows {
  void* data;
  int64_t stride;
  DType dtype;
};

enum class Pooling : int { kMean, kMax, kSum };

struct PoolLayers {
  const Rows* layers;
  int64_t n_layers;
  const int64_t* rows;  // which row of every layer becomes row i of `out`; null: row i itself
  int64_t width;
  Pooling pooling;
  float* out;  // (M, width), adjacent
};

struct MistakeCrossEntropy {
  Rows logits;
  int64_t vocabulary;
  const int64_t* labels;  // (N,), in [0, vocabulary), or ignore_index in rows that are to be zeros
  int64_t ignore_index;
  int64_t k;                 // how many tokens are kept; 0: all, without top_index
  float* loss;               // (N,)
  float* largest_and_total;  // (N, 2): the largest logit m, and the sum of exp(z - m)
  int64_t* top_index;        // (N, k)
  float* top_prob;           // (N, k or vocabulary)
  float* target_prob;        // (N,)
  float* rest_mass;          // (N,)
  float* rest_square;        // (N,)
};

struct MistakeCrossEntropyBackward {
  const float* grad;  // (N,)
  Rows logits;
  int64_t vocabulary;
  const int64_t* labels;
  int64_t ignore_index;
  const float* largest_and_total;
  MutableRows grad_logits;  // may be the logits themselves
};

// One set of kernels for each instruction set, the best chosen at run time.
struct CpuKernels {
  const char* name;
  void (*pool_layers)(const PoolLayers& job, int64_t begin, int64_t end);
  void (*mistake_cross_entropy)(const MistakeCrossEntropy& job, int64_t begin, int64_t end);
  void (*mistake_cross_entropy_backward)(const MistakeCrossEntropyBackward& job, int64_t begin, int64_t end);
};

extern const CpuKernels kAvx512;
extern const CpuKernels kAvx2;
extern const CpuKernels kPortable;

}  // namespace copilot
