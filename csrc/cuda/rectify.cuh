// log p~ of Eq. 8 by blocks that hold slices of rows: all of rectify but its kernels, which rectify_sample shares. The
// mathematics are those of csrc/cpu/rectify.h; z, w and p~ mean what they mean there.
//
// A row is split into slices of adjacent tokens, of a length that follows from V alone, and a block holds one slice of
// z as floats in shared memory. Its thread t reads and sums up the packs t, t + threads, ... of sixteen bytes of z,
// whatever the alignment, so that a sum has one order. w is never held beside z: a dense delta is added where it is
// needed, and candidates take their places in the slice for w's sums, which only the threads compute that read such a
// place; the sums of all others are those of z. Without any correction the sums of w are therefore those of z, to the
// last bit.
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

constexpr unsigned kSliceThreads = 256;  // of a block at most
constexpr int64_t kSliceLength = 8192;   // what a row is split for, into up to most_slices()

// Shared memory that a kernel has for other things than the slice, at most; tests/test_cuda_build.py holds it to that.
constexpr size_t kSharedBesideSlice = 20 * 1024;

// As many blocks as a cluster may have, 8 where there are none; more only where the slices would not fit.
inline int64_t most_slices(const Device& device) { return std::max(8u, device.most_blocks); }

// Follows from the vocabulary and the GPU alone, as results do.
inline SliceSplit split_of(int64_t vocabulary, const Device& device) {
  if (vocabulary > int64_t{1} << 30) throw std::runtime_error("a vocabulary beyond 2^30");
  const int64_t longest = (device.shared_per_block - kSharedBesideSlice) / sizeof(float) / 64 * 64;
  const int64_t most = most_slices(device);
  int64_t slices = 1;
  while ((slices < most && vocabulary > slices * kSliceLength) || vocabulary > slices * longest) slices *= 2;
  const int64_t length = ((vocabulary + slices - 1) / slices + 63) / 64 * 64;
  return {static_cast<int>(slices), static_cast<int>(length), slices <= device.most_blocks};
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
  job.strength = static_cast<float>(inputs.strength);
  job.rest = static_cast<float>(1.0 - inputs.strength);
  job.slice_sums = static_cast<SliceSums*>(scratch);
  job.slice_masses = reinterpret_cast<float*>(job.slice_sums + inputs.rows * job.split.slices);
  return job;
}

// A block for each slice, which is at the start of dynamic_shared().
inline Launch slice_launch(const Rectification& job, Stream stream) {
  return {.blocks = job.inputs.rows * job.split.slices,
          .threads = job.threads,
          .stream = stream,
          .cluster = job.split.cluster ? static_cast<unsigned>(job.split.slices) : 1,
          .shared = job.split.length * sizeof(float)};
}

