// log p~ of Eq. 8, chunk by chunk.
//
// Beside the Pilot's row z stands a second one, w, and the same sums are taken of both:
//   simplex  w = z + delta, so that q = softmax(w);
//   logit    w = z + lambda delta, of which alone p~ = softmax(w) is made;
//   linear   w = z where delta = 0, else -infinity: what no correction touches.
// Candidates change w in few chunks; in the others its sums are those of z, and nothing is computed twice. No sum is
// ever corrected by a difference, so that a rest of 1e-10 beside a candidate of 1 is exact. Without any correction w is
// z and so are its sums, to the last bit: then p~ is p^, whatever the strength and the rectifier.

namespace copilot::COPILOT_TARGET::rectification {

constexpr int64_t kChunk = kRectifyChunk;
constexpr int64_t kUnrolled = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
static_assert(kChunk % (kUnrolled * kLanes) == 0);

// ---- Chunks ----

// A chunk of a row as kChunk floats: the row itself where it can be, else `buffer`, with `fill` behind the row's end.
inline const float* chunk_of(const Rows& rows, int64_t row, int64_t start, int64_t count, float fill, float* buffer) {
  if (rows.dtype == DType::kFloat32 && count == kChunk) {
    return static_cast<const float*>(rows.data) + row * rows.stride + start;
  }
  with_row(rows, row, [&](const auto* from) {
    for (int64_t i = 0; i < kChunk; i += kLanes) {
      const int64_t left = count - i;
      store(buffer + i, left >= kLanes ? load(from + start + i)
                        : left > 0     ? load_some(from + start + i, left, fill)
                                       : broadcast(fill));
    }
  });
  return buffer;
}

// The candidates of one row whose tokens lie in a range; they are sorted.
struct Candidates {
  const Candidate* begin;
  const Candidate* end;
};

inline Candidates candidates_of(const Rectify& job, int64_t row) {
  return {job.candidates + row * job.n_candidates, job.candidates + (row + 1) * job.n_candidates};
}

// Those of `from` below `token`; `from` keeps the others.
inline Candidates take_below(Candidates& from, int64_t token) {
  const Candidate* begin = from.begin;
  while (from.begin != from.end && from.begin->token < token) ++from.begin;
  return {begin, from.begin};
}

// f(tokens, deltas, count) for up to kLanes candidates at a time; behind `count` the deltas are 0 and the tokens in
// range.
template <class F>
inline void by_lanes(Candidates some, F&& f) {
  for (; some.begin != some.end; some.begin += std::min<int64_t>(kLanes, some.end - some.begin)) {
    const int64_t count = std::min<int64_t>(kLanes, some.end - some.begin);
    int64_t tokens[kLanes];
    float deltas[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      tokens[lane] = some.begin[lane < count ? lane : 0].token;
      deltas[lane] = lane < count ? some.begin[lane].delta : 0.0f;
    }
    f(tokens, load(deltas), count);
  }
}

template <class T>
inline Floats gather(const T* from, const int64_t* tokens) {
  T some[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) some[lane] = from[tokens[lane]];
  return load(some);
}

inline Floats gather(const Rows& rows, int64_t row, const int64_t* tokens) {
  return with_row(rows, row, [&](const auto* from) { return gather(from, tokens); });
}

// ---- Sums of exponentials ----

// One vector for each chunk, lane by lane: the maximum, and the sum of exp(x - maximum).
struct Partials {
  float* max;
  float* sum;
};

// The caller's scratch of one row.
struct RowPartials {
  RowPartials(const Rectify& job, float* scratch)
      : size(rectify_chunks(job.vocabulary) * kLanes),
        pilot{scratch, scratch + size},
        corrected{scratch + 2 * size, scratch + 3 * size},
        moved(scratch + 4 * size) {}

