// One token from a row of log p~, as rectify's passes have left it.
//
// The token is the one of smallest log(E_v) - score_v. It is computed in double for the few tokens only that can win.

#include "philox.h"
#include "warp.h"

namespace copilot::COPILOT_TARGET::sampling {

// The largest of a row's scores; NaN if any score is NaN.
inline float largest_or_nan(const float* scores, int64_t count) {
  Floats largest = broadcast(kNothing);
  Ints nan{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats score = load(scores + i);
    largest = maximum(score, largest);
    nan |= score != score;
  }
  return any_lane(nan) ? std::numeric_limits<float>::quiet_NaN() : maximum(largest);
}

// Races the tokens of a row, in their order.
class Race {
 public:
  Race(const RandomRow& random, float largest) : random_(random), largest_(largest) {}

  void run(const float* scores, int64_t count) {
    for (int64_t i = 0; i < count; i += kSampleBlock) {
      alignas(64) float weights[kSampleBlock];
      Floats total{};
      Ints possible{};
      for (int64_t part = 0; part < kSampleBlock; part += kLanes) {
        const Floats weight = exp(load(scores + i + part) - largest_);
        total += weight;
        possible |= weight * reach_ >= 0x1p-53f;  // no E is smaller
        store(weights + part, weight);
      }
      total_ += sum(total);
      if (any_lane(possible)) race_block(scores + i, weights, i);
    }
  }

  int64_t token() const { return token_; }

  // The logarithm of the probability that its score stands for.
  float log_prob(float score) const { return static_cast<float>(double{score} - double{largest_} - std::log(total_)); }

 private:
  void race_block(const float* scores, const float* weights, int64_t first) {
    alignas(64) uint32_t words[kSampleBlock];
    alignas(64) float least[kSampleBlock];
    random_.words(first, kSampleBlock / 4, 0, words);
    Ints near{};
    for (int64_t part = 0; part < kSampleBlock; part += kLanes) {
      Words word;
      std::memcpy(&word, words + part, sizeof(word));
      // E = -log(U) >= 1 - U
      const Floats below = __builtin_convertvector(bits<Ints>(~word >> 8), Floats) * 0x1p-24f;
      near |= below <= load(weights + part) * reach_;
      store(least + part, below);
    }
    if (!any_lane(near)) return;
    for (int64_t i = 0; i < kSampleBlock; ++i) {
      if (weights[i] > 0.0f && least[i] <= weights[i] * reach_) enter(first + i, words[i], scores[i]);
    }
  }

  void enter(int64_t token, uint32_t upper_word, float score) {
    const double key = random_.log_exponential(token, upper_word) - score;
    if (key >= key_) return;
    key_ = key;
    token_ = token;
    // A token loses if its E / weight is above: the best so far, and more than rounding.
    reach_ = 1.0001f * std::exp(static_cast<float>(key + largest_));
  }

  const RandomRow random_;
  const float largest_;  // weights are exp(score - largest)
  double total_ = 0;     // of the weights
  double key_ = std::numeric_limits<double>::infinity();
  int64_t token_ = -1;
  float reach_ = std::numeric_limits<float>::infinity();
};

// Temperature, top-k and top-p. Returns the largest score.
inline float warp(const RectifySample& job, float* scores, int64_t count, float largest) {
  if (job.temperature != 1) {
    for (int64_t i = 0; i < count; i += kLanes) store(scores + i, load(scores + i) / job.temperature);
  }
  largest /= job.temperature;
  if (job.top_k > 0) keep_top_k(scores, count, job.top_k);
  if (job.top_p < 1) keep_top_p(scores, count, largest, job.top_p);
  return largest;
}

inline void sample_row(const RectifySample& job, int64_t row, float* scores) {
  const int64_t count = sample_row_size(job.vocabulary);
  const float largest = largest_or_nan(scores, count);
  if (!(largest > kNothing)) {
    job.token[row] = -1;
    job.log_prob[row] = std::numeric_limits<float>::quiet_NaN();
  } else if (job.temperature == 0) {
    job.token[row] = std::find(scores, scores + count, largest) - scores;
    job.log_prob[row] = largest;
  } else {
    Race race({job.seed, job.offset, static_cast<uint32_t>(row)}, warp(job, scores, count, largest));
    race.run(scores, count);
    job.token[row] = race.token();
    job.log_prob[row] = race.log_prob(scores[race.token()]);
  }
}

}  // namespace copilot::COPILOT_TARGET::sampling