// f(std::bool_constant<kDense>{})
template <class F>
void with_dense(const Rectification& job, F&& f) {
  if (job.dense) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// What has to run before a kernel that calls RowSlice::solve<Exchange::kMemory>(); in rectify.cu.
void rectify_sums(const Rectification& job, Stream stream);

// ---- Sums of exponentials ----

__device__ __forceinline__ SumExp no_sum() { return {-kInfinity, 0.0f}; }

// What a sum is relative to, where there are only -infinities too.
__device__ __forceinline__ float finite_shift(float max) { return max == -kInfinity ? 0.0f : max; }

__device__ __forceinline__ SumExp merge(SumExp a, SumExp b) {
  const float max = fmaxf(a.max, b.max), shift = finite_shift(max);
  return {max, fmaf(a.sum, fast_exp(a.max - shift), b.sum * fast_exp(b.max - shift))};
}

struct MergeSums {
  __device__ __forceinline__ SliceSums operator()(const SliceSums& a, const SliceSums& b) const {
    return {merge(a.pilot, b.pilot), merge(a.corrected, b.corrected)};
  }
};

__device__ __forceinline__ SumExp warp_sum(SumExp of_lane) {
  const float max = warp_reduce(of_lane.max, Larger{});
  return {max, warp_reduce(of_lane.sum * fast_exp(of_lane.max - finite_shift(max)), Add{})};
}

// In place of the general one, which would merge pair by pair.
__device__ __forceinline__ SliceSums warp_reduce(SliceSums of_lane, MergeSums) {
  return {warp_sum(of_lane.pilot), warp_sum(of_lane.corrected)};
}

// log_sum is NaN if any entry is. Both are -infinity if all entries are, so that what is relative to them is NaN.
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

// log(1 - weight + weight exp(difference)) for difference <= 0; exactly 0 at 0.
__device__ __forceinline__ float log_mean(float difference, float weight, float one_minus_weight) {
  const float ratio = fast_exp(difference);
  const float mean = difference > -1.0f ? fmaf(weight, ratio - 1.0f, 1.0f) : fmaf(weight, ratio, one_minus_weight);
  const float log = fast_log(mean);
  return one_minus_weight == 0.0f ? difference : log;
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

// log p~ of an entry with a correction, or without; not of the logit fusion.
template <bool kLinear>
__device__ __forceinline__ float rectified(const Rectification& job, const Solution& row, float z, float delta) {
  if constexpr (kLinear) {
    if (row.all_zero || delta == 0.0f) return z - row.max - row.shift;
    return logf(moved(job, row.pilot, z, delta)) - row.log_total;
  }
  const float log_p = z - row.pilot.max - row.pilot.log_sum;
  const float log_q = z + delta - row.corrected.max - row.corrected.log_sum;
  const float mixed = mix(job, log_p, log_q, log_q - log_p);
  return log_p == -kInfinity ? log_q : mixed;
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

// What a block does with its slice, where all tokens have a delta or candidates alone. All threads call every function:
// load(), then solve(), then each_pack() and each_candidate().
template <bool kDense>
class RowSlice {
 public:
  __device__ __forceinline__ explicit RowSlice(const Rectification& job)
      : job_(job),
        row_(blockIdx.x / job.split.slices),
        first_(static_cast<int>(blockIdx.x % job.split.slices) * job.split.length) {
    const int end = first_ + job.split.length;
    count_ = (end < job.inputs.vocabulary ? end : static_cast<int>(job.inputs.vocabulary)) - first_;
  }

  __device__ __forceinline__ int64_t row() const { return row_; }
  // The slice's tokens are first() to before first() + count().
  __device__ __forceinline__ int first() const { return first_; }
  __device__ __forceinline__ int count() const { return count_; }

  // z of the slice, or w of the logit fusion. -infinity follows to the end of a pack of four.
  __device__ __forceinline__ float* values() const { return dynamic_shared<float>(); }

  // Reads the slice and sums it up, for all threads. Where candidates are hidden they are -infinity in each_pack().
  __device__ __forceinline__ void load(bool hides_candidates = false) {
    announce_block();
    const bool has_candidate = !kDense && threadIdx.x < job_.inputs.n_candidates;
    GivenCandidate given{};
    if (has_candidate) given = given_candidate(threadIdx.x);
    if (!kDense) changed()[threadIdx.x] = false;
    own_ = {no_sum(), no_sum()};
    with_row(job_.inputs.logits, row_, [&](const auto* logits) {
      if constexpr (kDense) {
        with_row(job_.inputs.delta, row_, [&](const auto* delta) { load_rows(logits + first_, delta + first_); });
      } else {
        load_row(logits + first_);
      }
    });
    if constexpr (!kDense) {
      if (has_candidate) own_candidate_ = candidate_of(given);
      if (job_.inputs.n_candidates > 0) put_candidates(hides_candidates);
    }
    wait_for_blocks();
  }

  // What the blocks of a row share, after load(). kMemory: rectify_sums has run.
  template <Exchange exchange>
  __device__ __forceinline__ Solution solve() {
    SliceSums sums;
    if constexpr (exchange == Exchange::kCluster) {
      sums = cluster_reduce(own_, SliceSums{no_sum(), no_sum()}, MergeSums{});
    } else {
      sums = stored_sums();
      __syncthreads();
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

  // f(at, values), after solve(), for packs of four tokens, which the threads share: log p~ of the tokens from
  // first() + at on. Those of candidates are hidden or else wrong: each_candidate() has them. Behind the slice's end is
  // -infinity, or NaN in a row of NaN.
  template <class F>
  __device__ __forceinline__ void each_pack(const Solution& solution, F&& f) const {
    if (kDense && is_linear()) {
      each_corrected_pack<true>(solution, f);
    } else if (kDense && !is_logit()) {
      each_corrected_pack<false>(solution, f);
    } else {
#pragma unroll 2
      for (int pack = threadIdx.x; pack < packs(); pack += blockDim.x) {
        float four[4];
        take_pack(values(), pack, four);
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] = four[i] - solution.max - solution.shift;
        f(4 * pack, four);
      }
    }
  }

  // f(at, value), after each_pack() of all threads, for the candidates of the slice, which the threads share: log p~ of
  // the token first() + at.
  template <class F>
  __device__ __forceinline__ void each_candidate(const Solution& solution, F&& f) const {
    if (kDense || job_.inputs.n_candidates == 0 || is_logit()) return;
    __syncthreads();
    each_candidate_of_row([&](const Candidate& candidate) {
      if (!has(candidate.token)) return;
      f(candidate.token - first_, is_linear() ? rectified<true>(job_, solution, candidate.z, candidate.delta)
                                              : rectified<false>(job_, solution, candidate.z, candidate.delta));
    });
  }

  // For the other blocks of the row, after load(); see rectify_sums.
  __device__ __forceinline__ void store_sums() {
    const SliceSums sums = block_reduce(own_, SliceSums{no_sum(), no_sum()}, MergeSums{});
    if (threadIdx.x == 0) job_.slice_sums[blockIdx.x] = sums;
  }
  __device__ __forceinline__ void store_mass() {
    __syncthreads();
    const float mass = block_reduce(own_mass(logarithm(stored_sums().pilot)), 0.0f, Add{});
    if (threadIdx.x == 0) job_.slice_masses[blockIdx.x] = mass;
  }

 private:
  // Elements that a thread reads before it computes, a matter of speed and registers alone.
  static constexpr int kAtOnce = kDense ? 8 : 16;
  static constexpr int kAddedAtOnce = 8;  // sums depend on it

  struct GivenCandidate {
    int64_t token;
    uint32_t delta;  // its bits
  };

  struct Candidate {
    int token;
    float z;  // of another slice's, for the linear p~ alone
    float delta;
  };

  __device__ __forceinline__ bool has(int token) const { return token >= first_ && token < first_ + count_; }

  __device__ __forceinline__ bool is_logit() const { return job_.inputs.rectifier == Rectifier::kLogit; }
  __device__ __forceinline__ bool is_linear() const { return job_.inputs.rectifier == Rectifier::kLinear; }

  // ---- Memory ----

  __device__ __forceinline__ int packs() const { return (count_ + 3) / 4; }

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

  // f(kPack of the logits' elements), a compile-time constant.
  template <class F>
  __device__ __forceinline__ void with_width(F&& f) const {
    if (job_.inputs.logits.dtype == DType::kFloat32) {
      f(std::integral_constant<int, 4>{});
    } else {
      f(std::integral_constant<int, 8>{});
    }
  }

  // f(first pack) for every kAtOnce / kWidth packs of kWidth elements that this thread reads; they are blockDim.x
  // apart.
  template <int kWidth, class F>
  __device__ __forceinline__ void each_group(F&& f) const {
    for (int start = threadIdx.x; start * kWidth < count_; start += kAtOnce / kWidth * blockDim.x) f(start);
  }

  // As many accesses as must be, all before the first use, if a group is_whole().
  template <class T, int kPacks, int kWidth>
  class Fetched {
   public:
    __device__ __forceinline__ Fetched(const T* from, int start) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
#pragma unroll
        for (int j = 0; j < kParts; ++j) {
          const int pack = start + i * static_cast<int>(blockDim.x);
          bits_[i][j] = __ldg(reinterpret_cast<const Bits*>(from) + pack * kParts + j);
        }
      }
    }

    __device__ __forceinline__ void convert_to(float (&into)[kPacks][kWidth]) const {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        T elements[kWidth];
        memcpy(elements, bits_[i], sizeof(elements));
#pragma unroll
        for (int j = 0; j < kWidth; ++j) into[i][j] = to_float(elements[j]);
      }
    }

   private:
    using Bits = std::conditional_t<sizeof(T) * kWidth == 8, uint2, uint4>;
    static constexpr int kParts = sizeof(T) * kWidth / sizeof(Bits);
    Bits bits_[kPacks][kParts];
  };

  // Whether all packs of a group are there and whole.
  template <int kPacks, int kWidth>
  __device__ __forceinline__ bool is_whole(int start) const {
    return (start + (kPacks - 1) * static_cast<int>(blockDim.x) + 1) * kWidth <= count_;
  }

  // With `fill` behind the end.
  template <class T, int kPacks, int kWidth>
  __device__ __forceinline__ void load_slowly(const T* from, int start, float fill,
                                              float (&into)[kPacks][kWidth]) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int at = (start + i * static_cast<int>(blockDim.x)) * kWidth;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) into[i][j] = at + j < count_ ? to_float(from[at + j]) : fill;
    }
  }

  // Whether the end lies within none of a group's packs.
  template <int kPacks, int kWidth>
  __device__ __forceinline__ bool has_whole_packs(int start) const {
    bool whole = true;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int at = (start + i * static_cast<int>(blockDim.x)) * kWidth;
      whole = whole && (at >= count_ || at + kWidth <= count_);
    }
    return whole;
  }

  // An access for every pack that is there, all before the first use, if a group has_whole_packs(). With two rows of
  // them there are not registers enough.
  template <class T, int kPacks>
  __device__ __forceinline__ void load_packs(const T* from, int start, float (&into)[kPacks][kPack<T>]) const {
    Pack<T> packs[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = start + i * static_cast<int>(blockDim.x);
#pragma unroll
      for (T& element : packs[i].at) element = from_float<T>(-kInfinity);
      if (pack * kPack<T> >= count_) continue;
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from) + pack);
      memcpy(&packs[i], &bits, sizeof(bits));
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) to_floats(packs[i], into[i]);
  }

  template <class T>
  __device__ __forceinline__ void load_row(const T* logits) {
    constexpr int kWidth = kPack<T>, kPacks = kAtOnce / kWidth;
    const bool aligned = is_aligned(logits);
    each_group<kWidth>([&](int start) {
      float group[kPacks][kWidth];
      if (aligned && has_whole_packs<kPacks, kWidth>(start)) {
        load_packs(logits, start, group);
      } else {
        load_slowly(logits, start, -kInfinity, group);
      }
      put_group(start, group);
      add(own_.pilot, group);
    });
    own_.corrected = own_.pilot;
  }

  template <class T, class D>
  __device__ __forceinline__ void load_rows(const T* logits, const D* delta) {
    constexpr int kWidth = kPack<T>, kPacks = kAtOnce / kWidth;
    const bool aligned = is_aligned(logits) && is_aligned(delta);
    each_group<kWidth>([&](int start) {
      float group[kPacks][kWidth], deltas[kPacks][kWidth];
      if (aligned && is_whole<kPacks, kWidth>(start)) {
        const Fetched<T, kPacks, kWidth> of_logits(logits, start);
        const Fetched<D, kPacks, kWidth> of_delta(delta, start);
        of_logits.convert_to(group);
        of_delta.convert_to(deltas);
      } else {
        load_slowly(logits, start, -kInfinity, group);
        load_slowly(delta, start, 0.0f, deltas);
      }
      if (!is_logit()) {
        put_group(start, group);
        add(own_.pilot, group);
      }
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) group[i][j] = corrected(job_, group[i][j], deltas[i][j]);
      }
      if (is_logit()) put_group(start, group);
      add(own_.corrected, group);
    });
  }

  template <class T, class Bits, int kWidth>
  __device__ __forceinline__ static void convert(const Bits& bits, float (&into)[kWidth]) {
    T elements[kWidth];
    static_assert(sizeof(elements) == sizeof(bits));
    memcpy(elements, &bits, sizeof(bits));
#pragma unroll
    for (int j = 0; j < kWidth; ++j) into[j] = to_float(elements[j]);
  }

  // delta of four tokens, and 0 behind the end.
  template <class T>
  __device__ __forceinline__ void load_four(const T* from, int pack, float (&into)[4]) const {
    using Bits = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    if (reinterpret_cast<uintptr_t>(from) % sizeof(Bits) == 0 && 4 * pack + 4 <= count_) {
      convert<T>(__ldg(reinterpret_cast<const Bits*>(from) + pack), into);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) into[j] = 4 * pack + j < count_ ? to_float(from[4 * pack + j]) : 0.0f;
    }
  }

  // From L2, most often.
  __device__ __forceinline__ void delta_of(int pack, float (&into)[4]) const {
    with_row(job_.inputs.delta, row_, [&](const auto* row) { load_four(row + first_, pack, into); });
  }

  // Of all candidates of the row. It is neither checked nor converted yet, so that nothing waits for it.
  __device__ __forceinline__ GivenCandidate given_candidate(int64_t i) const {
    const Rows& delta = job_.inputs.delta;
    const int64_t at = row_ * delta.stride + i;
    const uint32_t bits = delta.dtype == DType::kFloat32 ? static_cast<const uint32_t*>(delta.data)[at]
                                                         : static_cast<const uint16_t*>(delta.data)[at];
    return {job_.inputs.index[row_ * job_.inputs.n_candidates + i], bits};
  }

  __device__ __forceinline__ Candidate candidate_of(const GivenCandidate& given) const {
    const int64_t vocabulary = job_.inputs.vocabulary;
    if (given.token < 0 || given.token >= vocabulary) refuse_index("index", vocabulary, "", given.token);
    Candidate candidate{static_cast<int>(given.token), 0.0f, of_bits(given.delta, job_.inputs.delta.dtype)};
    if (has(candidate.token) || is_linear()) {
      with_row(job_.inputs.logits, row_, [&](const auto* row) { candidate.z = to_float(row[candidate.token]); });
    }
    return candidate;
  }

  template <class F>
  __device__ __forceinline__ void each_candidate_of_row(F&& f) const {
    const int count = static_cast<int>(job_.inputs.n_candidates);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      f(i == threadIdx.x ? own_candidate_ : candidate_of(given_candidate(i)));
    }
  }

  template <bool kLinear, class F>
  __device__ __forceinline__ void each_corrected_pack(const Solution& solution, F& f) const {
    with_row(job_.inputs.delta, row_, [&](const auto* row) {
#pragma unroll 2
      for (int pack = threadIdx.x; pack < packs(); pack += blockDim.x) {
        float four[4], delta[4];
        load_four(row + first_, pack, delta);
        take_pack(values(), pack, four);
#pragma unroll
        for (int i = 0; i < 4; ++i) four[i] = rectified<kLinear>(job_, solution, four[i], delta[i]);
        f(4 * pack, four);
      }
    });
  }

  // ---- Groups of packs; with -infinity behind the end ----

  template <int kPacks, int kWidth>
  __device__ __forceinline__ void take_group(int start, float (&into)[kPacks][kWidth]) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = start + i * static_cast<int>(blockDim.x);
