// log p~ of one row (Eq. 8) in chunks: first the row's constants, from one sweep over its logits (two for a dense
// linear correction), then any part of it.

namespace copilot::COPILOT_TARGET::sampling {

constexpr int64_t kChunk = 2048;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

inline int64_t whole_vectors(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Elements [start, start + count) of a row, with `fill` up to whole vectors.
inline void load_row(const Rows& rows, int64_t row, int64_t start, int64_t count, float fill, float* out) {
  with_row(rows, row, [&](const auto* from) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, load(from + start + i));
    if (i < count) store(out + i, load_some(from + start + i, count - i, fill));
  });
}

// A sum of exp(x), kept as total * exp(largest). NaN and infinity among the x make the total NaN.
struct ExpSum {
  float largest = kNegativeInfinity;
  double total = 0;

  double in_units_of(float exponent) const {
    return largest == exponent ? total : total * std::exp(double{largest} - double{exponent});
  }

  void add(const ExpSum& other) {
    const float both = std::max(largest, other.largest);
    total = in_units_of(both) + other.in_units_of(both);
    largest = both;
  }

  // Whether these x have a softmax.
  bool defined() const { return total > 0; }
};

// Of whole vectors, NaN left aside.
inline float largest_of(const float* values, int64_t count) {
  Floats largest = broadcast(kNegativeInfinity);
  for (int64_t i = 0; i < count; i += kLanes) largest = maximum(load(values + i), largest);
  return maximum(largest);
}

// Of whole vectors.
inline ExpSum exp_sum(const float* values, int64_t count) {
  const float largest = largest_of(values, count);
  const float exponent = largest == kNegativeInfinity ? 0.0f : largest;
  Floats total{};
  for (int64_t i = 0; i < count; i += kLanes) total += exp(load(values + i) - exponent);
  return {largest, sum(total)};
}

// log softmax(x), in the order in which torch subtracts.
struct LogSoftmax {
  float largest = 0, log_total = 0;

  LogSoftmax() = default;
  explicit LogSoftmax(const ExpSum& sum, double log_factor = 0)
      : largest(sum.largest), log_total(static_cast<float>(std::log(sum.total) - log_factor)) {}

  Floats operator()(Floats x) const { return x - largest - log_total; }
};

// log(1 - weight + weight exp(difference)) for difference <= 0, exactly 0 at 0.
inline Floats log_mean(Floats difference, Floats weight, Floats other_weight) {
  const Floats ratio = exp(difference);
  return log(select(difference > -1.0f, weight * (ratio - 1.0f) + 1.0f, weight * ratio + other_weight));
}

// log((1 - weight) p + weight q), factoring out the larger of the two; exactly log p where p equals q.
inline Floats mix_log(Floats log_p, Floats log_q, double weight) {
  const Floats of_q = broadcast(static_cast<float>(weight)), of_p = broadcast(static_cast<float>(1.0 - weight));
  const Floats difference = log_q - log_p;
  const Ints q_is_larger = difference > 0.0f;
  const Floats larger = select(q_is_larger, log_q, log_p);
  const Floats mean = log_mean(select(q_is_larger, -difference, difference), select(q_is_larger, of_p, of_q),
                               select(q_is_larger, of_q, of_p));
  return select(log_p == kNegativeInfinity, log_p, larger + mean);
}

// log(p~ / p^) of a token without correction under the simplex mixture: there q / p^ is one constant for the row.
inline double log_factor_without_correction(const ExpSum& pilot, const ExpSum& corrected, double weight) {
  const double log_ratio =
      double{pilot.largest} - double{corrected.largest} + std::log(pilot.total) - std::log(corrected.total);
  if (log_ratio > 0) return log_ratio + std::log1p((1.0 - weight) * std::expm1(-log_ratio));
  return std::log1p(weight * std::expm1(log_ratio));
}

class LogRectified {
 public:
  explicit LogRectified(const RectifySample& job)
      : job_(job),
        chunks_((job.vocabulary + kChunk - 1) / kChunk),
        linear_(job.rectifier == Rectifier::kLinear),
        sparse_(job.sparse),
        sums_(chunks_) {}

  int64_t chunks() const { return chunks_; }
  int64_t size_of(int64_t chunk) const { return std::min(kChunk, job_.vocabulary - chunk * kChunk); }

