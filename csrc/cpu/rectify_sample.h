// One token from each row of p~. A row is never written, but for top-k and top-p, which need one row of scores.
//
// The token is the one of smallest log(E_v) - score_v. It is computed in double for the few tokens only that can win,
// so the result is the smallest of all whatever the order in which they are looked at.

#include "log_rectified.h"
#include "philox.h"
#include "warp.h"

namespace copilot::COPILOT_TARGET::sampling {

struct Drawn {
  double key = std::numeric_limits<double>::infinity();
  int64_t token = -1;
  float score = 0;

  void take(const Drawn& other) {
    if (other.key < key || (other.key == key && other.token < token)) *this = other;
  }
};

// The first of the largest scores of a chunk whose first token is `first`.
inline void take_largest(const float* scores, int64_t first, int64_t count, Drawn& best) {
  const float largest = largest_of(scores, count);
  if (!(-double{largest} < best.key)) return;
  best = {-double{largest}, first + (std::find(scores, scores + count, largest) - scores), largest};
}

// Races the tokens of a chunk, and returns the sum of their weights.
class Race {
 public:
  Race(const RandomRow& random, Drawn& best) : random_(random), best_(best) {}

  ExpSum run(const float* scores, int64_t first, int64_t count) {
    largest_ = largest_of(scores, count);
    if (largest_ == kNegativeInfinity) return {};
    set_reach();
    Floats total{};
    for (int64_t i = 0; i < count; i += kBlock) {
      alignas(64) float weights[kBlock] = {};
      Ints possible{};
      for (int64_t part = 0; part < std::min(kBlock, count - i); part += kLanes) {
        const Floats weight = exp(load(scores + i + part) - largest_);
        total += weight;
        possible |= weight * reach_ >= 0x1p-53f;  // no E is smaller
        store(weights + part, weight);
      }
      if (any(possible)) race_block(scores + i, weights, first + i);
    }
    return {largest_, sum(total)};
  }

 private:
  void race_block(const float* scores, const float* weights, int64_t first) {
    alignas(64) uint32_t words[kBlock];
    alignas(64) float least[kBlock];
    random_.words(first, kBlock / 4, 0, words);
    Ints near{};
    for (int64_t part = 0; part < kBlock; part += kLanes) {
      Words word;
      std::memcpy(&word, words + part, sizeof(word));
      // E = -log(U) >= 1 - U
      const Floats below = __builtin_convertvector(bits<Ints>(~word >> 8), Floats) * 0x1p-24f;
      near |= below <= load(weights + part) * reach_;
      store(least + part, below);
    }
    if (!any(near)) return;
    for (int64_t i = 0; i < kBlock; ++i) {
      if (!(weights[i] > 0.0f && least[i] <= weights[i] * reach_)) continue;
      const Drawn drawn{random_.log_exponential(first + i, words[i]) - scores[i], first + i, scores[i]};
      if (drawn.key < best_.key) {
        best_ = drawn;
        set_reach();
      }
    }
  }

  // A token loses if its E / weight is above: the best so far, and more than rounding.
  void set_reach() { reach_ = 1.0001f * std::exp(static_cast<float>(best_.key + largest_)); }

  const RandomRow& random_;
  Drawn& best_;
  float largest_ = 0;  // weights are exp(score - largest)
  float reach_ = 0;
};

class Sampler {
 public:
  explicit Sampler(const RectifySample& job)
      : job_(job),
        greedy_(job.temperature == 0),
        filtered_(!greedy_ && (job.top_k > 0 || job.top_p < 1)),
        log_rectified_(job),
        sums_(log_rectified_.chunks()),
        drawn_(log_rectified_.chunks()),
        scores_(filtered_ ? whole_vectors(job.vocabulary) : 0) {}

  void sample(int64_t row) {
    Drawn drawn;
    float log_prob = std::numeric_limits<float>::quiet_NaN();
    if (log_rectified_.begin(row)) {
      if (filtered_) filter();
      drawn = draw({job_.seed, job_.offset, static_cast<uint32_t>(row)});
      log_prob = drawn.score;
      if (!greedy_) {
        ExpSum sum;
        for (const ExpSum& part : sums_) sum.add(part);
        log_prob = static_cast<float>(double{drawn.score} - sum.largest - std::log(sum.total));
      }
    }
    job_.token[row] = drawn.token;
    job_.log_prob[row] = log_prob;
  }

 private:
  // log p~ / temperature of a chunk.
  void score(int64_t chunk, float* out) const {
    log_rectified_.write(chunk, out);
    if (greedy_ || job_.temperature == 1) return;
    const int64_t count = log_rectified_.size_of(chunk);
    for (int64_t i = 0; i < count; i += kLanes) store(out + i, load(out + i) / job_.temperature);
  }

  // The row's scores, those of tokens that are not kept -inf.
  void filter() {
    log_rectified_.for_chunks([&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) score(chunk, scores_.data() + chunk * kChunk);
    });
    const int64_t count = static_cast<int64_t>(scores_.size());
    if (job_.top_k > 0) keep_top_k(scores_.data(), count, job_.top_k);
    if (job_.top_p < 1) keep_top_p(scores_.data(), count, job_.top_p);
  }

  Drawn draw(const RandomRow& random) {
    std::fill(drawn_.begin(), drawn_.end(), Drawn{});
    log_rectified_.for_chunks([&](int64_t begin, int64_t end) {
      Drawn best;
      Race race(random, best);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        alignas(64) float buffer[kChunk];
        if (!filtered_) score(chunk, buffer);
        const float* scores = filtered_ ? scores_.data() + chunk * kChunk : buffer;
        const int64_t first = chunk * kChunk, count = whole_vectors(log_rectified_.size_of(chunk));
        if (greedy_) {
          take_largest(scores, first, count, best);
        } else {
          sums_[chunk] = race.run(scores, first, count);
        }
      }
      drawn_[begin] = best;
    });
    Drawn best;
    for (const Drawn& drawn : drawn_) best.take(drawn);
    return best;
  }

  const RectifySample& job_;
  const bool greedy_, filtered_;
  LogRectified log_rectified_;
  std::vector<ExpSum> sums_;  // of the weights of every chunk
  std::vector<Drawn> drawn_;  // the best of every range of chunks, where it begins
  std::vector<float> scores_;
};

inline void rectify_sample(const RectifySample& job, int64_t begin, int64_t end) {
  Sampler sampler(job);
  for (int64_t row = begin; row < end; ++row) sampler.sample(row);
}

}  // namespace copilot::COPILOT_TARGET::sampling
