// Eq. 7 on the kept tokens, and its gradient; the formulas and the names stand in csrc/cpu/candidate_loss.h.
//
// A few tokens are the work of a warp, a whole vocabulary that of a block, or of a cluster of blocks with a slice each.
// The forward reads p and delta (and top_index) once and writes four floats a row, the gradient reads them once more
// and writes as much as delta has: that is the floor of both.
//
// So that one pass is enough, a thread's sums are relative to the largest delta that it has met so far. Its sum of
// squares is relative to the power of two below its sum of weights, since the square of a weight may be too small for
// float32 where that of q is not. The target's square is left out of it: with q_y = 1 - r, q_y^2 - 2 q_y + 1 is r^2 and
// q_y^2 - q_y is -q_y r, which lose no digits when q_y is close to 1.

#include "eight.cuh"

namespace copilot::cuda {
namespace {

constexpr float kSmallest = 1.17549435e-38f;  // subnormal p count as 0 for the shift, a subnormal X as this

constexpr unsigned kWarpThreads = 128;   // of a block whose warps have a row each
constexpr int64_t kTokensOfWarp = 1024;  // at most
constexpr unsigned kThreads = 512;
constexpr int64_t kSlice = 32768;  // tokens of a block, if there are blocks enough
constexpr unsigned kGradientThreads = 256;

// The power of two at or below a positive number, and its inverse.
__device__ __forceinline__ float power_below(float x) { return __uint_as_float(__float_as_uint(x) & 0x7F800000u); }
__device__ __forceinline__ float inverse_power(float x) {
  return __uint_as_float(0x7F000000u - (__float_as_uint(x) & 0x7F800000u));
}

// exp(delta - shift); a token with p = 0 may have a larger delta than `shift`. A NaN stays.
__device__ __forceinline__ float exp_below(float d, float shift) {
  const float x = d - shift;
  return expf(x > 0.0f ? 0.0f : x);
}

// The target's place in the row counts from the row's begin; -1: it is not kept.
struct Found {
  float shift;
  int place;
};

struct Sums {
  float weight, mass, moved;  // of w, of p, and of p (delta - shift)

  __device__ __forceinline__ Sums operator+(const Sums& other) const {
    return {weight + other.weight, mass + other.mass, moved + other.moved};
  }
};

// What a thread knows of its part of the row.
template <Objective kObjective>
struct Part {
  float shift;
  Sums sums{};
  float square = 0.0f, unit = 0.0f;  // the sum of (w / unit)^2 without the target; kLinear: of (delta + p)^2

  // Makes the sums relative to a larger delta.
  __device__ __forceinline__ void raise(float larger) {
    if (shift == larger) return;
    const float ratio = expf(shift - larger);
    sums.weight *= ratio;
    unit *= ratio;
    if (shift > -kInfinity) sums.moved += sums.mass * (shift - larger);
    shift = larger;
  }

  // `own` is the target among them, if it is there. They are added up before they join the others: a long sum of equal
  // terms would drift.
  template <int kCount>
  __device__ __forceinline__ void absorb(const float* p, const float* d, int own) {
    if constexpr (kObjective == Objective::kLinear) {
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float moved = i == own ? 0.0f : d[i] + p[i];
        squares += moved * moved;
      }
      square += squares;
    } else {
      float largest = shift;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (p[i] >= kSmallest && d[i] > largest) largest = d[i];
      }
      raise(largest);
      const float from = shift > -kInfinity ? shift : 0.0f;
      float weights[kCount];
      Sums added{};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        weights[i] = p[i] * exp_below(d[i], from);
        added.weight += weights[i];
        added.mass += p[i];
        if (kObjective == Objective::kKl && p[i] > 0.0f) added.moved += p[i] * (d[i] - from);
      }
      sums = sums + added;
      if constexpr (kObjective == Objective::kSquared) {
        const float inverse = inverse_power(sums.weight), kept = unit * inverse;
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float weight = i == own ? 0.0f : weights[i] * inverse;
          squares += weight * weight;
        }
        square = square * (kept * kept) + squares;
        unit = power_below(sums.weight);
      }
    }
  }
};