  // body(begin, end) for ranges of chunks.
  template <class F>
  void for_chunks(F body) const {
    job_.split(
        chunks_, [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); }, &body);
  }

  // Goes to a row. False: it has no distribution, because log p~ has a NaN.
  bool begin(int64_t row) {
    row_ = row;
    if (sparse_) load_candidates();
    for_chunks([&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) sums_[chunk] = sums(chunk);
    });
    Sums all;
    for (const Sums& part : sums_) {
      all.pilot.add(part.pilot);
      all.corrected.add(part.corrected);
    }
    return sparse_ ? set_sparse_constants(all.pilot) : set_dense_constants(all);
  }

  // log p~ of a chunk, and -inf up to whole vectors.
  void write(int64_t chunk, float* out) const {
    const int64_t start = chunk * kChunk, count = size_of(chunk);
    load_row(job_.logits, row_, start, count, kNegativeInfinity, out);
    if (sparse_) {
      for (int64_t i = 0; i < count; i += kLanes) store(out + i, without_correction_(load(out + i)));
      for_candidates(start, count, [&](int64_t candidate, int64_t place) { out[place] = log_prob_[candidate]; });
      return;
    }
    float delta[kChunk];
    load_row(job_.delta, row_, start, count, 0.0f, delta);
    log_rectified(out, delta, count, out);
  }

 private:
  struct Candidate {
    int64_t token;
    float delta;

    bool operator<(const Candidate& other) const { return token < other.token; }
  };

  struct Sums {
    ExpSum pilot;      // of z; without the candidates where there are some
    ExpSum corrected;  // of z + scale delta
    double linear = 0;
  };

  bool needs_pilot() const { return linear_ || job_.strength < 1; }
  bool needs_corrected() const { return !linear_ && job_.strength > 0; }

  // The row's candidates in the order of their tokens, padded to whole vectors by tokens that cannot be drawn. One
  // whose delta is 0 is none: it ties with the other tokens of its logit.
  void load_candidates() {
    candidates_.clear();
    for (int64_t place = 0; place < job_.candidates; ++place) {
      const Candidate candidate{job_.index[row_ * job_.candidates + place], element(job_.delta, place)};
      if (candidate.delta != 0) candidates_.push_back(candidate);
    }
    std::sort(candidates_.begin(), candidates_.end());
    const int64_t padded = whole_vectors(candidates_.size());
    logit_.assign(padded, kNegativeInfinity);
    delta_.assign(padded, 0.0f);
    log_prob_.resize(padded);
    for (size_t i = 0; i < candidates_.size(); ++i) {
      logit_[i] = element(job_.logits, candidates_[i].token);
      delta_[i] = candidates_[i].delta;
    }
  }

  float element(const Rows& rows, int64_t place) const {
    return with_row(rows, row_, [&](const auto* from) { return load_some(from + place, 1, 0.0f)[0]; });
  }

  // body(candidate, place in the chunk) for the candidates of a chunk.
  template <class F>
  void for_candidates(int64_t start, int64_t count, F&& body) const {
    const auto first = std::lower_bound(candidates_.begin(), candidates_.end(), Candidate{start, 0});
    for (auto candidate = first; candidate != candidates_.end() && candidate->token < start + count; ++candidate) {
      body(candidate - candidates_.begin(), candidate->token - start);
    }
  }

  Sums sums(int64_t chunk) const {
    const int64_t start = chunk * kChunk, count = size_of(chunk), padded = whole_vectors(count);
    float logits[kChunk];
    load_row(job_.logits, row_, start, count, kNegativeInfinity, logits);
    if (sparse_) for_candidates(start, count, [&](int64_t, int64_t place) { logits[place] = kNegativeInfinity; });
    Sums result;
    if (sparse_ || needs_pilot()) result.pilot = exp_sum(logits, padded);
    if (!sparse_ && needs_corrected()) {
      float delta[kChunk];
      load_row(job_.delta, row_, start, count, 0.0f, delta);
      result.corrected = exp_sum_of_corrected(logits, delta, padded);
    }
    return result;
  }

  // Of z + scale delta; overwrites the logits.
  ExpSum exp_sum_of_corrected(float* logits, const float* delta, int64_t count) const {
    for (int64_t i = 0; i < count; i += kLanes) store(logits + i, corrected(load(logits + i), load(delta + i)));
    return exp_sum(logits, count);
  }

  Floats corrected(Floats logit, Floats delta) const { return logit + job_.scale * delta; }

  bool set_softmax(const ExpSum& pilot, const ExpSum& corrected) {
    if (needs_pilot()) pilot_ = LogSoftmax(pilot);
    if (needs_corrected()) corrected_ = LogSoftmax(corrected);
    return (!needs_pilot() || pilot.defined()) && (!needs_corrected() || corrected.defined());
  }

  bool set_dense_constants(const Sums& all) {
    if (!set_softmax(all.pilot, all.corrected)) return false;
    if (!linear_) return true;
    for_chunks([&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) sums_[chunk].linear = linear_sum(chunk);
    });
    double total = 0;
    for (const Sums& part : sums_) total += part.linear;
    return set_linear_total(total);
  }

  bool set_sparse_constants(const ExpSum& rest) {
    const int64_t padded = whole_vectors(candidates_.size());
    ExpSum pilot = rest, corrected = rest;
    pilot.add(exp_sum(logit_.data(), padded));
    corrected_logit_.assign(logit_.begin(), logit_.end());
    corrected.add(exp_sum_of_corrected(corrected_logit_.data(), delta_.data(), padded));
    if (!set_softmax(pilot, corrected)) return false;
    if (linear_) {
      const double total =
          rest.in_units_of(pilot.largest) / pilot.total + linear_sum(logit_.data(), delta_.data(), padded);
      if (!set_linear_total(total)) return false;
      without_correction_ = LogSoftmax(pilot, -log_linear_total_);
    } else if (job_.strength == 0) {
      without_correction_ = pilot_;
    } else if (job_.strength == 1) {
      without_correction_ = corrected_;
    } else {
      without_correction_ = LogSoftmax(pilot, log_factor_without_correction(pilot, corrected, job_.strength));
    }
    log_rectified(logit_.data(), delta_.data(), padded, log_prob_.data());
    return true;
  }

  // A row whose entries are all 0 falls back to the Pilot.
  bool set_linear_total(double total) {
    pilot_alone_ = total == 0;
    log_linear_total_ = pilot_alone_ ? 0.0f : static_cast<float>(std::log(total));
    return total >= 0 && total < std::numeric_limits<double>::infinity();
  }

  // max(p^ + scale delta, 0), and 0 for a forbidden token; a NaN stays.
  Floats linear(Floats log_p, Floats delta) const {
    const Floats rectified = maximum(Floats{}, exp(log_p) + job_.scale * delta);
    return select(log_p == kNegativeInfinity, Floats{}, rectified);
  }

  double linear_sum(const float* logits, const float* delta, int64_t count) const {
    Floats total{};
    for (int64_t i = 0; i < count; i += kLanes) total += linear(pilot_(load(logits + i)), load(delta + i));
    return sum(total);
  }

  double linear_sum(int64_t chunk) const {
    const int64_t start = chunk * kChunk, count = size_of(chunk);
    float logits[kChunk], delta[kChunk];
    load_row(job_.logits, row_, start, count, kNegativeInfinity, logits);
    load_row(job_.delta, row_, start, count, 0.0f, delta);
    return linear_sum(logits, delta, whole_vectors(count));
  }

  // log p~ of corrected tokens; `out` may be the logits.
  void log_rectified(const float* logits, const float* delta, int64_t count, float* out) const {
    for (int64_t i = 0; i < count; i += kLanes) store(out + i, log_rectified(load(logits + i), load(delta + i)));
  }

  Floats log_rectified(Floats logit, Floats delta) const {
    if (linear_) {
      const Floats log_p = pilot_(logit);
      if (pilot_alone_) return log_p;
      return select(delta == 0.0f, log_p, log(linear(log_p, delta))) - log_linear_total_;
    }
    if (job_.strength == 0) return pilot_(logit);
    const Floats log_q = corrected_(corrected(logit, delta));
    return job_.strength == 1 ? log_q : mix_log(pilot_(logit), log_q, job_.strength);
  }

  const RectifySample& job_;
  const int64_t chunks_;
  const bool linear_, sparse_;
  std::vector<Sums> sums_;  // of every chunk
  int64_t row_ = 0;
  LogSoftmax pilot_, corrected_, without_correction_;
  bool pilot_alone_ = false;
  float log_linear_total_ = 0;
  std::vector<Candidate> candidates_;
  std::vector<float> logit_, delta_, log_prob_, corrected_logit_;  // theirs
};

}  // namespace copilot::COPILOT_TARGET::sampling
