// One token a row from p~ of Eq. 8; see rectify.cuh for p~ and csrc/cpu/rectify_sample.h for the draw.
//
// The floor is z and a dense delta read once; nothing else of size V is moved. Where the slices of a row fit into a
// cluster of blocks, log p~ stays in shared memory; else rectify writes it, and one block draws from each row.
//
// The token is the one of smallest log(E_v) - score_v. Bounds of it in float tell the winner, or else the few tokens
// that can win, for which alone it is computed in double. With a small top-k the blocks list the tokens that may be
// among the k, and one block draws from the lists: no other token has its E_v drawn.

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

// x / temperature, rounded as a division is, with the remainder's help (Markstein, 1990); a temperature of 0 changes
// nothing.
class Scale {
 public:
  __device__ __forceinline__ explicit Scale(float temperature)
      : temperature_(temperature), inverse_(1.0f / temperature), changes_(temperature != 0.0f && temperature != 1.0f) {}

  __device__ __forceinline__ bool changes() const { return changes_; }

  __device__ __forceinline__ float operator()(float x) const {
    if (!changes_) return x;
    const float near = x * inverse_;
    if (!(fabsf(near) < kInfinity)) return near;
    const float nearer = fmaf(fmaf(-near, temperature_, x), inverse_, near);
    return fmaf(fmaf(-nearer, temperature_, x), inverse_, nearer);
  }

 private:
  const float temperature_, inverse_;
  const bool changes_;
};

// The better of `best` and the scores of a pack, of the tokens from `token` on.
__device__ __forceinline__ void improve(Best& best, const Pack<float>& scores, int token) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (scores.at[i] > best.score || scores.at[i] != scores.at[i]) best = {scores.at[i], token + i};
  }
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

// Of a block: the winner, and what its key lies between.
struct Result {
  double low, high;
  int token;
  float score;
  float largest, total;  // the sum of exp(score - largest)
};

__device__ __forceinline__ Result no_result() {
  return {static_cast<double>(kInfinity), static_cast<double>(kInfinity), INT_MAX, -kInfinity, -kInfinity, 0.0f};
}

// What the threads of a block learn from each other before any key is computed in double.
struct Screen {
  float reach;  // no key above it wins
  double total;
};

struct MergeScreens {
  __device__ __forceinline__ Screen operator()(const Screen& a, const Screen& b) const {
    return {fminf(a.reach, b.reach), a.total + b.total};
  }
};

// Those of them that can win, and the first one.
struct Contenders {
  float least;
  int token, count;
};

struct MergeContenders {
  __device__ __forceinline__ Contenders operator()(const Contenders& a, const Contenders& b) const {
    const bool first = a.least < b.least || (a.least == b.least && a.token < b.token);
    return {first ? a.least : b.least, first ? a.token : b.token, a.count + b.count};
  }
};

// Keys in float are relative to `largest`, and exact to this. In double they are not, and may be equal where the
// largest score itself is large.
__device__ __forceinline__ float margin(float largest) { return fmaf(fabsf(largest), 0x1p-50f, 1e-3f); }

// Not above log(E) + how far the token's score is behind the largest: E = -log(U) >= 1 - U, here in whole 2^-23. E is
// between 2^-53 and 37, so that who is 100 behind never wins.
__device__ __forceinline__ float least_key(uint32_t upper_word, float difference) {
  const float below = __uint_as_float(upper_word >> 9 ^ 0x3FFFFFFFu) - 1.0f;
  return difference > -100.0f ? fast_log(below) - difference : kInfinity;
}

// Not below it, given the above.
__device__ __forceinline__ float largest_key(float least_key, float difference) {
  const float above = 1.0001f * expf(least_key + difference) + 0x1p-23f;  // 1 - U
  return logf(above < 1.0f ? -logf(1.0f - above) : 37.0f) - difference;
}

// Not above it either, and close.
__device__ __forceinline__ float closer_key(float least_key, float difference) {
  const float below = 0.9999f * expf(least_key + difference);  // 1 - U
  return fmaxf(least_key, logf(-logf(1.0f - below)) - difference - 1e-4f);
}

