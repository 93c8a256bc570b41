// Top-k and top-p on one row of scores: what is not kept becomes -inf. The row ends with a whole vector.

namespace copilot::COPILOT_TARGET::sampling {

// Keeps all ties of the k-th.
inline void keep_top_k(float* scores, int64_t count, int64_t k) {
  Largest largest(k);
  float smallest = std::numeric_limits<float>::infinity();
  for (const Entry& kept : largest.of(scores, count, [](auto...) {})) smallest = std::min(smallest, kept.value);
  for (int64_t i = 0; i < count; ++i) scores[i] = scores[i] >= smallest ? scores[i] : kNothing;
}

struct Ranked {
  float score, weight;
  int32_t token;

  bool operator<(const Ranked& other) const {
    return score > other.score || (score == other.score && token < other.token);
  }
};

// The last token of the smallest set, taken in the order of Ranked, whose weight reaches `target`.
inline Ranked last_of_top_p(std::vector<Ranked>& tokens, double target) {
  auto begin = tokens.begin(), end = tokens.end();
  while (end - begin > 32) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end);
    double missing = target;
    for (auto token = begin; token != middle; ++token) missing -= token->weight;
    if (missing <= 0) {
      end = middle;
    } else {
      target = missing;
      begin = middle;
    }
  }
  std::sort(begin, end);
  for (auto token = begin; token != end; ++token) {
    target -= token->weight;
    if (target <= 0) return *token;
  }
  return end[-1];
}

// Scores fall into bins of 1/16 below the largest, those more than 32 below it into the last one.
constexpr int64_t kBins = 512;
inline Ints bin_of(Floats score, float largest) {
  return __builtin_convertvector(minimum((largest - score) * 16.0f, broadcast(kBins - 1)), Ints);
}

// Only the bin in which the mass is reached is sorted. `largest` is the largest score.
inline void keep_top_p(float* scores, int64_t count, float largest, double top_p) {
  double mass[kBins] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats score = load(scores + i);
    if (!any_lane(score > kNothing)) continue;
    const Floats weight = exp(score - largest);
    const Ints bin = bin_of(score, largest);
    for (int64_t lane = 0; lane < kLanes; ++lane) mass[bin[lane]] += weight[lane];
  }
  const double target = top_p * std::accumulate(mass, mass + kBins, 0.0);
  double above = 0;
  int32_t bin = 0;
  for (; above + mass[bin] < target; ++bin) above += mass[bin];

  std::vector<Ranked> tokens;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats score = load(scores + i);
    const Ints inside = (bin_of(score, largest) == bin) & (score > kNothing);
    if (!any_lane(inside)) continue;
    const Floats weight = exp(score - largest);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if (inside[lane]) tokens.push_back({score[lane], weight[lane], static_cast<int32_t>(i + lane)});
    }
  }
  const Ranked last = last_of_top_p(tokens, target - above);
  for (int64_t i = 0; i <= last.token; ++i) scores[i] = scores[i] >= last.score ? scores[i] : kNothing;
  for (int64_t i = last.token + 1; i < count; ++i) scores[i] = scores[i] > last.score ? scores[i] : kNothing;
}

}  // namespace copilot::COPILOT_TARGET::sampling