// The threads that share a row.
struct OfWarp {
  static __device__ __forceinline__ bool is_first() { return threadIdx.x % 32 == 0; }
  template <class T, class Op>
  static __device__ __forceinline__ T reduce(T value, T, Op op) {
    return warp_reduce(value, op);
  }
};

struct OfCluster {
  static __device__ __forceinline__ bool is_first() { return cluster_rank() == 0 && threadIdx.x == 0; }
  template <class T, class Op>
  static __device__ __forceinline__ T reduce(T value, T nothing, Op op) {
    return cluster_reduce(value, nothing, op);
  }
};

__device__ __forceinline__ float add(float a, float b) { return a + b; }

// From the parts of all threads to the row's loss and what its gradient needs.
template <Objective kObjective, class Threads>
__device__ __forceinline__ void conclude(const CandidateLoss& job, int64_t row, Part<kObjective> part, int place) {
  const Candidates& candidates = job.candidates;
  const Found found = Threads::reduce(Found{part.shift, place}, Found{-kInfinity, -1}, [](Found a, Found b) {
    return Found{a.shift > b.shift ? a.shift : b.shift, a.place > b.place ? a.place : b.place};
  });
  place = found.place;
  const float rest = job.rest_mass[row], rest_square = job.rest_square[row], target_prob = job.target_prob[row];
  float of_target = 0.0f, prob = 0.0f;
  if (place >= 0) {
    of_target = load_one(element_of(candidates.delta, row, place), candidates.delta.dtype);
    prob = load_one(element_of(candidates.top_prob, row, place), candidates.top_prob.dtype);
  }
  if constexpr (kObjective == Objective::kLinear) {
    const float others = Threads::reduce(part.square, 0.0f, add) + rest_square;
    if (!Threads::is_first()) return;
    const float left = 1.0f - (of_target + prob);
    job.gradient[row] = {};
    job.loss[row] = others + left * left - 2.0f * (target_prob - prob);
    return;
  }
  const float shift = found.shift;
  part.raise(shift);
  const Sums sums = Threads::reduce(part.sums, Sums{}, Add{});
  const float unchanged = rest > 0.0f ? expf(-shift) : 0.0f;
  const float total = sums.weight + rest * unchanged, divisor = total < kSmallest ? kSmallest : total;
  if constexpr (kObjective == Objective::kSquared) {
    const float factor = (sums.mass + rest) / divisor, scale = part.unit * factor;
    const float square = Threads::reduce(part.square * scale * scale, 0.0f, add);
    if (!Threads::is_first()) return;
    const float g = unchanged * factor;
    // The target is among them if it is not kept; g * g may overflow.
    const float others = square + g * rest_square * g;
    if (place >= 0) {
      const float q = prob * exp_below(of_target, shift) * factor, left = 1.0f - q;
      job.gradient[row] = {shift, factor, (others - q * left) / (sums.mass + rest)};
      job.loss[row] = others + left * left - 2.0f * (target_prob - prob);
    } else {
      const float q = g * target_prob;
      job.gradient[row] = {shift, factor, (others - q) / (sums.mass + rest)};
      job.loss[row] = others - 2.0f * q + 1.0f;
    }
  } else {
    if (!Threads::is_first()) return;
    of_target -= shift;
    const float log_total = logf(total);
    const float log_q_target = logf(target_prob < kSmallest ? kSmallest : target_prob) + of_target - log_total;
    if constexpr (kObjective == Objective::kCrossEntropy) {
      job.gradient[row] = {shift, 1.0f / divisor, 0.0f};
      job.loss[row] = -log_q_target;
    } else {
      job.gradient[row] = {shift, 0.5f * (sums.mass + rest + 1.0f) / divisor, 0.0f};
      const float t = 0.5f * (1.0f + target_prob);
      const float log_ratio = log_total - 0.693147181f;  // log(t_v / q_v) of a token v with delta_v = shift
      const float kept = sums.mass * log_ratio - sums.moved;
      const float not_kept = rest > 0.0f ? rest * (log_ratio + shift) : rest;
      job.loss[row] = 0.5f * (kept + not_kept - target_prob * (log_ratio - of_target)) + t * (logf(t) - log_q_target);
    }
  }
}

