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

// kLinear is the squared error with f = delta, the others have f = softmax(z + delta) - p^.
enum class Objective : int { kSquared, kLinear, kCrossEntropy, kKl };

struct Candidates {
  Rows top_prob, delta;      // (M, k)
  const int64_t* top_index;  // (M, k), adjacent; null: the whole vocabulary is kept
  const int64_t* target;     // (M,); a place in the row where `top_index` is null
  int64_t k;
  Objective objective;
};

// What the gradient of a row needs besides its `Candidates`; see cpu/candidate_loss.h.
struct CandidateGradient {
  float shift, factor, offset;
};

struct CandidateLoss {
  Candidates candidates;
  const float *target_prob, *rest_mass, *rest_square;  // (M,)
  float* loss;                                         // (M,)
  CandidateGradient* gradient;                         // (M,)
};

struct CandidateLossBackward {
  Candidates candidates;
  const CandidateGradient* gradient;  // (M,)
  const float* upstream;              // (M,), the gradient of the losses
  MutableRows out;                    // (M, k), of delta's dtype
};

// One set of kernels for each instruction set, the best chosen at run time.
struct CpuKernels {
  const char* name;
  void (*pool_layers)(const PoolLayers& job, int64_t begin, int64_t end);
  void (*candidate_loss)(const CandidateLoss& job, int64_t begin, int64_t end);
  void (*candidate_loss_backward)(const CandidateLossBackward& job, int64_t begin, int64_t end);
};

extern const CpuKernels kAvx512;
extern const CpuKernels kAvx2;
extern const CpuKernels kPortable;

}  // namespace copilot
