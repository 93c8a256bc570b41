// Top-k and top-p on a row of scores whose slices the blocks of a cluster hold: what is not kept becomes -infinity.
//
// Nothing is sorted. Tokens are ranked by whole numbers, which fall into bins; the bin in which the last token to keep
// lies is split into bins, until all of it is kept (a radix selection, three rounds but for ties). A round reads the
// block's slice once, and exchanges the bins once. Masses are sums of whole numbers too: exact, whatever the order.

#pragma once

#include "ordered.cuh"

namespace copilot::cuda {

// ---- Ranks: by score, of equal scores the smaller token first ----

constexpr int kTokenBits = 20;
constexpr int64_t kMostTokens = int64_t{1} << kTokenBits;

__device__ __forceinline__ uint64_t rank_of(float score, int token) {
  return uint64_t{ordered(score)} << kTokenBits | static_cast<uint32_t>(kMostTokens - 1 - token);
}

__device__ __forceinline__ int token_of_rank(uint64_t rank) {
  return static_cast<int>(kMostTokens - 1 - static_cast<int64_t>(rank & (kMostTokens - 1)));
}

__device__ __forceinline__ float score_of_rank(uint64_t rank) {
  return of_ordered(static_cast<uint32_t>(rank >> kTokenBits));
}

// ---- Bins of ranks ----

constexpr int kBinBits = 9;
constexpr int kBins = 1 << kBinBits;

// Bin 0 has the largest ranks. The first and the last bin may be larger than the others.
struct Bins {
  uint64_t low, high;  // the ranks that are counted
  uint64_t from;       // the largest of bin 0, but for what is above
  int shift;

  // Of all finite scores: 32 bins for each power of two from 2^-8 to 2^8, where logarithms of probabilities lie.
  static __device__ __forceinline__ Bins of_row(float largest) {
    const uint64_t high = rank_of(largest, 0), from = rank_of(-0x1p-8f, 0);
    return {rank_of(-kInfinity, 0) + 1, high, high < from ? high : from, kTokenBits + 2 * kBinBits};
  }

  // Of one bin. No bin cuts a score into tokens as long as there is more than one score.
  static __device__ __forceinline__ Bins of(uint64_t low, uint64_t high) {
    const int least = low >> kTokenBits == high >> kTokenBits ? 0 : kTokenBits;
    int shift = least;
    while ((high - low) >> shift >= kBins) ++shift;
    return {low, high, high, shift};
  }

  __device__ __forceinline__ bool has(uint64_t rank) const { return low <= rank && rank <= high; }

  __device__ __forceinline__ int bin_of(uint64_t rank) const {
    const uint64_t bin = rank > from ? 0 : (from - rank) >> shift;
    return bin < kBins ? static_cast<int>(bin) : kBins - 1;
  }

  __device__ __forceinline__ uint64_t high_of(int bin) const {
    return bin == 0 ? high : from - (static_cast<uint64_t>(bin) << shift);
  }

  __device__ __forceinline__ uint64_t low_of(int bin) const {
    const uint64_t size = static_cast<uint64_t>(bin + 1) << shift;
    return bin == kBins - 1 || from - low < size ? low : from - size + 1;
  }
};

// What lies in a bin: a number of tokens; or their weights in units of 2^-24, relative to the bin's largest score, so
// that those of a bin are about as exact as floats. Sums of two digits do not overflow.
constexpr float kUnits = 0x1p24f;
constexpr int kDigit = 12;

struct Histogram {
  uint32_t upper[kBins], lower[kBins];
};

// The bin that has the last token to keep.
struct Crossing {
  int bin;
  uint64_t above, inside;
};

// Of this lane and those before it.
__device__ __forceinline__ uint64_t warp_sum_upto(uint64_t value) {
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (unsigned by = 1; by < 32; by *= 2) {
    const uint64_t before = __shfl_up_sync(kFullMask, value, by);
    if (lane >= by) value += before;
  }
  return value;
}

// ---- Filters ----

// The scores of a block, those of the tokens from `first` on. Every thread has the packs of four that are blockDim.x
// apart, and touches no other.
struct Scores {
  float* values;
  int first, count;
  bool aligned;

