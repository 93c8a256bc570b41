// Eq. 7 on the kept tokens, and its gradient.
//
// Let p be the kept probabilities, R the mass of the other tokens, whose delta is 0, and P = sum p + R (1 but for
// rounding).
//   w_v = p_v exp(delta_v - shift),  X = sum w + R exp(-shift),  q_v = P w_v / X,  g = P exp(-shift) / X
// with q the rectified probabilities of the kept tokens, g p^ those of the others. The sums of X and P are made alike,
// so that q is exactly p where delta is 0. A row of the loss leaves behind what its gradient needs besides p and delta:
//   objective   gradient with respect to delta_v                       factor            offset
//   squared     2 q_v (q_v - [v = y] - (sum q^2 - q_y) / P)            P / X             (sum q^2 - q_y) / P
//   ce          w_v / X - [v = y]                                      1 / X
//   kl          (P + 1) / 2 w_v / X - p_v / 2 - [v = y] / 2            (P + 1) / (2 X)
//   linear      2 (delta_v + p_v - [v = y])
// The sums run over all tokens, kept or not.

namespace copilot::COPILOT_TARGET {

// The sums over a row of what `add(p, delta, sums)` adds for kLanes tokens. Lanes beyond the row hold p = delta = 0.
// Sums of chunks are added up, so that a long row loses no digits.
template <int kSums, class P, class D, class Add>
inline std::array<float, kSums> sums_of_row(const P* prob, const D* delta, int64_t k, Add&& add) {
  constexpr int64_t kChunk = 256 * kLanes;
  Floats total[kSums] = {};
  for (int64_t begin = 0; begin < k; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, k);
    Floats chunk[kSums] = {};
    int64_t v = begin;
    for (; v + kLanes <= end; v += kLanes) add(load(prob + v), load(delta + v), chunk);
    if (v < end) add(load_some(prob + v, end - v, 0.0f), load_some(delta + v, end - v, 0.0f), chunk);
    for (int i = 0; i < kSums; ++i) total[i] += chunk[i];
  }
  std::array<float, kSums> result;
  for (int i = 0; i < kSums; ++i) result[i] = sum(total[i]);
  return result;
}

// The largest delta of a token with p > 0: no w exceeds its p then. Subnormal p count as 0, so that 1 / X is finite.
template <class P, class D>
inline float largest_delta(const P* prob, const D* delta, int64_t k, bool others) {
  const Floats nothing = broadcast(-std::numeric_limits<float>::infinity());
  Floats largest = others ? Floats{} : nothing;
  const auto take = [&](Floats p, Floats d) {
    largest = maximum(select(p >= std::numeric_limits<float>::min(), d, nothing), largest);
  };
  int64_t v = 0;
  for (; v + kLanes <= k; v += kLanes) take(load(prob + v), load(delta + v));
  if (v < k) take(load_some(prob + v, k - v, 0.0f), load_some(delta + v, k - v, 0.0f));
  return maximum(largest);
}

// X, where it is subnormal the smallest number that 1 may be divided by. A NaN stays.
inline float divisor_of(float total) { return std::max(total, std::numeric_limits<float>::min()); }

// w; a token with p = 0 may have a larger delta than `shift`. A NaN of either stays.
inline Floats weight_of(Floats p, Floats d, float shift) { return p * exp(minimum(Floats{}, d - shift)); }

// Where the row's target stands among its kept tokens, or -1.
inline int64_t place_of_target(const Candidates& candidates, int64_t i) {
  if (candidates.top_index == nullptr) return candidates.target[i];
  int64_t place = -1;
  for (int64_t j = 0; j < candidates.k; ++j) {
    if (candidates.top_index[i * candidates.k + j] == candidates.target[i]) place = j;
  }
  return place;
}

// One element, in the first lane.
template <class T>
inline Floats load_one(const T* from) {
  return load_some(from, 1, 0.0f);
}

template <class P, class D>
inline float linear_loss(const CandidateLoss& job, int64_t i, const P* prob, const D* delta) {
  const auto [square] = sums_of_row<1>(prob, delta, job.candidates.k,
                                       [](Floats p, Floats d, Floats* sums) { sums[0] += (d + p) * (d + p); });
  const int64_t place = place_of_target(job.candidates, i);
  const float f_target = place < 0 ? 0.0f : load_one(delta + place)[0];
  job.gradient[i] = {};
  return square + job.rest_square[i] - 2.0f * (f_target + job.target_prob[i]) + 1.0f;
}