// The place of the row's target where every token is kept; -1 where it is to be looked for.
__device__ __forceinline__ int place_of_target(const Candidates& candidates, int64_t row) {
  if (candidates.top_index) return -1;
  const int64_t target = candidates.target[row];
  if (target < 0 || target >= candidates.k) refuse_index("target", candidates.k, " where every token is kept", target);
  return static_cast<int>(target);
}

// The other tokens have a delta of 0.
__device__ __forceinline__ float first_shift(const CandidateLoss& job, int64_t row) {
  return job.rest_mass[row] > 0.0f ? 0.0f : -kInfinity;
}

template <Objective kObjective>
__global__ void __launch_bounds__(kWarpThreads) loss_of_few(const CandidateLoss job, int64_t n_rows) {
  const Candidates& candidates = job.candidates;
  const int64_t row = (int64_t{blockIdx.x} * kWarpThreads + threadIdx.x) / 32;
  if (row >= n_rows) return;
  Part<kObjective> part{first_shift(job, row)};
  int place = place_of_target(candidates, row);
  for (int64_t v = threadIdx.x % 32; v < candidates.k; v += 32) {
    const float p = load_one(element_of(candidates.top_prob, row, v), candidates.top_prob.dtype);
    const float d = load_one(element_of(candidates.delta, row, v), candidates.delta.dtype);
    if (candidates.top_index && candidates.top_index[row * candidates.k + v] == candidates.target[row]) {
      place = static_cast<int>(v);
    }
    part.template absorb<1>(&p, &d, static_cast<int>(place - v));
  }
  conclude<kObjective, OfWarp>(job, row, part, place);
}

// Eight tokens' p and delta, zeros from `count` on.
__device__ __forceinline__ void load_tokens(const Candidates& candidates, int64_t row, int64_t v, int64_t count,
                                            float* p, float* d) {
  const void* prob = element_of(candidates.top_prob, row, v);
  const void* delta = element_of(candidates.delta, row, v);
  if (count >= kEight && is_aligned(prob) && is_aligned(delta)) {
    const Eight read_p = read_eight(prob, candidates.top_prob.dtype);
    const Eight read_d = read_eight(delta, candidates.delta.dtype);
    to_floats(read_p, candidates.top_prob.dtype, p);
    to_floats(read_d, candidates.delta.dtype, d);
  } else {
    load_some(prob, candidates.top_prob.dtype, count, p);
    load_some(delta, candidates.delta.dtype, count, d);
  }
}

template <Objective kObjective>
__global__ void __launch_bounds__(kThreads, 2) loss_of_many(const CandidateLoss job) {
  announce_block();
  const Candidates& candidates = job.candidates;
  const int64_t row = blockIdx.x / cluster_size(), k = candidates.k;
  const int64_t slice = (eights(k) + cluster_size() - 1) / cluster_size() * kEight;
  const int64_t begin = cluster_rank() * slice, end = begin + slice < k ? begin + slice : k;
  Part<kObjective> part{first_shift(job, row)};
  int place = place_of_target(candidates, row);
  for (int64_t v = begin + kEight * int64_t{threadIdx.x}; v < end; v += kEight * int64_t{kThreads}) {
    float p[kEight], d[kEight];
    load_tokens(candidates, row, v, k - v, p, d);
    if (candidates.top_index) {
      for (int i = 0; i < kEight && v + i < k; ++i) {
        if (candidates.top_index[row * k + v + i] == candidates.target[row]) place = static_cast<int>(v + i);
      }
    }
    part.template absorb<kEight>(p, d, static_cast<int>(place - v));
  }
  wait_for_blocks();
  conclude<kObjective, OfCluster>(job, row, part, place);
}

