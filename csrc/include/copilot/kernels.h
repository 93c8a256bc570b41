// What the kernels compute, without torch: the CPU's functions here take ranges of rows, a row, or ranges of a row's
// chunks, so that the caller chooses the threads. copilot/ops/reference.py is the specification.

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

enum class Rectifier : int { kSimplex, kLinear, kLogit };

// What rectify and rectify_sample are given.
struct RectifyInputs {
  Rows logits;           // (rows, vocabulary)
  Rows delta;            // (rows, vocabulary) where `index` is null, else (rows, n_candidates); data null: none
  const int64_t* index;  // (rows, n_candidates), adjacent: the tokens of `delta`
  int64_t n_candidates;
  int64_t rows, vocabulary;
  Rectifier rectifier;
  double strength;
};

struct Candidate {
  int64_t token;
  float delta;
};

struct Rectify {
  Rows logits;                  // (N, vocabulary)
  Rows delta;                   // (N, vocabulary); data null: only the candidates have one
  const Candidate* candidates;  // (N, n_candidates), the tokens of a row in range and in order
  int64_t n_candidates;         // 0 with a dense delta
  int64_t vocabulary;
  Rectifier rectifier;
  double strength;
  float* out;  // row i starts i * out_stride floats behind; 0: a row takes the place of the one before it
  int64_t out_stride;
  bool streams;  // `out` is larger than the caches of a core: written past them, it costs a third less traffic
};

// A row is worked on in chunks of fixed size, so that results do not depend on who works on which.
constexpr int64_t kRectifyChunk = 512;
inline int64_t rectify_chunks(int64_t vocabulary) { return (vocabulary + kRectifyChunk - 1) / kRectifyChunk; }
inline int64_t rectify_scratch(int64_t vocabulary) { return 5 * 16 * rectify_chunks(vocabulary); }  // floats of a row

// One pass over the chunks [first, last) of a row.
using RectifyPass = void(const Rectify& job, int64_t row, int64_t first, int64_t last, float* scratch);

struct RectifySample {
  int64_t vocabulary;
  float temperature;  // 0: greedy
  int64_t top_k;      // below `vocabulary`; 0: all
  double top_p;       // 1: all
  uint64_t seed, offset;
  int64_t* token;   // (N,)
  float* log_prob;  // (N,)
};

// Tokens are drawn from a row of log p~ that ends with a whole block: behind the vocabulary it is -infinity.
constexpr int64_t kSampleBlock = 64;
inline int64_t sample_row_size(int64_t vocabulary) {
  return (vocabulary + kSampleBlock - 1) / kSampleBlock * kSampleBlock;
}

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
  void (*candidate_loss)(const CandidateLoss& job, int64_t begin, int64_t end);
  void (*candidate_loss_backward)(const CandidateLossBackward& job, int64_t begin, int64_t end);
  // Each pass needs all chunks of the pass before it; the second one only a dense delta of the linear rectifier.
  RectifyPass* rectify_reduce;
  RectifyPass* rectify_total;
  RectifyPass* rectify_write;
  // Draws from log p~ of a row, which is overwritten.
  void (*sample_row)(const RectifySample& job, int64_t row, float* log_rectified);
  void (*mistake_cross_entropy)(const MistakeCrossEntropy& job, int64_t begin, int64_t end);
  void (*mistake_cross_entropy_backward)(const MistakeCrossEntropyBackward& job, int64_t begin, int64_t end);
};

extern const CpuKernels kAvx512;
extern const CpuKernels kAvx2;
extern const CpuKernels kPortable;

}  // namespace copilot