  int64_t size;
  Partials pilot;      // of z
  Partials corrected;  // of w
  float* moved;        // the sums of the corrected entries of the linear p~, with a dense delta
};

inline void reduce(const float* chunk, const Partials& partials, int64_t at) {
  Floats largest[kUnrolled], sums[kUnrolled] = {};
  for (Floats& part : largest) part = broadcast(-kInfinity);
  for (int64_t i = 0; i < kChunk; i += kUnrolled * kLanes) {
    for (int64_t part = 0; part < kUnrolled; ++part) {
      largest[part] = maximum(load(chunk + i + part * kLanes), largest[part]);
    }
  }
  const Floats max = maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3]));
  const Floats shift = max == -kInfinity ? Floats{} : max;
  for (int64_t i = 0; i < kChunk; i += kUnrolled * kLanes) {
    for (int64_t part = 0; part < kUnrolled; ++part) sums[part] += exp(load(chunk + i + part * kLanes) - shift);
  }
  store(partials.max + at * kLanes, max);
  store(partials.sum + at * kLanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The logarithm of a sum of exponentials is max + log_sum. NaN if any entry is, or all are -infinity.
struct LogSum {
  float max;
  float log_sum;
};

inline LogSum combine(const Partials& partials, int64_t size) {
  Floats largest = broadcast(-kInfinity), total = {};
  for (int64_t i = 0; i < size; i += kLanes) largest = maximum(load(partials.max + i), largest);
  const float max = maximum(largest);
  for (int64_t i = 0; i < size; i += kLanes) total += load(partials.sum + i) * exp(load(partials.max + i) - max);
  return {max, log(sum(total))};
}

// ---- Rectified entries ----

// w of z and delta.
inline Floats corrected(const Rectify& job, Floats z, Floats delta) {
  switch (job.rectifier) {
    case Rectifier::kLogit:
      return z + static_cast<float>(job.strength) * delta;
    case Rectifier::kLinear:
      return delta == 0.0f ? z : broadcast(-kInfinity);
    default:
      return z + delta;
  }
}

// 1 - weight + weight exp(difference), and what its rounding has lost where it is near 1.
struct Mean {
  Floats value;
  Floats lost;
};

// For difference <= 0; exactly 1 at 0. What is below e^-87, or NaN (of equal infinities), counts as that.
inline Mean mean_of(Floats difference, Floats weight, Floats one_minus_weight) {
  const Exponential e = exponential_of(maximum(difference, broadcast(-87.0f)));
  const Floats scaled = e.scale * e.expm1;  // exp(difference) - scale
  const Floats mean = one_minus_weight + weight * (scaled + e.scale);
  const Floats exact = weight * (scaled + (e.scale - 1.0f));  // mean - 1, where that is near 0
  return {mean, difference > -1.0f ? exact - (mean - 1.0f) : Floats{}};
}

inline Floats log_of(const Mean& mean) {
  const Logarithm parts = logarithm_of(mean.value);
  return log_from(parts.n, parts.m + mean.lost * parts.inverse_scale);
}

// p~ of the simplex mixture relative to the larger of p and q, from log q - log p.
inline Mean mix(const Rectify& job, Floats difference) {
  const Floats of_q = broadcast(static_cast<float>(job.strength));
  const Floats of_p = broadcast(static_cast<float>(1.0 - job.strength));
  const Ints q_is_larger = difference > 0.0f;
  const Floats negative = bits<Floats>(bits<Words>(difference) | 0x80000000u);  // -|difference|
  return mean_of(negative, q_is_larger ? of_p : of_q, q_is_larger ? of_q : of_p);
}

// p^ + lambda delta of the linear rectifier, clamped.
inline Floats moved(const Rectify& job, const LogSum& pilot, Floats z, Floats delta) {
  const Floats probability = exp(z - pilot.max - pilot.log_sum) + static_cast<float>(job.strength) * delta;
  return (z == -kInfinity) | (probability < 0.0f) ? Floats{} : probability;
}

// `moved` where there is a correction, else 0.
inline Floats moved_only(const Rectify& job, const LogSum& pilot, Floats z, Floats delta) {
  return delta == 0.0f ? Floats{} : moved(job, pilot, z, delta);
}

// What all entries of a row share. An entry without correction becomes z - max - shift.
struct Solution {
  LogSum pilot;
  LogSum corrected;
  float max;
  float shift;
  // Of the linear p~: the logarithm of its sum, and whether that is 0, so that p^ stands for it.
  float log_total;
  bool all_zero;
};

inline void solve_simplex(const Rectify& job, Solution& row) {
  // log q - log p of every entry without correction
  const float difference = row.pilot.max - row.corrected.max + (row.pilot.log_sum - row.corrected.log_sum);
  if (std::isnan(difference)) row.pilot.log_sum = difference;  // so that every entry is
  const LogSum& larger = difference > 0.0f ? row.corrected : row.pilot;
  row.max = larger.max;
  row.shift = larger.log_sum - log_of(mix(job, broadcast(difference)))[0];
}

inline float total_moved(const Rectify& job, int64_t row, const RowPartials& partials, const LogSum& pilot) {
  Floats total = {};
  if (job.delta.data != nullptr) {
    for (int64_t i = 0; i < partials.size; i += kLanes) total += load(partials.moved + i);
  }
  by_lanes(candidates_of(job, row), [&](const int64_t* tokens, Floats delta, int64_t) {
    total += moved_only(job, pilot, gather(job.logits, row, tokens), delta);
  });
  return sum(total);
}

inline void solve_linear(const Rectify& job, int64_t index, const RowPartials& partials, Solution& row) {
  const float log_rest = row.corrected.max - row.pilot.max + (row.corrected.log_sum - row.pilot.log_sum);
  const bool no_rest = row.corrected.max == -kInfinity;
  const float moved = total_moved(job, index, partials, row.pilot);
  row.all_zero = no_rest && moved == 0.0f;
  // A rest alone stays a logarithm, however small it is.
  row.log_total = row.all_zero ? 0.0f : moved == 0.0f ? log_rest : log((no_rest ? 0.0f : exp(log_rest)) + moved);
  row.max = row.pilot.max;
  row.shift = row.pilot.log_sum + row.log_total;
}

inline Solution solve(const Rectify& job, int64_t index, const RowPartials& partials) {
  Solution row = {};
  row.corrected = combine(partials.corrected, partials.size);
  row.max = row.corrected.max;
  row.shift = row.corrected.log_sum;
  if (job.rectifier == Rectifier::kLogit) return row;
  row.pilot = combine(partials.pilot, partials.size);
  job.rectifier == Rectifier::kSimplex ? solve_simplex(job, row) : solve_linear(job, index, partials, row);
  return row;
}

inline Floats rectified_linear(const Rectify& job, const Solution& row, Floats z, Floats delta) {
  const Floats unchanged = z - row.max - row.shift;
  if (row.all_zero) return unchanged;
  return delta == 0.0f ? unchanged : log(moved(job, row.pilot, z, delta)) - row.log_total;
}

// The simplex p~, as its logarithm takes it.
struct Mixture {
  Floats log_larger;  // of p and q
  Mean mean;
};

inline Mixture mixture(const Rectify& job, const Solution& row, Floats z, Floats delta) {
  const Floats log_p = z - row.pilot.max - row.pilot.log_sum;
  const Floats log_q = z + delta - row.corrected.max - row.corrected.log_sum;
  return {maximum(log_q, log_p), mix(job, log_q - log_p)};
}

inline Floats rectified_simplex(const Rectify& job, const Solution& row, Floats z, Floats delta) {
  const Mixture p = mixture(job, row, z, delta);
  return p.log_larger + log_of(p.mean);
}

// f(what makes log p~ of z and delta).
template <class F>
inline void with_rectified(const Rectify& job, const Solution& row, F&& f) {
  switch (job.rectifier) {
    case Rectifier::kLogit:
      return f([&](Floats z, Floats delta) { return corrected(job, z, delta) - row.max - row.shift; });
    case Rectifier::kLinear:
      return f([&](Floats z, Floats delta) { return rectified_linear(job, row, z, delta); });
    default:
      return f([&](Floats z, Floats delta) { return rectified_simplex(job, row, z, delta); });
  }
}

// f(i, log p~ of kLanes tokens from i on) for a chunk. The simplex p~ takes two loops: of one as long as both a
// processor has too few vectors in work at a time.
template <class F>
inline void rectified_chunk(const Rectify& job, const Solution& row, const float* z, const float* delta, F&& f) {
  if (job.rectifier != Rectifier::kSimplex) {
    with_rectified(job, row, [&](auto&& rectified) {
      for (int64_t i = 0; i < kChunk; i += kLanes) f(i, rectified(load(z + i), load(delta + i)));
    });
    return;
  }
  alignas(64) float log_larger[kChunk], mean[kChunk], lost[kChunk];
  for (int64_t i = 0; i < kChunk; i += kLanes) {
    const Mixture p = mixture(job, row, load(z + i), load(delta + i));
    store(log_larger + i, p.log_larger);
    store(mean + i, p.mean.value);
    store(lost + i, p.mean.lost);
  }
  for (int64_t i = 0; i < kChunk; i += kLanes) {
    f(i, load(log_larger + i) + log_of({load(mean + i), load(lost + i)}));
  }
}

// ---- Passes over the chunks [first, last) of a row ----

struct Chunk {
  int64_t start;
  int64_t count;
};

inline Chunk chunk_at(const Rectify& job, int64_t at) {
  return {at * kChunk, std::min(kChunk, job.vocabulary - at * kChunk)};
}

inline const float* logits_of(const Rectify& job, int64_t row, Chunk chunk, float* buffer) {
  return chunk_of(job.logits, row, chunk.start, chunk.count, -kInfinity, buffer);
}

inline const float* delta_of(const Rectify& job, int64_t row, Chunk chunk, float* buffer) {
  return chunk_of(job.delta, row, chunk.start, chunk.count, 0.0f, buffer);
}

// A chunk of w: `logits` itself where nothing is corrected, else `buffer`.
inline const float* corrected_of(const Rectify& job, const float* logits, const float* delta, float* buffer) {
  for (int64_t i = 0; i < kChunk; i += kLanes) store(buffer + i, corrected(job, load(logits + i), load(delta + i)));
  return buffer;
}

inline const float* corrected_of(const Rectify& job, const float* logits, Candidates candidates, int64_t start,
                                 float* buffer) {
  if (candidates.begin == candidates.end) return logits;
  std::memcpy(buffer, logits, kChunk * sizeof(float));
  by_lanes(candidates, [&](int64_t* tokens, Floats delta, int64_t count) {
    for (int64_t lane = 0; lane < kLanes; ++lane) tokens[lane] -= start;
    const Floats values = corrected(job, gather(logits, tokens), delta);
    for (int64_t lane = 0; lane < count; ++lane) buffer[tokens[lane]] = values[lane];
  });
  return buffer;
}

// First pass: the sums of z and w.
inline void reduce_row(const Rectify& job, int64_t row, int64_t first, int64_t last, float* scratch) {
  const RowPartials partials(job, scratch);
  float logits_buffer[kChunk], delta_buffer[kChunk], corrected_buffer[kChunk];
  Candidates candidates = candidates_of(job, row);
  take_below(candidates, first * kChunk);
  for (int64_t at = first; at < last; ++at) {
    const Chunk chunk = chunk_at(job, at);
    const float* z = logits_of(job, row, chunk, logits_buffer);
    const float* w =
        job.delta.data != nullptr
            ? corrected_of(job, z, delta_of(job, row, chunk, delta_buffer), corrected_buffer)
            : corrected_of(job, z, take_below(candidates, chunk.start + kChunk), chunk.start, corrected_buffer);
    const bool needs_pilot = job.rectifier != Rectifier::kLogit;
    if (needs_pilot) reduce(z, partials.pilot, at);
    if (w != z || !needs_pilot) {
      reduce(w, partials.corrected, at);
    } else {
      store(partials.corrected.max + at * kLanes, load(partials.pilot.max + at * kLanes));
      store(partials.corrected.sum + at * kLanes, load(partials.pilot.sum + at * kLanes));
    }
  }
}

// Second pass, for a dense delta of the linear rectifier only: the mass of the corrected entries.
inline void total_row(const Rectify& job, int64_t row, int64_t first, int64_t last, float* scratch) {
  const RowPartials partials(job, scratch);
  const LogSum pilot = combine(partials.pilot, partials.size);
  float logits_buffer[kChunk], delta_buffer[kChunk];
  for (int64_t at = first; at < last; ++at) {
    const Chunk chunk = chunk_at(job, at);
    const float* z = logits_of(job, row, chunk, logits_buffer);
    const float* delta = delta_of(job, row, chunk, delta_buffer);
    Floats total = {};
    for (int64_t i = 0; i < kChunk; i += kLanes) total += moved_only(job, pilot, load(z + i), load(delta + i));
    store(partials.moved + at * kLanes, total);
  }
}

// Last pass: log p~.
inline void write_row(const Rectify& given, int64_t row, int64_t first, int64_t last, float* scratch) {
  const Rectify job = given;  // a copy that no store can change stays in registers
  const Solution solution = solve(job, row, RowPartials(job, scratch));
  float logits_buffer[kChunk], delta_buffer[kChunk], out_buffer[kChunk];
  float* out = job.out + row * job.out_stride;
  for (int64_t at = first; at < last; ++at) {
    const Chunk chunk = chunk_at(job, at);
    const float* z = logits_of(job, row, chunk, logits_buffer);
    float* to = chunk.count == kChunk ? out + chunk.start : out_buffer;
    const auto write = [&](auto&& put) {
      if (job.delta.data != nullptr) {
        const float* delta = delta_of(job, row, chunk, delta_buffer);
        rectified_chunk(job, solution, z, delta, [&](int64_t i, Floats value) { put(to + i, value); });
      } else {
        for (int64_t i = 0; i < kChunk; i += kLanes) put(to + i, load(z + i) - solution.max - solution.shift);
      }
    };
    if (job.streams && to != out_buffer && reinterpret_cast<uintptr_t>(to) % sizeof(Floats) == 0) {
      write([](float* at, Floats value) { stream(at, value); });
    } else {
      write([](float* at, Floats value) { store(at, value); });
    }
    if (to == out_buffer) std::memcpy(out + chunk.start, out_buffer, chunk.count * sizeof(float));
  }
  if (job.streams) streamed();
  Candidates candidates = candidates_of(job, row);
  take_below(candidates, first * kChunk);
  with_rectified(job, solution, [&](auto&& rectified) {
    by_lanes(take_below(candidates, last * kChunk), [&](const int64_t* tokens, Floats delta, int64_t count) {
      const Floats values = rectified(gather(job.logits, row, tokens), delta);
      for (int64_t lane = 0; lane < count; ++lane) out[tokens[lane]] = values[lane];
    });
  });
}

}  // namespace copilot::COPILOT_TARGET::rectification