  // f(at, pack) for every pack of this thread; -infinity is behind the end.
  template <class F>
  __device__ __forceinline__ void each_pack(F&& f) const {
    for (int at = 4 * threadIdx.x; at < count; at += 4 * blockDim.x) f(at, pack(at));
  }

  __device__ __forceinline__ Pack<float> pack(int at) const {
    if (aligned && at + 4 <= count) return *reinterpret_cast<const Pack<float>*>(values + at);
    Pack<float> some;
#pragma unroll
    for (int i = 0; i < 4; ++i) some.at[i] = at + i < count ? values[at + i] : -kInfinity;
    return some;
  }
};

// All threads of the cluster call every function.
class Filters {
 public:
  // `largest` is the row's largest score, above -infinity.
  __device__ __forceinline__ Filters(const Scores& scores, float largest) : scores_(scores), largest_(largest) {}

  // Keeps all ties of the k-th.
  __device__ __forceinline__ void keep_top_k(int64_t k) { keep(static_cast<uint64_t>(k), 0.0); }

  // Keeps the smallest set, by rank, whose mass reaches top_p.
  __device__ __forceinline__ void keep_top_p(double top_p) { keep(0, top_p); }

 private:
  using TwoHistograms = Histogram[2];

  struct Scan {
    uint64_t upto[kBins];  // within 32 bins
    uint64_t of_32[kBins / 32];
  };

  template <class F>
  __device__ __forceinline__ void each_score(F&& f) const {
    scores_.each_pack([&](int at, const Pack<float>& pack) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(at + i, pack.at[i]);
    });
  }

  // Keeps the k first and their ties, or else the first whose mass reaches top_p.
  __device__ __forceinline__ void keep(uint64_t k, double top_p);

  __device__ __forceinline__ void count(const Bins& bins, bool weigh, Histogram& histogram) const;
  __device__ __forceinline__ Crossing find(const Bins& bins, bool weigh, const Histogram& histogram, double top_p,
                                           uint64_t& target) const;
  static __device__ __forceinline__ uint64_t units_of(const Histogram& histogram, int bin);
  static __device__ __forceinline__ uint64_t mass_of(const Bins& bins, bool weigh, int bin, uint64_t units);

  const Scores& scores_;
  const float largest_;
  int round_ = 0;
};

__device__ __forceinline__ void Filters::count(const Bins& bins, bool weigh, Histogram& histogram) const {
  for (int bin = threadIdx.x; bin < kBins; bin += blockDim.x) histogram.upper[bin] = histogram.lower[bin] = 0;
  __syncthreads();
  const float low = score_of_rank(bins.low), high = score_of_rank(bins.high);
  each_score([&](int at, float score) {
    if (!(score >= low && score <= high)) return;  // most, after the first round
    const uint64_t rank = rank_of(score, scores_.first + at);
    if (!bins.has(rank)) return;
    const int bin = bins.bin_of(rank);
    if (weigh) {
      const auto units = static_cast<uint32_t>(expf(score - score_of_rank(bins.high_of(bin))) * kUnits);
      atomicAdd(&histogram.upper[bin], units >> kDigit);
      atomicAdd(&histogram.lower[bin], units & ((1u << kDigit) - 1));
    } else {
      atomicAdd(&histogram.lower[bin], 1u);
    }
  });
}

// Of all blocks.
__device__ __forceinline__ uint64_t Filters::units_of(const Histogram& histogram, int bin) {
  uint64_t units = 0;
#pragma unroll 2
  for (unsigned rank = 0; rank < cluster_size(); ++rank) {
    const Histogram& other = *of_peer(&histogram, rank);
    units += other.lower[bin] + (static_cast<uint64_t>(other.upper[bin]) << kDigit);
  }
  return units;
}

