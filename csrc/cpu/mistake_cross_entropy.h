// The Pilot's cross-entropy, its gradient and the compact mistakes it leaves.
//
// p^ = exp(z - m) / s with m the largest logit and s = sum exp(z - m). A first sweep over the row finds m and how large
// a kept token must be; the second, from cache, finds these and sums what is left (see Largest): the only exponentials
// of the whole row. Sums run over short runs in float; what is lost when runs are added up is made good (Kahan), and
// lanes are added in double.

namespace copilot::COPILOT_TARGET {

// Vectors that are added up as they are: equal ones, which round the same way, are off by 2^-20 at most.
constexpr int64_t kRun = 16 * kLanes;

// The sum of many runs, as accurate as one addition.
class SumOfRuns {
 public:
  void add(Floats run) {
    const Floats mended = run - excess_;
    const Floats next = total_ + mended;
    excess_ = (next - total_) - mended;
    total_ = next;
  }

  double over_lanes() const {
    double all = 0.0;
    for (int64_t lane = 0; lane < kLanes; ++lane) all += static_cast<double>(total_[lane]) - excess_[lane];
    return all;
  }

 private:
  Floats total_{}, excess_{};  // by which the total is too large
};

// exp(z - m) and its squares, added up.
class Sums {
 public:
  // Meanwhile as many elements from `next` on are brought into the cache.
  template <class T>
  void add(const float* values, int64_t count, float largest, const T* next) {
    for (int64_t run = 0; run < count; run += kRun) {
      const int64_t end = std::min(run + kRun, count);
      Floats mass{}, square{};
      for (int64_t i = run; i < end; i += kLanes) {
        __builtin_prefetch(next + i, 0, 2);
        const Floats weight = exp(load(values + i) - largest);
        mass += weight;
        square += weight * weight;
      }
      masses_.add(mass);
      squares_.add(square);
    }
  }

  double mass() const { return masses_.over_lanes(); }
  double square() const { return squares_.over_lanes(); }

 private:
  SumOfRuns masses_, squares_;
};

// Turns the logits in `values` into exp(z - m) and adds them up.
inline double exponentials(float* values, int64_t count, float largest) {
  SumOfRuns total;
  for (int64_t start = 0; start < count; start += kRun) {
    Floats mass{};
    const int64_t end = std::min(start + kRun, count);
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      const Floats weight = exp(load(values + i) - largest);
      store(values + i, weight);
      mass += weight;
    }
    if (i < end) {
      const Floats weight = exp(load_some(values + i, end - i, kNothing) - largest);
      store_some(values + i, weight, end - i);
      mass += weight;
    }
    total.add(mass);
  }
  return total.over_lanes();
}

inline void scale(float* values, int64_t count, float factor) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(values + i, load(values + i) * factor);
  for (; i < count; ++i) values[i] *= factor;
}

// Writes the row as floats, and returns the largest of them.
template <class T>
inline float copy_of_row(const T* row, int64_t count, float* out) {
  Floats most = broadcast(kNothing);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats value = load(row + i);
    store(out + i, value);
    most = maximum(value, most);
  }
  if (i < count) {
    const Floats value = load_some(row + i, count - i, kNothing);
    store_some(out + i, value, count - i);
    most = maximum(value, most);
  }
  return maximum(most);
}

inline int64_t kept_tokens(const MistakeCrossEntropy& job) { return job.k > 0 ? job.k : job.vocabulary; }

// `next_row` is the row whose turn is next, or this one.
template <class T>
inline void mistake_of_row(const MistakeCrossEntropy& job, int64_t n, const T* row, const T* next_row,
                           Largest& search) {
  const int64_t kept = kept_tokens(job);
  float* prob = job.top_prob + n * kept;
  float largest;
  Sums rest;
  if (job.k == 0) {
    largest = copy_of_row(row, kept, prob);
  } else {
    std::vector<Entry>& found = search.of(row, job.vocabulary, [&](const float* values, int64_t start, int64_t count) {
      rest.add(values, count, search.largest(), next_row + start);
    });
    std::sort(found.begin(), found.end(), is_larger);
    largest = search.largest();
    for (int64_t j = 0; j < kept; ++j) {
      job.top_index[n * kept + j] = found[j].index;
      prob[j] = found[j].value;
    }
  }
  const double total = exponentials(prob, kept, largest) + rest.mass();
  const float factor = static_cast<float>(1.0 / total);
  scale(prob, kept, factor);
  const float target = element(row, job.labels[n]);
  job.loss[n] = static_cast<float>(std::log(total) + (static_cast<double>(largest) - target));
  job.largest_and_total[2 * n] = largest;
  job.largest_and_total[2 * n + 1] = static_cast<float>(total);
  job.target_prob[n] = exp(target - largest) * factor;
  job.rest_mass[n] = static_cast<float>(rest.mass() / total);
  job.rest_square[n] = static_cast<float>(rest.square() / (total * total));
}

inline void no_mistake(const MistakeCrossEntropy& job, int64_t n) {
  const int64_t kept = kept_tokens(job);
  std::fill_n(job.top_prob + n * kept, kept, 0.0f);
  std::fill_n(job.top_index + n * job.k, job.k, int64_t{0});
  for (float* field : {job.loss, job.target_prob, job.rest_mass, job.rest_square}) field[n] = 0.0f;
  std::fill_n(job.largest_and_total + 2 * n, 2, 0.0f);
}

inline void mistake_cross_entropy(const MistakeCrossEntropy& job, int64_t begin, int64_t end) {
  Largest search(job.k);
  for (int64_t n = begin; n < end; ++n) {
    if (job.labels[n] == job.ignore_index) {
      no_mistake(job, n);
      continue;
    }
    with_row(job.logits, n, [&](const auto* row) {
      mistake_of_row(job, n, row, n + 1 < end ? row + job.logits.stride : row, search);
    });
  }
}

// Elements between what is written and what is brought into the cache: the processor itself stops at the end of a page.
constexpr int64_t kAhead = 2048;

// g (p^ - onehot(y)); `out` may be the row itself.
template <class T>
inline void gradient_of_row(const MistakeCrossEntropyBackward& job, int64_t n, const T* row, T* out) {
  const int64_t count = job.vocabulary;
  if (job.labels[n] == job.ignore_index) {
    std::memset(out, 0, count * sizeof(T));
    return;
  }
  const float largest = job.largest_and_total[2 * n], factor = 1.0f / job.largest_and_total[2 * n + 1];
  const float grad = job.grad[n], target = element(row, job.labels[n]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    __builtin_prefetch(row + i + kAhead, 0, 2);
    store(out + i, exp(load(row + i) - largest) * (grad * factor));
  }
  if (i < count) {
    const Floats value = load_some(row + i, count - i, kNothing);
    store_some(out + i, exp(value - largest) * (grad * factor), count - i);
  }
  store_some(out + job.labels[n], broadcast(grad * (exp(target - largest) * factor - 1.0f)), 1);
}

inline void mistake_cross_entropy_backward(const MistakeCrossEntropyBackward& job, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    with_row(job.logits, n, [&](const auto* row) {
      using T = std::remove_cv_t<std::remove_pointer_t<decltype(row)>>;
      gradient_of_row(job, n, row, static_cast<T*>(job.grad_logits.data) + n * job.grad_logits.stride);
    });
  }
}

}  // namespace copilot::COPILOT_TARGET