template <class P, class D>
inline float squared_loss(const CandidateLoss& job, int64_t i, const P* prob, const D* delta) {
  const int64_t k = job.candidates.k;
  const float rest = job.rest_mass[i], target_prob = job.target_prob[i];
  const bool others = rest > 0.0f;
  const float shift = largest_delta(prob, delta, k, others);
  const auto [weight, mass] = sums_of_row<2>(prob, delta, k, [&](Floats p, Floats d, Floats* sums) {
    sums[0] += weight_of(p, d, shift);
    sums[1] += p;
  });
  const float unchanged = others ? exp(-shift) : 0.0f;
  const float factor = (mass + rest) / divisor_of(weight + rest * unchanged);
  const auto [square] = sums_of_row<1>(prob, delta, k, [&](Floats p, Floats d, Floats* sums) {
    const Floats q = weight_of(p, d, shift) * factor;
    sums[0] += q * q;
  });
  const float g = unchanged * factor;
  const float q_square = square + g * job.rest_square[i] * g;  // g * g may overflow
  const int64_t place = place_of_target(job.candidates, i);
  float q_target = g * target_prob, f_target = (g - 1.0f) * target_prob;
  if (place >= 0) {
    const Floats p = load_one(prob + place);
    q_target = weight_of(p, load_one(delta + place), shift)[0] * factor;
    f_target = q_target - p[0];
  }
  job.gradient[i] = {shift, factor, (q_square - q_target) / (mass + rest)};
  return q_square - 2.0f * (f_target + target_prob) + 1.0f;
}

// For kl, KL(t || q) with t = p^ + l / 2, half of the way to the truth. Logarithms are relative to the shift.
template <class P, class D>
inline float logarithmic_loss(const CandidateLoss& job, int64_t i, const P* prob, const D* delta) {
  const float rest = job.rest_mass[i], target_prob = job.target_prob[i];
  const bool others = rest > 0.0f;
  const float shift = largest_delta(prob, delta, job.candidates.k, others);
  const auto [weight, mass, moved] =
      sums_of_row<3>(prob, delta, job.candidates.k, [&](Floats p, Floats d, Floats* sums) {
        sums[0] += weight_of(p, d, shift);
        sums[1] += p;
        sums[2] += select(p > 0.0f, p * (d - shift), Floats{});
      });
  const float total = weight + rest * (others ? exp(-shift) : 0.0f);
  const float log_total = log(total);
  const int64_t place = place_of_target(job.candidates, i);
  const float of_target = (place < 0 ? 0.0f : load_one(delta + place)[0]) - shift;
  const float log_q_target = log(std::max(target_prob, std::numeric_limits<float>::min())) + of_target - log_total;
  if (job.candidates.objective == Objective::kCrossEntropy) {
    job.gradient[i] = {shift, 1.0f / divisor_of(total), 0.0f};
    return -log_q_target;
  }
  job.gradient[i] = {shift, 0.5f * (mass + rest + 1.0f) / divisor_of(total), 0.0f};
  const float t = 0.5f * (1.0f + target_prob);
  const float log_ratio = log_total - 0.693147181f;  // log(t_v / q_v) of a token v with delta_v = shift
  const float kept = mass * log_ratio - moved;
  const float not_kept = others ? rest * (log_ratio + shift) : rest;
  return 0.5f * (kept + not_kept - target_prob * (log_ratio - of_target)) + t * (log(t) - log_q_target);
}

inline void candidate_loss(const CandidateLoss& job, int64_t begin, int64_t end) {
  const Objective objective = job.candidates.objective;
  for (int64_t i = begin; i < end; ++i) {
    job.loss[i] = with_row(job.candidates.top_prob, i, [&](const auto* prob) {
      return with_row(job.candidates.delta, i, [&](const auto* delta) {
        if (objective == Objective::kLinear) return linear_loss(job, i, prob, delta);
        if (objective == Objective::kSquared) return squared_loss(job, i, prob, delta);
        return logarithmic_loss(job, i, prob, delta);
      });
    });
  }
}

// `own` is 1 for the target.
inline Floats gradient_of(Objective objective, const CandidateGradient& row, Floats p, Floats d, float own) {
  if (objective == Objective::kLinear) return 2.0f * (d + p - own);
  const Floats q = weight_of(p, d, row.shift) * row.factor;
  if (objective == Objective::kSquared) return 2.0f * q * (q - own - row.offset);
  if (objective == Objective::kCrossEntropy) return q - own;
  return q - 0.5f * (p + own);
}

template <class P, class D>
inline void candidate_gradient(const CandidateLossBackward& job, int64_t i, const P* prob, const D* delta, D* out) {
  const auto gradient = [&](Floats p, Floats d, float own) {
    return job.upstream[i] * gradient_of(job.candidates.objective, job.gradient[i], p, d, own);
  };
  const int64_t k = job.candidates.k;
  int64_t v = 0;
  for (; v + kLanes <= k; v += kLanes) store(out + v, gradient(load(prob + v), load(delta + v), 0.0f));
  if (v < k) {
    const Floats p = load_some(prob + v, k - v, 0.0f), d = load_some(delta + v, k - v, 0.0f);
    store_some(out + v, gradient(p, d, 0.0f), k - v);
  }
  const int64_t place = place_of_target(job.candidates, i);
  if (place >= 0) store_some(out + place, gradient(load_one(prob + place), load_one(delta + place), 1.0f), 1);
}

inline void candidate_loss_backward(const CandidateLossBackward& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    with_row(job.candidates.top_prob, i, [&](const auto* prob) {
      with_row(job.candidates.delta, i, [&](const auto* delta) {
        using Element = std::remove_const_t<std::remove_pointer_t<decltype(delta)>>;
        candidate_gradient(job, i, prob, delta, static_cast<Element*>(job.out.data) + i * job.out.stride);
      });
    });
  }
}

}  // namespace copilot::COPILOT_TARGET
