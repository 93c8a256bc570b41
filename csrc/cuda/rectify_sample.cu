// One token a row from p~ of Eq. 8; see rectify.cuh for p~ and csrc/cpu/rectify_sample.h for the draw.
//
// The floor is z and a dense delta read once; nothing else of size V is moved. Where the slices of a row fit into a
// cluster of blocks, log p~ stays in shared memory; else rectify writes it, and one block draws from each row.
//
// The token is the one of smallest log(E_v) - score_v. Bounds of it in float tell the few tokens that can win, for
// which alone it is computed in double.

#include <climits>

#include "filters.cuh"
#include "philox.cuh"
#include "rectify.cuh"

namespace copilot::cuda {
namespace {

// ---- The largest score ----

struct Best {
  float score;
  int token;
};

// NaN comes first, and of equal scores the smaller token.
struct Better {
  __device__ __forceinline__ Best operator()(Best a, Best b) const {
    const bool first = a.score != a.score || a.score > b.score || (a.score == b.score && a.token < b.token);
    return {first ? a.score : b.score, first ? a.token : b.token};
  }
};

__device__ __forceinline__ Best no_best() { return {-kInfinity, INT_MAX}; }

// Applies the temperature too. Returns the best of this thread.
__device__ __forceinline__ Best scale(const Scores& scores, float temperature) {
  const bool changes = temperature != 0.0f && temperature != 1.0f;
  Best best = no_best();
  scores.each_pack([&](int at, const Pack<float>& pack) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float score = changes ? pack.at[i] / temperature : pack.at[i];
      if (score > best.score || score != score) best = {score, scores.first + at + i};
      if (changes && at + i < scores.count) scores.values[at + i] = score;
    }
  });
  return best;
}

// ---- The race ----

struct Runner {
  double key;  // log(E) - score
  int token;
  float score;
};

__device__ __forceinline__ Runner no_runner() { return {static_cast<double>(kInfinity), INT_MAX, -kInfinity}; }

struct Earlier {
  __device__ __forceinline__ Runner operator()(const Runner& a, const Runner& b) const {
    const bool first = a.key < b.key || (a.key == b.key && a.token < b.token);
    return {first ? a.key : b.key, first ? a.token : b.token, first ? a.score : b.score};
  }
};

// Of a block.
struct Result {
  Runner winner;
  float largest, total;  // the sum of exp(score - largest)
};

// What the threads of a block learn from each other before any key is computed in double.
struct Screen {
  float reach;  // no key above it wins
  float total;
};

struct MergeScreens {
  __device__ __forceinline__ Screen operator()(const Screen& a, const Screen& b) const {
    return {fminf(a.reach, b.reach), a.total + b.total};
  }
};

// Keys in float are relative to `largest`, and exact to this. In double they are not, and may be equal where the
// largest score itself is large.
__device__ __forceinline__ float margin(float largest) { return fmaf(fabsf(largest), 0x1p-50f, 1e-3f); }

// Not above log(E) + how far the token's score is behind the largest: E = -log(U) >= 1 - U, here in whole 2^-23. E is
// between 2^-53 and 37, so that who is 100 behind never wins.
__device__ __forceinline__ float least_key(uint32_t upper_word, float difference) {
  const float below = __uint_as_float(upper_word >> 9 ^ 0x3FFFFFFFu) - 1.0f;
  return difference > -100.0f ? __logf(below) - difference : kInfinity;
}

// Not below it, given the above.
__device__ __forceinline__ float largest_key(float least_key, float difference) {
  const float above = 1.0001f * expf(least_key + difference) + 0x1p-23f;  // 1 - U
  return logf(above < 1.0f ? -logf(1.0f - above) : 37.0f) - difference;
}

// `largest` is a score that none of the block's is above.
__device__ __forceinline__ Result race(const RandomRow& random, const Scores& scores, float largest) {
  const float shift = largest > -kInfinity ? largest : 0.0f;
  float least = kInfinity, second = kInfinity, total = 0.0f;  // bounds of this thread's two first
  int first_at = INT_MAX;
  scores.each_pack([&](int at, const Pack<float>& pack) {
    const Words words = random.words(scores.first + at, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float difference = pack.at[i] - shift;
      total += expf(difference);
      const float key = least_key(words.of_token[i], difference);
      second = fminf(second, fmaxf(key, least));
      if (key < least) {
        least = key;
        first_at = at + i;
      }
    }
  });
  const float reach = first_at < INT_MAX ? largest_key(least, scores.values[first_at] - shift) : kInfinity;
  const Screen screen = block_reduce(Screen{reach, total}, Screen{kInfinity, 0.0f}, MergeScreens{});

  const float limit = screen.reach + margin(shift);
  Runner winner = no_runner();
  if (first_at < INT_MAX && least <= limit) {
    // One token, or all packs.
    const int step = second > limit ? scores.count : 4 * blockDim.x;
    for (int at = second > limit ? first_at & ~3 : 4 * threadIdx.x; at < scores.count; at += step) {
      const Words words = random.words(scores.first + at, 0);
#pragma unroll 1
      for (int i = 0; i < 4 && at + i < scores.count; ++i) {
        const int token = scores.first + at + i;
        const float score = scores.values[at + i];
        if (!(least_key(words.of(token), score - shift) <= limit)) continue;
        winner = Earlier{}({random.log_exponential(token, words.of(token)) - score, token, score}, winner);
      }
    }
  }
  winner = block_reduce(winner, no_runner(), Earlier{});
  return {winner, largest, screen.total};
}

