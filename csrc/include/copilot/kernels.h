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

enum class Rectifier : int { kSimplex, kLinear };

// Calls body(begin, end, context) for ranges that cover [0, count), on as many threads as the caller likes.
using Split = void (*)(int64_t count, void (*body)(int64_t begin, int64_t end, void* context), void* context);

struct RectifySample {
  Rows logits;  // (N, vocabulary), at least one token
  int64_t vocabulary;
  Rows delta;  // (N, vocabulary), or (N, candidates) when it is sparse
  bool sparse;
  const int64_t* index;  // (N, candidates), adjacent, in [0, vocabulary)
  int64_t candidates;
  // Simplex: (1 - strength) softmax(z) + strength softmax(z + scale delta). Linear: max(p^ + scale delta, 0).
  Rectifier rectifier;
  double strength;
  float scale;
  float temperature;  // 0: greedy
  int64_t top_k;      // 0: all
  double top_p;       // 1: all
  uint64_t seed, offset;
  Split split;      // for the chunks of one row
  int64_t* token;   // (N,)
  float* log_prob;  // (N,)
};

// One set of kernels for each instruction set, the best chosen at run time.
struct CpuKernels {
  const char* name;
  void (*pool_layers)(const PoolLayers& job, int64_t begin, int64_t end);
  void (*rectify_sample)(const RectifySample& job, int64_t begin, int64_t end);
};

extern const CpuKernels kAvx512;
extern const CpuKernels kAvx2;
extern const CpuKernels kPortable;

}  // namespace copilot
