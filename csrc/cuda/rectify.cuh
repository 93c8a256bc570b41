// log p~ of Eq. 8 by blocks that hold slices of rows: all of rectify but its kernels, which rectify_sample shares. The
// mathematics are those of csrc/cpu/rectify.h; z, w and p~ mean what they mean there.
//
// A row is split into slices of adjacent tokens, of a length that follows from V alone, and a block holds one slice of
// z as floats in shared memory. Its thread t owns the packs t, t + threads, ... of four elements, whatever the dtype
// and the alignment, so that a sum has one order. w is never held beside z: a dense delta is added where it is needed,
// and candidates take their places in the slice for w's sums, which only the threads compute that own such a place; the
// sums of all others are those of z. Without any correction the sums of w are therefore those of z, to the last bit.
//
// The blocks of a row exchange their sums within a cluster where the GPU has clusters and the slices fit; else through
// memory, one launch after the other (rectify_sums).

#pragma once

#include <algorithm>

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

// Shared memory that a kernel has for other things than the slice, at most; tests/test_cuda_build.py holds it to that.
constexpr size_t kSharedBesideSlice = 16 * 1024;

// Follows from the vocabulary and the GPU alone, as results do.
inline SliceSplit split_of(int64_t vocabulary, const Device& device) {
  if (vocabulary > std::numeric_limits<int>::max()) throw std::runtime_error("a vocabulary beyond 32 bits");
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
  const Device device = current_device();
  Rectification job{};
  job.inputs = inputs;
  job.split = split_of(inputs.vocabulary, device);
  job.threads = std::clamp<unsigned>((job.split.length / 16 + 31) / 32 * 32, 32, kSliceThreads);
  job.dense = inputs.index == nullptr && inputs.delta.data != nullptr;
  // Only if two blocks fit on a multiprocessor all the same; else delta is read again, from L2.
  const size_t held = 2 * job.split.length * sizeof(float) + kSharedBesideSlice;
  job.holds_delta =
      job.dense && inputs.rectifier != Rectifier::kLogit && job.split.cluster && 2 * held <= device.shared_per_block;
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

__device__ __forceinline__ SumExp no_sum() { return {-kInfinity, 0.0f}; }

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
  const float mean =
      log_mean(-fabsf(difference), q_is_larger ? job.rest : job.strength, q_is_larger ? job.strength : job.rest);
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

// ---- Rows in memory ----

// f(elements), a pointer to the row's.
template <class F>
__device__ __forceinline__ void with_row(const Rows& rows, int64_t row, F&& f) {
  switch (rows.dtype) {
    case DType::kBFloat16:
      return f(static_cast<const BFloat16*>(rows.data) + row * rows.stride);
    case DType::kFloat16:
      return f(static_cast<const Float16*>(rows.data) + row * rows.stride);
    default:
      return f(static_cast<const float*>(rows.data) + row * rows.stride);
  }
}

// ---- A row's slice ----

// How the blocks of a row learn each other's sums.
enum class Exchange { kCluster, kMemory };

// What a block does with its slice. All threads call every function: load(), then solve(), then each_pack() and
// each_candidate(), or finish().
class RowSlice {
 public:
  __device__ __forceinline__ explicit RowSlice(const Rectification& job)
      : job_(job),
        row_(blockIdx.x / job.split.slices),
        first_(static_cast<int>(blockIdx.x % job.split.slices) * job.split.length) {
    const int64_t left = job.inputs.vocabulary - first_;
    count_ = left < job.split.length ? static_cast<int>(left) : job.split.length;
  }

  __device__ __forceinline__ int64_t row() const { return row_; }
  // The slice's tokens are first() to before first() + count().
  __device__ __forceinline__ int first() const { return first_; }
  __device__ __forceinline__ int count() const { return count_; }

  // z of the slice, or w of the logit fusion; after finish() log p~. -infinity follows to the end of a pack of four, or
  // NaN in a row of NaN.
  __device__ __forceinline__ float* values() const { return dynamic_shared<float>(); }

  // Reads the slice, for all threads.
  __device__ __forceinline__ void load() {
    const bool has_candidate = threadIdx.x < job_.inputs.n_candidates;
    if (has_candidate) own_candidate_ = candidate_without_z(threadIdx.x);
    changed()[threadIdx.x] = false;
    with_row(job_.inputs.logits, row_, [&](const auto* row) { load_logits(row + first_); });
    if (has_candidate) load_z(own_candidate_);
    __syncthreads();
    if (is_logit()) correct_in_place();
  }

  // What the blocks of a row share, after load(). kMemory: rectify_sums has run.
  template <Exchange exchange>
  __device__ __forceinline__ Solution solve() {
    SliceSums sums;
    if constexpr (exchange == Exchange::kCluster) {
      sums = cluster_reduce(own_sums(), SliceSums{no_sum(), no_sum()}, MergeSums{});
    } else {
      sums = stored_sums();
    }
    Solution solution{};
    solution.pilot = logarithm(sums.pilot);
    solution.corrected = logarithm(sums.corrected);
    solution.max = solution.corrected.max;
    solution.shift = solution.corrected.log_sum;
    if (is_linear()) {
      solve_linear(solution, total_moved<exchange>(solution.pilot));
    } else if (!is_logit()) {
      solve_simplex(solution);
    }
    return solution;
  }

  // f(at, values) for the packs that this thread owns, after solve(): log p~ of the four tokens from first() + at on.
  // Those of candidates are wrong, each_candidate() has them; behind the slice's end see values().
  template <class F>
  __device__ __forceinline__ void each_pack(const Solution& solution, F&& f) const {
    for (int pack = threadIdx.x; pack < packs(); pack += blockDim.x) {
      float four[4];
      take_pack(values(), pack, four);
      if (job_.dense && !is_logit()) {
        float delta[1][4];
        delta_of(pack, delta);
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] = rectified(job_, solution, four[i], delta[0][i]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] = four[i] - solution.max - solution.shift;
      }
      f(4 * pack, four);
    }
  }

  // f(at, value), after each_pack() of all threads, for the candidates of the slice, which the threads share: log p~ of
  // the token first() + at.
  template <class F>
  __device__ __forceinline__ void each_candidate(const Solution& solution, F&& f) const {
    if (job_.inputs.n_candidates == 0 || is_logit()) return;
    __syncthreads();
    each_candidate_of_row([&](const Candidate& candidate) {
      const int at = static_cast<int>(candidate.token) - first_;
      if (at >= 0 && at < count_) f(at, rectified(job_, solution, candidate.z, candidate.delta));
    });
  }

  // Replaces the slice by its log p~, for all threads.
  __device__ __forceinline__ void finish(const Solution& solution) {
    each_pack(solution, [&](int at, const float* four) { put_pack(values(), at / 4, four); });
    each_candidate(solution, [&](int at, float value) { values()[at] = value; });
    __syncthreads();
  }

  // For the other blocks of the row, after load(); see rectify_sums.
  __device__ __forceinline__ void store_sums() {
    const SliceSums sums = block_reduce(own_sums(), SliceSums{no_sum(), no_sum()}, MergeSums{});
    if (threadIdx.x == 0) job_.slice_sums[blockIdx.x] = sums;
  }
  __device__ __forceinline__ void store_mass() {
    const float mass = block_reduce(own_mass(logarithm(stored_sums().pilot)), 0.0f, Add{});
    if (threadIdx.x == 0) job_.slice_masses[blockIdx.x] = mass;
  }

 private:
  static constexpr int kPacksAtOnce = 4;  // that a thread reads before it computes

  struct Candidate {
    int64_t token;
    float z, delta;
  };

  __device__ __forceinline__ bool is_logit() const { return job_.inputs.rectifier == Rectifier::kLogit; }
  __device__ __forceinline__ bool is_linear() const { return job_.inputs.rectifier == Rectifier::kLinear; }

  // ---- Memory ----

  __device__ __forceinline__ int packs() const { return (count_ + 3) / 4; }

  __device__ __forceinline__ float* held_delta() const { return values() + job_.split.length; }

  // Whether any of a thread's places was changed by a candidate.
  __device__ __forceinline__ static bool* changed() {
    COPILOT_SHARED(Flags, flags);
    return flags.of_thread;
  }
  struct Flags {
    bool of_thread[kSliceThreads];
  };

  __device__ __forceinline__ static void take_pack(const float* shared, int pack, float* into) {
    const Pack<float> four = reinterpret_cast<const Pack<float>*>(shared)[pack];
#pragma unroll
    for (int i = 0; i < 4; ++i) into[i] = four.at[i];
  }
  __device__ __forceinline__ static void put_pack(float* shared, int pack, const float* from) {
    reinterpret_cast<Pack<float>*>(shared)[pack] = {from[0], from[1], from[2], from[3]};
  }

  // Whole packs by one access each, all accesses of a group before the first use. With -infinity behind the end.
  template <class T>
  __device__ __forceinline__ void load_logits(const T* from) {
    constexpr int kWidth = kPack<T>;
    const int whole = is_aligned(from) ? count_ / kWidth : 0;
    for (int start = threadIdx.x; start < whole; start += kPacksAtOnce * blockDim.x) {
      uint4 bits[kPacksAtOnce];
#pragma unroll
      for (int i = 0; i < kPacksAtOnce; ++i) {
        const int pack = start + i * blockDim.x;
        if (pack < whole) bits[i] = __ldg(reinterpret_cast<const uint4*>(from) + pack);
      }
#pragma unroll
      for (int i = 0; i < kPacksAtOnce; ++i) {
        const int pack = start + i * blockDim.x;
        float read[kWidth];
        convert<T>(bits[i], read);
        if (pack < whole) put_logits(pack, read);
      }
    }
    for (int pack = whole + threadIdx.x; pack * kWidth < count_; pack += blockDim.x) {
      float read[kWidth];
      load_pack(from + pack * kWidth, count_ - pack * kWidth, false, -kInfinity, read);
      put_logits(pack, read);
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void put_logits(int pack, const float (&from)[kWidth]) {
#pragma unroll
    for (int j = 0; j < kWidth; j += 4) put_pack(values(), (pack * kWidth + j) / 4, from + j);
  }

  template <class T, class Bits, int kWidth>
  __device__ __forceinline__ static void convert(const Bits& bits, float (&into)[kWidth]) {
    T elements[kWidth];
    static_assert(sizeof(elements) == sizeof(bits));
    memcpy(elements, &bits, sizeof(bits));
#pragma unroll
    for (int j = 0; j < kWidth; ++j) into[j] = to_float(elements[j]);
  }

  // delta of kPacks of this thread's packs, from the pack `start` on, and 0 behind the end; all accesses before the
  // first use.
  template <int kPacks>
  __device__ __forceinline__ void load_delta(int start, float (&into)[kPacks][4]) const {
    with_row(job_.inputs.delta, row_, [&](const auto* row) { load_fours(row + first_, start, into); });
  }

  template <int kPacks, class T>
  __device__ __forceinline__ void load_fours(const T* from, int start, float (&into)[kPacks][4]) const {
    using Bits = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    const int whole = reinterpret_cast<uintptr_t>(from) % sizeof(Bits) == 0 ? count_ / 4 : 0;
    Bits bits[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = start + i * blockDim.x;
      if (pack < whole) {
        bits[i] = __ldg(reinterpret_cast<const Bits*>(from) + pack);
      } else {
        T elements[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) elements[j] = 4 * pack + j < count_ ? from[4 * pack + j] : T{};
        memcpy(&bits[i], elements, sizeof(elements));
      }
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) convert<T>(bits[i], into[i]);
  }

  __device__ __forceinline__ void delta_of(int pack, float (&into)[1][4]) const {
    if (job_.holds_delta) {
      take_pack(held_delta(), pack, into[0]);
    } else {
      load_delta(pack, into);
    }
  }

  // Of all candidates of the row. Its token is not checked yet, so that nothing waits for it.
  __device__ __forceinline__ Candidate candidate_without_z(int64_t i) const {
    const int64_t at = row_ * job_.inputs.n_candidates + i;
    return {job_.inputs.index[at], 0.0f, static_cast<const float*>(job_.inputs.delta.data)[at]};
  }

  __device__ __forceinline__ void load_z(Candidate& candidate) const {
    const int64_t token = candidate.token, vocabulary = job_.inputs.vocabulary;
    if (token < 0 || token >= vocabulary) refuse_index("index", vocabulary, "", token);
    with_row(job_.inputs.logits, row_, [&](const auto* row) { candidate.z = to_float(row[token]); });
  }

  template <class F>
  __device__ __forceinline__ void each_candidate_of_row(F&& f) const {
    for (int64_t i = threadIdx.x; i < job_.inputs.n_candidates; i += blockDim.x) {
      Candidate candidate = own_candidate_;
      if (i != threadIdx.x) {
        candidate = candidate_without_z(i);
        load_z(candidate);
      }
      f(candidate);
    }
  }

  // ---- w ----

  __device__ __forceinline__ void put_candidates() {
    each_candidate_of_row([&](const Candidate& candidate) {
      const int at = static_cast<int>(candidate.token) - first_;
      if (at < 0 || at >= count_) return;
      values()[at] = corrected(job_, candidate.z, candidate.delta);
      changed()[at / 4 % blockDim.x] = true;
    });
    __syncthreads();
  }

  __device__ __forceinline__ void correct_in_place() {
    if (job_.dense) {
      each_group([&](int start) {
        Group delta, group;
        load_delta(start, delta);
        take_group(start, group);
        correct_group(group, delta);
        put_group(values(), start, group);
      });
    } else if (job_.inputs.n_candidates > 0) {
      put_candidates();
    }
  }

  // ---- Groups of packs ----

  using Group = float[kPacksAtOnce][4];

  // f(first pack) for every kPacksAtOnce of this thread's packs; they are blockDim.x apart.
  template <class F>
  __device__ __forceinline__ void each_group(F&& f) const {
    for (int start = threadIdx.x; start < packs(); start += kPacksAtOnce * blockDim.x) f(start);
  }

  // With -infinity behind the end.
  __device__ __forceinline__ void take_group(int start, Group& into) const {
#pragma unroll
    for (int i = 0; i < kPacksAtOnce; ++i) {
      const int pack = start + i * blockDim.x;
#pragma unroll
      for (float& value : into[i]) value = -kInfinity;
      if (pack < packs()) take_pack(values(), pack, into[i]);
    }
  }

  __device__ __forceinline__ void put_group(float* shared, int start, const Group& from) const {
#pragma unroll
    for (int i = 0; i < kPacksAtOnce; ++i) {
      const int pack = start + i * blockDim.x;
      if (pack < packs()) put_pack(shared, pack, from[i]);
    }
  }

  __device__ __forceinline__ void correct_group(Group& group, const Group& delta) const {
#pragma unroll
    for (int i = 0; i < kPacksAtOnce; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) group[i][j] = corrected(job_, group[i][j], delta[i][j]);
    }
  }

  // ---- This thread's sums ----

  __device__ __forceinline__ static void add(SumExp& to, const Group& group) {
    float max = to.max;
#pragma unroll
    for (const auto& four : group) {
#pragma unroll
      for (const float value : four) max = fmaxf(max, value);
    }
    const float shift = max == -kInfinity ? 0.0f : max;
    float sums[4] = {};
#pragma unroll
    for (const auto& four : group) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] += expf(four[j] - shift);
    }
    to.sum = fmaf(to.sum, expf(to.max - shift), (sums[0] + sums[1]) + (sums[2] + sums[3]));
    to.max = max;
  }

  __device__ __forceinline__ SumExp sum_of_slice() const {
    SumExp sum = no_sum();
    each_group([&](int start) {
      Group group;
      take_group(start, group);
      add(sum, group);
    });
    return sum;
  }

  __device__ __forceinline__ SumExp sum_with_dense_delta() {
    SumExp sum = no_sum();
    each_group([&](int start) {
      Group delta, group;
      load_delta(start, delta);
      if (job_.holds_delta) put_group(held_delta(), start, delta);
      take_group(start, group);
      correct_group(group, delta);
      add(sum, group);
    });
    return sum;
  }

  __device__ __forceinline__ SliceSums own_sums() {
    if (is_logit()) return {no_sum(), sum_of_slice()};
    const SumExp pilot = sum_of_slice();
    if (job_.dense) return {pilot, sum_with_dense_delta()};
    if (job_.inputs.n_candidates == 0) return {pilot, pilot};
    __syncthreads();
    put_candidates();
    return {pilot, changed()[threadIdx.x] ? sum_of_slice() : pilot};
  }

  // Of the linear p~'s corrected entries.
  __device__ __forceinline__ float own_mass(LogSum pilot) const {
    float mass = 0.0f;
    for (int pack = threadIdx.x; pack < packs(); pack += blockDim.x) {
      float four[4], delta[1][4];
      take_pack(values(), pack, four);
      delta_of(pack, delta);
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = moved_only(job_, pilot, four[i], delta[0][i]);
      mass += (four[0] + four[1]) + (four[2] + four[3]);
    }
    return mass;
  }

  // ---- The row ----

  // In the order of cluster_reduce.
  __device__ __forceinline__ SliceSums stored_sums() const {
    const SliceSums* of_row = job_.slice_sums + row_ * job_.split.slices;
    SliceSums sums = of_row[0];
    for (int i = 1; i < job_.split.slices; ++i) sums = MergeSums{}(sums, of_row[i]);
    return sums;
  }

  __device__ __forceinline__ float stored_mass() const {
    const float* of_row = job_.slice_masses + row_ * job_.split.slices;
    float mass = of_row[0];
    for (int i = 1; i < job_.split.slices; ++i) mass += of_row[i];
    return mass;
  }

  // The mass of the linear p~'s corrected entries.
  template <Exchange exchange>
  __device__ __forceinline__ float total_moved(LogSum pilot) const {
    if (!job_.dense) return total_of_candidates(pilot);
    return exchange == Exchange::kCluster ? cluster_reduce(own_mass(pilot), 0.0f, Add{}) : stored_mass();
  }

  // Every block adds those of the whole row, as integers: any order of candidates gives the same sum.
  __device__ __forceinline__ float total_of_candidates(LogSum pilot) const {
    float largest = 0.0f;
    each_candidate_of_row([&](const Candidate& candidate) {
      largest = max_or_nan(moved_only(job_, pilot, candidate.z, candidate.delta), largest);
    });
    largest = block_reduce(largest, 0.0f, [](float a, float b) { return max_or_nan(a, b); });
    if (!(largest > 0.0f && largest < kInfinity)) return largest;
    const int scale = 40 - ilogbf(largest);  // 2^22 of them stay below 2^63
    int64_t total = 0;
    each_candidate_of_row([&](const Candidate& candidate) {
      total += llrintf(scalbnf(moved_only(job_, pilot, candidate.z, candidate.delta), scale));
    });
    return scalbnf(static_cast<float>(block_reduce(total, int64_t{0}, Add{})), -scale);
  }

  // ---- Solutions ----

  __device__ __forceinline__ void solve_simplex(Solution& row) const {
    // log q - log p of every entry without correction
    const float difference = row.pilot.max - row.corrected.max + (row.pilot.log_sum - row.corrected.log_sum);
    const LogSum larger = difference > 0.0f ? row.corrected : row.pilot;
    row.max = larger.max;
    row.shift = larger.log_sum - mix(job_, 0.0f, 0.0f, difference);
  }

  __device__ __forceinline__ void solve_linear(Solution& row, float mass) const {
    const float log_rest = row.corrected.max - row.pilot.max + (row.corrected.log_sum - row.pilot.log_sum);
    const float total = (row.corrected.max == -kInfinity ? 0.0f : expf(log_rest)) + mass;
    row.all_zero = total == 0.0f;
    row.log_total = row.all_zero ? 0.0f : logf(total);
    row.max = row.pilot.max;
    row.shift = row.pilot.log_sum + row.log_total;
  }

  const Rectification& job_;
  const int64_t row_;
  const int first_;
  int count_;
  Candidate own_candidate_{};  // number threadIdx.x of the row
};

}  // namespace copilot::cuda
