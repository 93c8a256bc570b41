// log p~ of Eq. 8 by blocks that hold slices of rows: all of rectify but its kernels, which rectify_sample shares. The
// mathematics are those of csrc/cpu/rectify.h; z, w and p~ mean what they mean there.
//
// A row is split into slices of adjacent tokens, of a length that follows from V alone, and a block holds one slice of z
// as floats in shared memory. Its thread t owns the packs t, t + threads, ... of four elements, whatever the dtype and
// the alignment, so that a sum has one order. w is never held beside z: a dense delta is added where it is needed, and
// candidates take their places in the slice for w's sums, which only the threads compute that own such a place; the
// sums of all others are those of z. Without any correction the sums of w are therefore those of z, to the last bit.
//
// The blocks of a row exchange their sums within a cluster where the GPU has clusters and the slices fit; else through
// memory, one launch after the other (rectify_sums).

#pragma once

#include "device.cuh"

namespace copilot::cuda {

// ---- The split of a row ----

struct SliceSplit {
  int slices;    // of a row
  int length;    // of a slice in tokens, the last one's is shorter; a multiple of 64
  bool cluster;  // the blocks of a row run as one cluster, or there is one block
};

constexpr unsigned kSliceThreads = 512;  // of a block at most
constexpr int64_t kSliceLength = 8192;   // what a row is split for, into up to kMostSlices
constexpr int64_t kMostSlices = 8;       // more only where the slices would not fit

// Shared memory that a kernel has for other things than the slice.
constexpr size_t kSharedBesideSlice = 16 * 1024;

// Follows from the vocabulary and the GPU alone, as results do.
inline SliceSplit split_of(int64_t vocabulary) {
  const Device device = current_device();
  const int64_t longest = (device.shared_per_block - kSharedBesideSlice) / sizeof(float) / 64 * 64;
  int64_t slices = 1;
  while ((slices < kMostSlices && vocabulary > slices * kSliceLength) || vocabulary > slices * longest) slices *= 2;
  const int64_t length = ((vocabulary + slices - 1) / slices + 63) / 64 * 64;
  return {static_cast<int>(slices), static_cast<int>(length),
          slices == 1 || (slices <= kMostSlices && device.capability >= 90)};
}

// ---- The job ----

// The logarithm of the sum of exp(x) is max + log(sum).
struct SumExp {
  float max, sum;
};

struct SliceSums {
  SumExp pilot, corrected;  // of z, which the logit fusion does not need, and of w
};

// What kernels are given.
struct Rectification {
  RectifyInputs inputs;
  SliceSplit split;
  unsigned threads;       // of a block
  bool dense;             // all tokens have a delta
  bool holds_delta;       // in shared memory, behind the slice of z
  float strength, rest;   // lambda, 1 - lambda
  SliceSums* slice_sums;  // (rows, slices), where there is no cluster
  float* slice_masses;    // (rows, slices), likewise: of the linear p~'s corrected entries, with a dense delta
};

// `scratch` has rectify_scratch() bytes.
inline Rectification rectification(const RectifyInputs& inputs, void* scratch) {
  Rectification job{};
  job.inputs = inputs;
  job.split = split_of(inputs.vocabulary);
  const size_t slice_bytes = job.split.length * sizeof(float);
  job.threads = std::min<unsigned>(kSliceThreads, (job.split.length / 16 + 31) / 32 * 32 + (job.split.length == 0) * 32);
  job.dense = inputs.index == nullptr && inputs.delta.data != nullptr;
  // Only if two blocks fit on a multiprocessor all the same; else the second reading of delta comes from L2.
  job.holds_delta = job.dense && 2 * (2 * slice_bytes + kSharedBesideSlice) <= current_device().shared_per_block;
  job.strength = static_cast<float>(inputs.strength);
  job.rest = static_cast<float>(1.0 - inputs.strength);
  job.slice_sums = static_cast<SliceSums*>(scratch);
  job.slice_masses = reinterpret_cast<float*>(job.slice_sums + inputs.rows * job.split.slices);
  return job;
}

// Bytes of shared memory that RowSlice takes, from the start of dynamic_shared() on.
inline size_t slice_shared(const Rectification& job) {
  return (1 + job.holds_delta) * job.split.length * sizeof(float);
}

// A block for each slice. A kernel that needs more memory adds it to `shared`.
inline Launch slice_launch(const Rectification& job, Stream stream) {
  return {.blocks = job.inputs.rows * job.split.slices,
          .threads = job.threads,
          .stream = stream,
          .cluster = job.split.cluster ? static_cast<unsigned>(job.split.slices) : 1,
          .shared = slice_shared(job)};
}

// What has to run before a kernel that calls RowSlice::solve<Exchange::kMemory>(); in rectify.cu.
void rectify_sums(const Rectification& job, Stream stream);

// ---- Sums of exponentials ----

constexpr SumExp kNoSum{-kInfinity, 0.0f};
constexpr SliceSums kNoSums{kNoSum, kNoSum};

__device__ __forceinline__ SumExp merge(SumExp a, SumExp b) {
  const float factor = a.max == b.max ? 1.0f : expf(-fabsf(a.max - b.max));
  return a.max >= b.max ? SumExp{a.max, fmaf(b.sum, factor, a.sum)} : SumExp{b.max, fmaf(a.sum, factor, b.sum)};
}

struct MergeSums {
  __device__ __forceinline__ SliceSums operator()(const SliceSums& a, const SliceSums& b) const {
    return {merge(a.pilot, b.pilot), merge(a.corrected, b.corrected)};
  }
};

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// NaN if any entry is, or all are -infinity.
struct LogSum {
  float max, log_sum;
};

__device__ __forceinline__ LogSum logarithm(SumExp of) { return {of.max, logf(of.sum)}; }

// ---- Rectified entries ----

// What all entries of a row share. An entry without correction becomes z - max - shift.
struct Solution {
  LogSum pilot, corrected;
  float max, shift;
  // Of the linear p~: the logarithm of its sum, and whether that is 0, so that p^ stands for it.
  float log_total;
  bool all_zero;
};

// exp(x) - 1 for -1 <= x <= 0, by its Taylor series.
__device__ __forceinline__ float expm1_near(float x) {
  float p = 1.0f / 3628800;
  p = fmaf(p, x, 1.0f / 362880);
  p = fmaf(p, x, 1.0f / 40320);
  p = fmaf(p, x, 1.0f / 5040);
  p = fmaf(p, x, 1.0f / 720);
  p = fmaf(p, x, 1.0f / 120);
  p = fmaf(p, x, 1.0f / 24);
  p = fmaf(p, x, 1.0f / 6);
  p = fmaf(p, x, 0.5f);
  return fmaf(p, x * x, x);
}

// log(1 - weight + weight exp(difference)) for difference <= 0; exactly 0 at 0.
__device__ __forceinline__ float log_mean(float difference, float weight, float one_minus_weight) {
  const bool near = difference > -1.0f;
  const float x = weight * expm1_near(fmaxf(difference, -1.0f));
  const float mean = near ? x + 1.0f : fmaf(weight, expf(difference), one_minus_weight);
  // What the rounding of 1 + x has lost, as log1p returns it.
  return logf(mean) + (near ? __fdividef(x - (mean - 1.0f), mean) : 0.0f);
}

// log p~ of the simplex mixture, the larger of p and q factored out.
__device__ __forceinline__ float mix(const Rectification& job, float log_p, float log_q, float difference) {
  const bool q_is_larger = difference > 0.0f;
  const float mean = log_mean(-fabsf(difference), q_is_larger ? job.rest : job.strength,
                              q_is_larger ? job.strength : job.rest);
  return (q_is_larger ? log_q : log_p) + mean;
}

// w of z and delta.
__device__ __forceinline__ float corrected(const Rectification& job, float z, float delta) {
  switch (job.inputs.rectifier) {
    case Rectifier::kLogit:
      return fmaf(job.strength, delta, z);
    case Rectifier::kLinear:
      return delta == 0.0f ? z : -kInfinity;
    default:
      return z + delta;
  }
}

// p^ + lambda delta of the linear rectifier, clamped.
__device__ __forceinline__ float moved(const Rectification& job, LogSum pilot, float z, float delta) {
  const float probability = fmaf(job.strength, delta, expf(z - pilot.max - pilot.log_sum));
  return z == -kInfinity || probability < 0.0f ? 0.0f : probability;
}

// `moved` where there is a correction, else 0.
__device__ __forceinline__ float moved_only(const Rectification& job, LogSum pilot, float z, float delta) {
  return delta == 0.0f ? 0.0f : moved(job, pilot, z, delta);
}

// log p~ of an entry with a correction, or without.
__device__ __forceinline__ float rectified(const Rectification& job, const Solution& row, float z, float delta) {
  if (job.inputs.rectifier == Rectifier::kLinear) {
    if (row.all_zero || delta == 0.0f) return z - row.max - row.shift;
    return logf(moved(job, row.pilot, z, delta)) - row.log_total;
  }
  const float log_p = z - row.pilot.max - row.pilot.log_sum;
  const float log_q = z + delta - row.corrected.max - row.corrected.log_sum;
  return log_p == -kInfinity ? log_q : mix(job, log_p, log_q, log_q - log_p);
}

// ---- A row's slice ----

enum class Exchange { kCluster, kMemory };  // of sums, between the blocks of a row

// What a block does with its slice. All threads call every function. First load(), then solve(), then each_pack() and
// each_candidate(), or finish().
class RowSlice {
 public:
  __device__ __forceinline__ explicit RowSlice(const Rectification& job)
      : job_(job),
        row_(blockIdx.x / job.split.slices),
        slice_(static_cast<int>(blockIdx.x % job.split.slices)),
        first_(slice_ * job.split.length),
        count_(static_cast<int>(min(int64_t{job.split.length}, job.inputs.vocabulary - first_))),
        z_(dynamic_shared<float>()) {}