// `own` is 1 for the target.
template <Objective kObjective>
__device__ __forceinline__ float gradient_of(const CandidateGradient& row, float p, float d, float own) {
  if constexpr (kObjective == Objective::kLinear) return 2.0f * (d + p - own);
  const float q = p * exp_below(d, row.shift) * row.factor;
  if constexpr (kObjective == Objective::kSquared) return 2.0f * q * (q - own - row.offset);
  if constexpr (kObjective == Objective::kCrossEntropy) return q - own;
  return q - 0.5f * (p + own);
}

template <Objective kObjective>
__global__ void __launch_bounds__(kGradientThreads) gradient(const CandidateLossBackward job, int64_t n_rows) {
  const Candidates& candidates = job.candidates;
  const int64_t k = candidates.k, in_row = eights(k);
  const int64_t item = int64_t{blockIdx.x} * kGradientThreads + threadIdx.x;
  const int64_t row = item / in_row, v = item % in_row * kEight;
  if (row >= n_rows) return;
  const int place = place_of_target(candidates, row);
  const int64_t target = candidates.target[row];
  const CandidateGradient of_row = job.gradient[row];
  const float upstream = job.upstream[row];
  float p[kEight], d[kEight];
  load_tokens(candidates, row, v, k - v, p, d);
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const bool own =
        candidates.top_index ? v + i < k && candidates.top_index[row * k + v + i] == target : v + i == place;
    d[i] = upstream * gradient_of<kObjective>(of_row, p[i], d[i], own ? 1.0f : 0.0f);
  }
  store_eight(job.out, row, v, k - v, d);
}

// f(std::integral_constant<Objective, ...>{})
template <class F>
void with_objective(Objective objective, F&& f) {
  switch (objective) {
    case Objective::kSquared:
      return f(std::integral_constant<Objective, Objective::kSquared>{});
    case Objective::kLinear:
      return f(std::integral_constant<Objective, Objective::kLinear>{});
    case Objective::kCrossEntropy:
      return f(std::integral_constant<Objective, Objective::kCrossEntropy>{});
    case Objective::kKl:
      return f(std::integral_constant<Objective, Objective::kKl>{});
  }
}

// Of a row: as many as have a slice, a power of two of them.
unsigned blocks_of(int64_t k) {
  if (k <= kSlice || current_device().most_blocks == 1) return 1;
  unsigned blocks = 2;
  while (blocks < 8 && blocks * kSlice < k) blocks *= 2;
  return blocks;
}

}  // namespace

void candidate_loss(const CandidateLoss& job, int64_t n_rows, Stream stream) {
  const int64_t k = job.candidates.k;
  with_objective(job.candidates.objective, [&](auto objective) {
    if (k <= kTokensOfWarp) {
      const int64_t rows_of_block = kWarpThreads / 32;
      launch(loss_of_few<objective()>, {(n_rows + rows_of_block - 1) / rows_of_block, kWarpThreads, stream}, job,
             n_rows);
    } else {
      const unsigned blocks = blocks_of(k);
      launch(loss_of_many<objective()>, {n_rows * blocks, kThreads, stream, blocks}, job);
    }
  });
}

void candidate_loss_backward(const CandidateLossBackward& job, int64_t n_rows, Stream stream) {
  const int64_t blocks = (n_rows * eights(job.candidates.k) + kGradientThreads - 1) / kGradientThreads;
  with_objective(job.candidates.objective, [&](auto objective) {
    launch(gradient<objective()>, {blocks, kGradientThreads, stream}, job, n_rows);
  });
}

}  // namespace copilot::cuda