// In units of 2^-40 of the weight of the largest score that is counted.
__device__ __forceinline__ uint64_t Filters::mass_of(const Bins& bins, bool weigh, int bin, uint64_t units) {
  if (!weigh || units == 0) return units;
  const float weight = expf(score_of_rank(bins.high_of(bin)) - score_of_rank(bins.high));
  return static_cast<uint64_t>(static_cast<double>(units) * (0x1p40 / kUnits) * weight);
}

// The bin in which `target` is reached, which in a row's first round follows from `top_p`.
__device__ __forceinline__ Crossing Filters::find(const Bins& bins, bool weigh, const Histogram& histogram,
                                                  double top_p, uint64_t& target) const {
  COPILOT_SHARED(Scan, scan);
  const int lane = threadIdx.x % 32;
  for (int some = threadIdx.x / 32; some < kBins / 32; some += blockDim.x / 32) {
    const int bin = 32 * some + lane;
    const uint64_t upto = warp_sum_upto(mass_of(bins, weigh, bin, units_of(histogram, bin)));
    scan.upto[bin] = upto;
    if (lane == 31) scan.of_32[some] = upto;
  }
  __syncthreads();
  // Every warp finds it.
  const uint64_t upto_32 = warp_sum_upto(lane < kBins / 32 ? scan.of_32[lane] : 0);
  const uint64_t total = broadcast_lane(upto_32, 31);
  if (target == 0) target = static_cast<uint64_t>(ceil(top_p * static_cast<double>(total)));
  target = target == 0 ? 1 : target < total ? target : total;
  const int some = __popc(__ballot_sync(kFullMask, upto_32 < target));
  const uint64_t before = broadcast_lane(upto_32, (some + 31) % 32);
  const uint64_t upto = (some > 0 ? before : 0) + scan.upto[32 * some + lane];
  const int place = __popc(__ballot_sync(kFullMask, upto < target));
  const uint64_t last_above = broadcast_lane(upto, (place + 31) % 32);
  const uint64_t above = place > 0 ? last_above : some > 0 ? before : 0;
  return {32 * some + place, above, broadcast_lane(upto, place) - above};
}

__device__ __forceinline__ void Filters::keep(uint64_t k, double top_p) {
  // Other blocks may still read the bins of the last round.
  COPILOT_SHARED(TwoHistograms, histograms);
  const bool ties_are_kept = k > 0;
  bool weigh = !ties_are_kept;
  uint64_t target = k, last;
  for (Bins bins = Bins::of_row(largest_);;) {
    Histogram& histogram = histograms[round_++ % 2];
    count(bins, weigh, histogram);
    cluster_sync();
    Crossing crossing = find(bins, weigh, histogram, top_p, target);
    last = bins.low_of(crossing.bin);
    const uint64_t high = bins.high_of(crossing.bin);
    const bool one_score = last >> kTokenBits == high >> kTokenBits;
    target -= crossing.above;
    if (weigh && one_score) {
      // From here on tokens of equal weight are counted.
      weigh = false;
      const uint64_t tokens = units_of(histogram, crossing.bin) / static_cast<uint64_t>(kUnits);
      target = static_cast<uint64_t>(
          ceil(static_cast<double>(target) * static_cast<double>(tokens) / static_cast<double>(crossing.inside)));
      crossing.inside = tokens;
    }
    if (target >= crossing.inside || (one_score && ties_are_kept)) break;
    if (weigh) {
      const float scale = expf(score_of_rank(bins.high) - score_of_rank(high));
      target = static_cast<uint64_t>(ceil(static_cast<double>(target) * scale));
    }
    bins = Bins::of(last, high);
  }
  const float last_score = score_of_rank(last);
  each_score([&](int at, float score) {
    const bool is_kept = score > last_score || (score == last_score && rank_of(score, scores_.first + at) >= last);
    if (!is_kept && at < scores_.count) scores_.values[at] = -kInfinity;
  });
}

}  // namespace copilot::cuda