// `largest` is a score that none of the block's is above.
__device__ __forceinline__ Result race(const RandomRow& random, const Scores& scores, float largest) {
  const float shift = largest > -kInfinity ? largest : 0.0f;
  float least = kInfinity, second = kInfinity;  // bounds of this thread's two first
  double total = 0.0;                           // a long sum of equal terms would drift
  int first_at = INT_MAX;
  scores.each_pack([&](int at, const Pack<float>& pack) {
    const Words words = random.words(scores.first + at, 0);
    float weights[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float difference = pack.at[i] - shift;
      weights[i] = fast_exp(difference);
      const float key = least_key(words.of_token[i], difference);
      second = fminf(second, fmaxf(key, least));
      if (key < least) {
        least = key;
        first_at = at + i;
      }
    }
    total += (weights[0] + weights[1]) + (weights[2] + weights[3]);
  });
  const float reach = first_at < INT_MAX ? largest_key(least, scores.values[first_at] - shift) : kInfinity;
  const Screen screen = block_reduce(Screen{reach, total}, Screen{kInfinity, 0.0}, MergeScreens{});
  const float block_total = static_cast<float>(screen.total);

  const float limit = screen.reach + margin(shift);
  bool contends = first_at < INT_MAX && least <= limit;
  if (contends && second > limit) {
    least = closer_key(least, scores.values[first_at] - shift);
    contends = least <= limit;
  }
  const Contenders contenders = block_reduce(
      contends ? Contenders{least, scores.first + first_at, second > limit ? 1 : 2} : Contenders{kInfinity, INT_MAX, 0},
      Contenders{kInfinity, INT_MAX, 0}, MergeContenders{});
  if (contenders.count == 0) return {no_runner().key, no_runner().key, INT_MAX, -kInfinity, largest, block_total};
  if (contenders.count == 1) {  // nearly always: no key is needed
    return {static_cast<double>(contenders.least) - shift,
            static_cast<double>(limit) - shift,
            contenders.token,
            scores.values[contenders.token - scores.first],
            largest,
            block_total};
  }
  Runner winner = no_runner();
  if (contends) {
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
  return {winner.key, winner.key, winner.token, winner.score, largest, block_total};
}

// ---- The draw ----

struct Smaller {
  __device__ __forceinline__ double operator()(double a, double b) const { return a < b ? a : b; }
};

__device__ __forceinline__ void write(const Sampling& job, int64_t row, int token, float score, float largest,
                                      float total) {
  const bool exists = largest > -kInfinity;  // NaN is not
  job.token[row] = exists ? token : -1;
  job.log_prob[row] = !exists                ? __uint_as_float(0x7FC00000u)
                      : job.temperature == 0 ? largest
                                             : static_cast<float>(static_cast<double>(score) - largest - logf(total));
}

// Of the blocks' results, by a warp.
__device__ __forceinline__ void write_result(const Sampling& job, int64_t row, const RandomRow& random,
                                             const Result* results, unsigned count) {
  Result mine = threadIdx.x < count ? results[threadIdx.x] : no_result();
  const float largest = warp_reduce(mine.largest, max_or_nan);
  const float total = warp_reduce(mine.total * expf(mine.largest - largest), Add{});
  const bool contends = mine.low <= warp_reduce(mine.high, Smaller{});
  if (__popc(__ballot_sync(kFullMask, contends)) > 1 && contends && mine.low < mine.high) {
    mine.low = random.log_exponential(mine.token, random.words(mine.token & ~3, 0).of(mine.token)) - mine.score;
  }
  const Runner winner = warp_reduce(contends ? Runner{mine.low, mine.token, mine.score} : no_runner(), Earlier{});
  if (threadIdx.x == 0) write(job, row, winner.token, winner.score, largest, total);
}

// ---- Few tokens ----

// Up to this top-k every block lists what may be among the row's, and the first block draws from the lists.
constexpr int kFewTokens = 64;
constexpr int kListed = 128;  // of a block at most

struct List {
  uint64_t ranks[kListed];
  uint64_t masses[kListed];
  int count;            // more than kListed: there is no room
  float largest, last;  // of the row's scores: the first and the k-th, by rank
};

// `ranks` has `count` of the row in no order, the k first and their ties among them. All threads of one block call it.
__device__ __forceinline__ void draw_from_list(const Sampling& job, int64_t row, const RandomRow& random,
                                               const uint64_t* ranks, int count, List& list) {
  const int k = static_cast<int>(job.top_k);
  if (count > kListed) {
    uint64_t most = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) most = ranks[i] > most ? ranks[i] : most;
    const float bar = reached_by(k, most > 0 ? score_of_rank(most) : -kInfinity);
    if (threadIdx.x == 0) list.count = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      if (score_of_rank(ranks[i]) < bar) continue;
      const int slot = atomicAdd(&list.count, 1);
      if (slot < kListed) list.ranks[slot] = ranks[i];
    }
    __syncthreads();
    if (list.count <= kListed) {
      ranks = list.ranks;
      count = list.count;
    }
  }

  if (threadIdx.x == 0) list.last = -kInfinity;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    int before = 0;
    for (int j = 0; j < count; ++j) before += ranks[j] > ranks[i];
    if (before == 0) list.largest = score_of_rank(ranks[i]);
    if (before == k - 1) list.last = score_of_rank(ranks[i]);
  }
  __syncthreads();
  const float largest = list.largest, last = list.last;
  // In whole units, whose sums are the same in any order.
  constexpr float kUnit = 0x1p-40f;
  const auto mass = [&](int i) {
    const float score = score_of_rank(ranks[i]);
    return score >= last ? static_cast<uint64_t>(llrintf(expf(score - largest) / kUnit)) : 0;
  };
  const bool has_room = count <= kListed;
  uint64_t total = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (has_room) list.masses[i] = mass(i);
    total += mass(i);
  }
  total = block_reduce(total, uint64_t{0}, Add{});
  const double target = job.top_p * static_cast<double>(total);

  Runner winner = no_runner();
  uint64_t kept = 0;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    uint64_t before = 0;
    for (int j = 0; j < count; ++j) {
      if (ranks[j] > ranks[i]) before += has_room ? list.masses[j] : mass(j);
    }
    const float score = score_of_rank(ranks[i]);
    if (score < last || (job.top_p < 1.0 && static_cast<double>(before) >= target)) continue;
    kept += has_room ? list.masses[i] : mass(i);
    const int token = token_of_rank(ranks[i]);
    const uint32_t upper = random.words(token & ~3, 0).of(token);
    winner = Earlier{}({random.log_exponential(token, upper) - score, token, score}, winner);
  }
  winner = block_reduce(winner, no_runner(), Earlier{});
  kept = block_reduce(kept, uint64_t{0}, Add{});
  if (threadIdx.x == 0) write(job, row, winner.token, winner.score, largest, static_cast<float>(kept) * kUnit);
}