// ---- The draw ----

// Of the blocks' results in their order.
__device__ __forceinline__ void write_result(const Sampling& job, int64_t row, const Result* results, unsigned count) {
  Runner winner = results[0].winner;
  float largest = results[0].largest, total = 0.0f;
  for (unsigned i = 1; i < count; ++i) {
    winner = Earlier{}(winner, results[i].winner);
    largest = max_or_nan(largest, results[i].largest);
  }
  for (unsigned i = 0; i < count; ++i) total += results[i].total * expf(results[i].largest - largest);
  const bool exists = largest > -kInfinity;  // NaN is not
  const double log_prob = static_cast<double>(winner.score) - largest - logf(total);
  job.token[row] = exists ? winner.token : -1;
  job.log_prob[row] = !exists                ? __uint_as_float(0x7FC00000u)
                      : job.temperature == 0 ? largest
                                             : static_cast<float>(log_prob);
}

// Draws from the row whose scores the blocks of this cluster hold. All threads of the cluster call it.
__device__ __forceinline__ void draw(const Sampling& job, int64_t row, const Scores& scores) {
  using Results = Result[kMostSlices];
  COPILOT_SHARED(Results, results);
  // Read ahead of their use.
  const RandomRow random{static_cast<uint64_t>(*job.seed), static_cast<uint64_t>(*job.offset),
                         static_cast<uint32_t>(row)};
  const bool greedy = job.temperature == 0.0f;
  const bool filtered = !greedy && (job.top_k > 0 || job.top_p < 1.0);
  Best best = block_reduce(scale(scores, job.temperature), no_best(), Better{});
  if (filtered) {
    best.score = cluster_reduce(best.score, -kInfinity, max_or_nan);
    if (best.score > -kInfinity) {
      Filters filters(scores, best.score);
      if (job.top_k > 0) filters.keep_top_k(job.top_k);
      if (job.top_p < 1.0) filters.keep_top_p(job.top_p);
    }
  }
  const Result result = greedy ? Result{{-static_cast<double>(best.score), best.token, best.score}, best.score, 1.0f}
                               : race(random, scores, best.score);
  if (threadIdx.x == 0) (*of_peer(&results, 0))[cluster_rank()] = result;
  cluster_sync();
  if (threadIdx.x == 0 && cluster_rank() == 0) write_result(job, row, results, cluster_size());
}

__global__ void __launch_bounds__(kSliceThreads, 2)
    draw_from_slices(const __grid_constant__ Rectification job, const __grid_constant__ Sampling sampling) {
  RowSlice slice(job);
  slice.load();
  slice.finish(slice.solve<Exchange::kCluster>());
  draw(sampling, slice.row(), {slice.values(), slice.first(), slice.count(), true});
}

__global__ void __launch_bounds__(kSliceThreads, 2)
    draw_from_rows(float* log_rectified, int vocabulary, const __grid_constant__ Sampling sampling) {
  float* row = log_rectified + int64_t{blockIdx.x} * vocabulary;
  draw(sampling, blockIdx.x, {row, 0, vocabulary, is_aligned(row)});
}

}  // namespace

int64_t rectify_sample_scratch(int64_t rows, int64_t vocabulary) {
  if (split_of(vocabulary, current_device()).cluster) return 0;
  return rows * vocabulary * static_cast<int64_t>(sizeof(float)) + rectify_scratch(rows, vocabulary);
}

void rectify_sample(const RectifyInputs& inputs, const Sampling& sampling, void* scratch, Stream stream) {
  if (inputs.vocabulary >= kMostTokens) throw std::runtime_error("rectify_sample takes fewer than 2^20 tokens");
  const Rectification job = rectification(inputs, scratch);
  if (job.split.cluster) return launch(draw_from_slices, slice_launch(job, stream), job, sampling);
  float* log_rectified = static_cast<float*>(scratch);
  rectify(inputs, log_rectified, log_rectified + inputs.rows * inputs.vocabulary, stream);
  launch(draw_from_rows, {.blocks = inputs.rows, .threads = kSliceThreads, .stream = stream}, log_rectified,
         static_cast<int>(inputs.vocabulary), sampling);
}

}  // namespace copilot::cuda