  __device__ __forceinline__ int64_t row() const { return row_; }
  __device__ __forceinline__ int slice() const { return slice_; }
  // The slice's tokens are first() to before first() + count().
  __device__ __forceinline__ int first() const { return first_; }
  __device__ __forceinline__ int count() const { return count_; }
  // z of the slice; log p~ after finish(). Up to a whole pack of four there is -infinity behind it.
  __device__ __forceinline__ float* values() const { return z_; }

  // Reads z. The slice is there for all threads after it.
  __device__ void load();

  // The row's solution, the same in all its blocks.
  template <Exchange exchange>
  __device__ Solution solve();

  // What the other blocks of the row need from this one, where they exchange in memory; see rectify_sums.
  __device__ void store_sums();
  __device__ void store_mass();

  // f(at, values) for the packs that this thread owns: log p~ of four tokens, the first of them first() + at. Those of
  // candidates are wrong; behind the slice's end they are -infinity or NaN.
  template <class F>
  __device__ void each_pack(const Solution& solution, F&& f) const;

  // f(at, value) for every candidate of the slice, shared among the threads: its log p~.
  template <class F>
  __device__ void each_candidate(const Solution& solution, F&& f) const;

  // Replaces the slice by its log p~, for all threads. Behind its end stays -infinity.
  __device__ void finish(const Solution& solution);