// Whether the row's token has been drawn; if not, nothing has been. `largest` is that of this thread's scores.
__device__ __forceinline__ bool draw_from_few(const Sampling& job, int64_t row, const RandomRow& random,
                                              const Scores& scores, float largest) {
  COPILOT_SHARED(List, list);
  if (threadIdx.x == 0) list.count = 0;
  const float bar = reached_by(static_cast<int>(job.top_k), largest);
  scores.each_pack([&](int at, const Pack<float>& pack) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (pack.at[i] < bar || pack.at[i] == -kInfinity) continue;
      const int slot = atomicAdd(&list.count, 1);  // NaN has one too, until there is no room
      if (slot < kListed) list.ranks[slot] = rank_of(pack.at[i], scores.first + at + i);
    }
  });
  if (largest != largest) atomicAdd(&list.count, kListed + 1);
  cluster_sync();

  const unsigned lane = threadIdx.x % 32, size = cluster_size();
  const int mine = lane < size ? of_peer(&list, lane)->count : 0;
  const int upto = static_cast<int>(warp_sum_upto(static_cast<uint64_t>(mine))), count = broadcast_lane(upto, 31);
  if (count == 0 || __ballot_sync(kFullMask, mine > kListed) != 0) return false;
  if (size == 1) {
    draw_from_list(job, row, random, list.ranks, count, list);
    return true;
  }
  uint64_t* all = dynamic_shared<uint64_t>();  // in place of the slice, which nothing reads again
  if (cluster_rank() == 0) {
    for (unsigned rank = threadIdx.x / 32; rank < size; rank += blockDim.x / 32) {
      const int listed = broadcast_lane(mine, rank), end = broadcast_lane(upto, rank);
      for (int i = lane; i < listed; i += 32) all[end - listed + i] = of_peer(&list, rank)->ranks[i];
    }
  }
  cluster_sync();
  if (cluster_rank() == 0) draw_from_list(job, row, random, all, count, list);
  return true;
}