#pragma unroll
      for (int j = 0; j < kWidth; j += 4) {
        if (pack * kWidth < count_) {
          take_pack(values(), (pack * kWidth + j) / 4, into[i] + j);
        } else {
#pragma unroll
          for (int at = j; at < j + 4; ++at) into[i][at] = -kInfinity;
        }
      }
    }
  }

  template <int kPacks, int kWidth>
  __device__ __forceinline__ void put_group(int start, const float (&from)[kPacks][kWidth]) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = start + i * static_cast<int>(blockDim.x);
      if (pack * kWidth >= count_) continue;
#pragma unroll
      for (int j = 0; j < kWidth; j += 4) put_pack(values(), (pack * kWidth + j) / 4, from[i] + j);
    }
  }

  template <int kPacks, int kWidth>
  __device__ __forceinline__ static void add(SumExp& to, const float (&group)[kPacks][kWidth]) {
    constexpr int kPacksAdded = kAddedAtOnce / kWidth;
#pragma unroll
    for (int first = 0; first < kPacks; first += kPacksAdded) {
      float max = to.max;
#pragma unroll
      for (int i = first; i < first + kPacksAdded; ++i) {
#pragma unroll
        for (const float value : group[i]) max = fmaxf(max, value);
      }
      const float shift = finite_shift(max);
      float sums[4] = {};
#pragma unroll
      for (int i = first; i < first + kPacksAdded; ++i) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[j % 4] += fast_exp(group[i][j] - shift);
      }
      to.sum = fmaf(to.sum, fast_exp(to.max - shift), (sums[0] + sums[1]) + (sums[2] + sums[3]));
      to.max = max;
    }
  }

  // ---- w ----

  // They take their places among the others, and whoever reads these sums up again.
  __device__ __forceinline__ void put_candidates(bool hides) {
    const int width = job_.inputs.logits.dtype == DType::kFloat32 ? 4 : 8;
    const auto each_of_slice = [&](auto&& f) {
      each_candidate_of_row([&](const Candidate& candidate) {
        if (has(candidate.token)) f(candidate.token - first_, candidate);
      });
    };
    __syncthreads();
    each_of_slice([&](int at, const Candidate& candidate) {
      values()[at] = corrected(job_, candidate.z, candidate.delta);
      changed()[at / width % blockDim.x] = true;
    });
    __syncthreads();
    if (changed()[threadIdx.x]) {
      with_width([&](auto width) {
        SumExp sum = no_sum();
        each_group<width.value>([&](int start) {
          float group[kAtOnce / width.value][width.value];
          take_group(start, group);
          add(sum, group);
        });
        own_.corrected = sum;
      });
    }
    if (!hides || is_logit()) return;
    __syncthreads();
    each_of_slice([&](int at, const Candidate&) { values()[at] = -kInfinity; });
  }

  // Of the linear p~'s corrected entries.
  __device__ __forceinline__ float own_mass(LogSum pilot) const {
    float mass = 0.0f;
    for (int pack = threadIdx.x; pack < packs(); pack += blockDim.x) {
      float four[4], delta[4];
      take_pack(values(), pack, four);
      delta_of(pack, delta);
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = moved_only(job_, pilot, four[i], delta[i]);
      mass += (four[0] + four[1]) + (four[2] + four[3]);
    }
    return mass;
  }

  // ---- The row ----

  __device__ __forceinline__ SliceSums stored_sums() const {
    const SliceSums* of_row = job_.slice_sums + row_ * job_.split.slices;
    SliceSums sums{no_sum(), no_sum()};
    for (int i = threadIdx.x % 32; i < job_.split.slices; i += 32) sums = MergeSums{}(sums, of_row[i]);
    return warp_reduce(sums, MergeSums{});
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
    if constexpr (!kDense) return total_of_candidates(pilot);
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
    const bool no_rest = row.corrected.max == -kInfinity;
    row.all_zero = no_rest && mass == 0.0f;
    // A rest alone stays a logarithm, however small it is.
    row.log_total = row.all_zero ? 0.0f : mass == 0.0f ? log_rest : logf((no_rest ? 0.0f : expf(log_rest)) + mass);
    row.max = row.pilot.max;
    row.shift = row.pilot.log_sum + row.log_total;
  }

  const Rectification& job_;
  const int64_t row_;
  const int first_;
  int count_;
  Candidate own_candidate_{};  // number threadIdx.x of the row
  SliceSums own_;              // of what this thread has read
};

}  // namespace copilot::cuda