// Draws from the row whose scores the blocks of this cluster hold, given the best of every thread. All threads of the
// cluster call it.
__device__ __forceinline__ void draw(const Sampling& job, int64_t row, const Scores& scores, Best best) {
  using Results = Result[kMostBlocks];
  COPILOT_SHARED(Results, results);
  // Read ahead of their use.
  const RandomRow random{static_cast<uint64_t>(*job.seed), static_cast<uint64_t>(*job.offset),
                         static_cast<uint32_t>(row)};
  const bool greedy = job.temperature == 0.0f;
  const bool filtered = !greedy && (job.top_k > 0 || job.top_p < 1.0);
  if (filtered && job.top_k > 0 && job.top_k <= kFewTokens && draw_from_few(job, row, random, scores, best.score)) {
    return;
  }
  best = block_reduce(best, no_best(), Better{});
  if (filtered) {
    best.score = cluster_reduce(best.score, -kInfinity, max_or_nan);
    if (best.score > -kInfinity) {
      Filters filters(scores, best.score);
      if (job.top_k > 0) filters.keep_top_k(job.top_k);
      if (job.top_p < 1.0) filters.keep_top_p(job.top_p);
    }
  }
  const double key = -static_cast<double>(best.score);
  const Result result =
      greedy ? Result{key, key, best.token, best.score, best.score, 1.0f} : race(random, scores, best.score);
  if (threadIdx.x == 0) (*of_peer(&results, 0))[cluster_rank()] = result;
  cluster_sync();
  if (threadIdx.x < 32 && cluster_rank() == 0) write_result(job, row, random, results, cluster_size());
}

template <bool kDense>
__global__ void __launch_bounds__(kSliceThreads, kDense ? 3 : 4)
    draw_from_slices(const __grid_constant__ Rectification job, const __grid_constant__ Sampling sampling) {
  RowSlice<kDense> slice(job);
  slice.load(true);
  const Solution solution = slice.template solve<Exchange::kCluster>();
  const Scale scale(sampling.temperature);
  Best best = no_best();
  slice.each_pack(solution, [&](int at, const float* four) {
    Pack<float> scores;
#pragma unroll
    for (int i = 0; i < 4; ++i) scores.at[i] = scale(four[i]);
    improve(best, scores, slice.first() + at);
    *reinterpret_cast<Pack<float>*>(slice.values() + at) = scores;
  });
  slice.each_candidate(solution, [&](int at, float value) {
    slice.values()[at] = scale(value);
    best = Better{}(best, {slice.values()[at], slice.first() + at});
  });
  __syncthreads();
  draw(sampling, slice.row(), {slice.values(), slice.first(), slice.count(), true}, best);
}

__global__ void __launch_bounds__(kSliceThreads, 4)
    draw_from_rows(float* log_rectified, int vocabulary, const __grid_constant__ Sampling sampling) {
  float* row = log_rectified + int64_t{blockIdx.x} * vocabulary;
  const Scores scores{row, 0, vocabulary, is_aligned(row)};
  const Scale scale(sampling.temperature);
  Best best = no_best();
  scores.each_pack([&](int at, Pack<float> pack) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pack.at[i] = scale(pack.at[i]);
      if (scale.changes() && at + i < vocabulary) row[at + i] = pack.at[i];
    }
    improve(best, pack, at);
  });
  draw(sampling, blockIdx.x, scores, best);
}

}  // namespace

int64_t rectify_sample_scratch(int64_t rows, int64_t vocabulary) {
  if (split_of(vocabulary, current_device()).cluster) return 0;
  return rows * vocabulary * static_cast<int64_t>(sizeof(float)) + rectify_scratch(rows, vocabulary);
}

void rectify_sample(const RectifyInputs& inputs, const Sampling& sampling, void* scratch, Stream stream) {
  if (inputs.vocabulary >= kMostTokens) throw std::runtime_error("rectify_sample takes fewer than 2^20 tokens");
  const Rectification job = rectification(inputs, scratch);
  if (job.split.cluster) {
    return with_dense(
        job, [&](auto dense) { launch(draw_from_slices<dense.value>, slice_launch(job, stream), job, sampling); });
  }
  float* log_rectified = static_cast<float*>(scratch);
  rectify(inputs, log_rectified, log_rectified + inputs.rows * inputs.vocabulary, stream);
  launch(draw_from_rows, {.blocks = inputs.rows, .threads = kSliceThreads, .stream = stream}, log_rectified,
         static_cast<int>(inputs.vocabulary), sampling);
}

}  // namespace copilot::cuda
