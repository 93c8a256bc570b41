// The Pilot's cross-entropy, its gradient and the compact mistakes it leaves; see csrc/cpu/mistake_cross_entropy.h.
//
// With k tokens kept, the vocabulary is cut into slices, and a block holds one in shared memory. It reads it once for
// the largest entry of every thread, which tell from which value on an entry may be among the k largest; once more to
// put those aside, a few more than k, and to sum up all others. It leaves its k largest entries in order, and the
// block that comes last merges what the slices of its row have left. What must be moved is the logits, once; at k = 32,
// what slices leave is 1 % of that. Sums run in float in a thread and in double over threads.
//
// With the whole vocabulary kept, a cluster of blocks holds a row in shared memory between its two reductions, so that
// the logits are read once and the probabilities written once. Where there are no clusters, it is one block. A row that
// is too long for their memory is read three times.

#include "ordered.cuh"

namespace copilot::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kElements = 16;  // that a thread has at a time
constexpr int kChunk = kThreads * kElements;
constexpr int kRoom = 512;                // entries of a slice that have room in shared memory
constexpr int kMostOfHands = 128;         // up to this k, the threads' largest entries tell the k largest from the rest
constexpr int64_t kMergedEntries = 2048;  // of a row, that have room in shared memory

// Some thousand elements of a row, and where they begin in it.
template <class T>
struct Slice {
  const T* from;
  int64_t first;
  int size;
  bool aligned;

  __device__ Slice(const Rows& rows, int64_t row, int64_t first, int64_t end)
      : from(static_cast<const T*>(rows.data) + row * rows.stride + first),
        first(first),
        size(end > first ? static_cast<int>(end - first) : 0),
        aligned(is_aligned(from)) {}

  // Where a thread's i-th element of a chunk stands in it.
  static __device__ __forceinline__ int place(int i) {
    return static_cast<int>(i / kPack<T> * kThreads + threadIdx.x) * kPack<T> + i % kPack<T>;
  }

  // This thread's elements of a chunk; behind the last one is -infinity.
  __device__ __forceinline__ void load(int chunk, float* values) const {
    if (aligned && chunk + kChunk <= size) {  // every load is on its way before the first is waited for
      uint4 bits[kElements / kPack<T>];
#pragma unroll
      for (int i = 0; i < kElements; i += kPack<T>) {
        bits[i / kPack<T>] = __ldcs(reinterpret_cast<const uint4*>(from + chunk + place(i)));
      }
      Pack<T> packs[kElements / kPack<T>];
      memcpy(packs, bits, sizeof(packs));
#pragma unroll
      for (int i = 0; i < kElements; ++i) values[i] = to_float(packs[i / kPack<T>].at[i % kPack<T>]);
    } else {
#pragma unroll
      for (int i = 0; i < kElements; i += kPack<T>) {
        const int at = chunk + place(i);
        load_pack(from + at, size - at, aligned, -kInfinity, values + i);
      }
    }
  }
};

__host__ __device__ __forceinline__ int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// In place of an ignore_index, where there is none. It is no label either.
constexpr int64_t kNoneIgnored = std::numeric_limits<int64_t>::min();

__device__ __forceinline__ bool is_ignored(const int64_t* labels, int64_t row, int64_t ignore_index,
                                           int64_t vocabulary) {
  const int64_t label = labels[row];
  if (label == ignore_index && label != kNoneIgnored) return true;
  if (label < 0 || label >= vocabulary) refuse_index("labels", vocabulary, " or be ignore_index", label);
  return false;
}

// ---- Entries: the larger value is the larger key, and of equal ones the smaller index; NaN is less than -infinity
// ----

__device__ __forceinline__ uint64_t key_of(float value, int64_t index) {
  return uint64_t{value != value ? 0 : ordered(value)} << 32 | static_cast<uint32_t>(~index);
}

__device__ __forceinline__ float value_of(uint64_t key) { return of_ordered(static_cast<uint32_t>(key >> 32)); }

__device__ __forceinline__ int64_t index_of(uint64_t key) { return static_cast<uint32_t>(~key); }

// By the threads of a block; all but the kept probabilities where all tokens are kept.
__device__ __forceinline__ void write_ignored_row(const MistakeCrossEntropy& job, int64_t row) {
  for (int64_t j = threadIdx.x; j < job.k; j += blockDim.x) {
    job.top_prob[row * job.k + j] = 0.0f;
    job.top_index[row * job.k + j] = 0;
  }
  if (threadIdx.x > 0) return;
  job.loss[row] = job.target_prob[row] = job.rest_mass[row] = job.rest_square[row] = 0.0f;
  job.largest_and_total[2 * row] = job.largest_and_total[2 * row + 1] = 0.0f;
}

// ---- A slice ----

struct Sums {
  double mass;    // of exp(z - m)
  double square;  // of its squares
};

struct SliceSums {
  Sums sums;
  float reference;  // their m
};

// What slices leave to the block that merges them.
struct Slices {
  int64_t size;       // of a slice, but the last
  int count, kept;    // slices of a row, entries of a slice
  uint64_t* best;     // (N, count, kept), in descending order
  uint64_t* found;    // (N, count, kept), while they are sorted; null if there is room in shared memory
  SliceSums* sums;    // (N, count), over all other entries
  unsigned* arrived;  // (N,), how many are there; 0 at first
};

// A slice in shared memory, as it comes. A thread has the packs threadIdx.x, threadIdx.x + kThreads, ..., an even
// number of them and as many as every other thread, and waits for no other's. Behind the last element is -infinity.
template <class T>
class HeldSlice {
 public:
  int64_t first;
  int size;

  // They are on their way until wait().
  __device__ __forceinline__ explicit HeldSlice(const Slice<T>& slice)
      : first(slice.first), size(slice.size), packs_(2 * kThreads * ((size + kRound - 1) / kRound)) {
    const unsigned whole = slice.aligned ? size / kPack<T> : 0;
    unsigned pack = threadIdx.x;
#pragma unroll 4
    for (; pack < whole; pack += kThreads) copy_pack(packs() + pack, slice.from + pack * kPack<T>);
#pragma unroll 1
    for (; pack < packs_; pack += kThreads) {
      const int at = static_cast<int>(pack) * kPack<T>;
      Pack<T> elements;
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) {
        elements.at[i] = at + i < size ? slice.from[at + i] : from_float<T>(-kInfinity);
      }
      packs()[pack] = elements;
    }
  }

  __device__ __forceinline__ void wait() const { wait_for_copies(); }

  // f(pack, place of its first element) for all of this thread.
  template <class F>
  __device__ __forceinline__ void each_pack(F&& f) const {
#pragma unroll 1
    for (unsigned pack = threadIdx.x; pack < packs_; pack += 2 * kThreads) {
      const Pack<T> one = packs()[pack], other = packs()[pack + kThreads];
      f(one, static_cast<int>(pack) * kPack<T>);
      f(other, static_cast<int>(pack + kThreads) * kPack<T>);
    }
  }

  __device__ __forceinline__ static Pack<T>* packs() { return dynamic_shared<Pack<T>>(); }

  // Bytes of shared memory.
  static int64_t room(int64_t size) { return (size + kRound - 1) / kRound * kRound * sizeof(T); }

 private:
  static constexpr int kRound = 2 * kThreads * kPack<T>;

  unsigned packs_;
};

// What has k entries at least that are no smaller, and few more.
template <class T>
__device__ __forceinline__ float bar_of_hands(const HeldSlice<T>& slice, int k) {
  float most = -kInfinity;
  slice.each_pack([&](const Pack<T>& pack, int) { most = fmaxf(most, largest_of<false>(pack)); });
  return reached_by(k, most);
}

struct Radix {
  unsigned counts[256];
  uint64_t bar;
  int wanted;
  bool is_done;
};

// What k keys reach and no other, byte by byte from the highest on.
template <class T>
__device__ __forceinline__ uint64_t exact_bar(const HeldSlice<T>& slice, int k, Radix& radix) {
  static_assert(kThreads == 256);
  uint64_t bar = 0;
  int wanted = k;  // of the keys that begin as the bar does
#pragma unroll 1
  for (int shift = 56; shift >= 0; shift -= 8) {
    radix.counts[threadIdx.x] = 0;
    __syncthreads();
    unsigned last = 0, repeats = 0;  // equal bytes often follow each other, and additions to one address do so slowly
    slice.each_pack([&](const Pack<T>& pack, int at) {
#pragma unroll
      for (int i = 0; i < kPack<T>; ++i) {
        const uint64_t key = key_of(to_float(pack.at[i]), slice.first + at + i);
        if (at + i >= slice.size || (shift < 56 && (key ^ bar) >> (shift + 8) != 0)) continue;
        const unsigned byte = key >> shift & 255;
        if (byte != last) {
          if (repeats > 0) atomicAdd(&radix.counts[last], repeats);
          last = byte;
          repeats = 0;
        }
        ++repeats;
      }
    });
    if (repeats > 0) atomicAdd(&radix.counts[last], repeats);
    __syncthreads();
    int above = 0;
    for (unsigned byte = threadIdx.x + 1; byte < kThreads; ++byte) above += radix.counts[byte];
    const int here = radix.counts[threadIdx.x];
    if (above < wanted && wanted <= above + here) {
      radix.bar = bar | static_cast<uint64_t>(threadIdx.x) << shift;
      radix.wanted = wanted - above;
      radix.is_done = wanted == above + here;
    }
    __syncthreads();
    bar = radix.bar;
    wanted = radix.wanted;
    if (radix.is_done) break;
  }
  return bar;
}

struct Sweep {
  int found;  // entries that reach the bar; nothing else counts if they have no room
  float reference, mass, square;
};

constexpr float kLog2OfE = 1.44269504f;

// Puts the entries that reach the bar into `found`, in no particular order, and sums the others up.
template <class T>
__device__ __forceinline__ Sweep sweep(const HeldSlice<T>& slice, uint64_t bar, bool exact, uint64_t* found, int room) {
  COPILOT_SHARED(int, count);
  __syncthreads();
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  const float least = value_of(bar), reference = fabsf(least) < kInfinity ? least : 0.0f;
  // exp(z - reference), but for a factor that all have: what rounding makes of the product. Beyond 2^29 that may be too
  // much for a float; but there floats lie at least 64 apart: only what equals the reference counts, to any base.
  const float slope = fabsf(reference) <= 0x1p29f ? kLog2OfE : 1.0f;
  const float shift = reference * slope;
  const auto weight_of = [&](float value) { return fast_exp2(fmaf(value, slope, -shift)); };
  float mass = 0.0f, square = 0.0f;
  unsigned reaching = 0, bit = 1;  // packs that have such an entry: few of at most 16
  slice.each_pack([&](const Pack<T>& pack, int) {
    float values[kPack<T>], of_pack = 0.0f, squares_of_pack = 0.0f;
    to_floats(pack, values);
#pragma unroll
    for (const float value : values) {
      const float weight = weight_of(value);
      of_pack += weight;
      squares_of_pack = fmaf(weight, weight, squares_of_pack);
    }
    const bool reaches = !(largest_of<true>(pack) < least);
    if (reaches) reaching |= bit;
    bit += bit;
    mass += reaches ? 0.0f : of_pack;
    square += reaches ? 0.0f : squares_of_pack;
  });
  for (; reaching != 0; reaching &= reaching - 1) {
    const unsigned number = __ffs(static_cast<int>(reaching)) - 1;
    const unsigned pack = number * kThreads + threadIdx.x;
    const int at = static_cast<int>(pack) * kPack<T>;
    float values[kPack<T>];
    to_floats(slice.packs()[pack], values);
    unsigned entries = 0;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      const float value = values[i];
      const bool reaches = !(value < least);
      const float weight = reaches ? 0.0f : weight_of(value);
      mass += weight;
      square = fmaf(weight, weight, square);
      if (reaches) entries |= 1u << i;
    }
    for (; entries != 0; entries &= entries - 1) {
      const int place = at + __ffs(static_cast<int>(entries)) - 1;
      if (place >= slice.size) break;
      const float value = to_float(slice.packs()[pack].at[place - at]);
      const uint64_t key = key_of(value, slice.first + place);
      if (exact && key < bar) {
        const float weight = weight_of(value);
        mass += weight;
        square = fmaf(weight, weight, square);
      } else {
        const int slot = atomicAdd(&count, 1);
        if (slot < room) found[slot] = key;
      }
    }
  }
  __syncthreads();
  const float factor = exp2f(-fmaf(reference, slope, -shift));
  return {count, reference, mass * factor, square * (factor * factor)};
}

union Entries {
  Radix radix;  // before they are found
  struct {
    uint64_t found[kRoom];
    uint64_t last_kept;
  };
};

// Writes the `kept` largest of the keys in order, and zeros, which are below all keys, behind them up to `places`; the
// others go to `rest`, in order too, so that their sum does not depend on that in which they were found. The largest
// ones end with what it returns.
__device__ __forceinline__ uint64_t keep_largest(const uint64_t* keys, int count, int kept, int places, uint64_t* best,
                                                 uint64_t* rest, uint64_t& last_kept) {
  constexpr int kThreadsOfKey = 4;
  const int part = threadIdx.x % kThreadsOfKey;
  for (int first = 0; first < count; first += kThreads / kThreadsOfKey) {
    const int i = first + threadIdx.x / kThreadsOfKey;
    const uint64_t key = i < count ? keys[i] : 0;
    int larger = 0;
#pragma unroll 4
    for (int j = part; j < count; j += kThreadsOfKey) larger += keys[j] > key;
#pragma unroll
    for (int mask = 1; mask < kThreadsOfKey; mask *= 2) larger += __shfl_xor_sync(kFullMask, larger, mask);
    if (part > 0 || i >= count) continue;
    if (larger < kept) {
      best[larger] = key;
    } else {
      rest[larger - kept] = key;
    }
    if (larger == kept - 1) last_kept = key;
  }
  for (int i = kept + static_cast<int>(threadIdx.x); i < places; i += kThreads) best[i] = 0;
  __syncthreads();
  return last_kept;
}

// The last block of a row that comes here gets true, and what the others have written is there.
__device__ __forceinline__ bool is_last_of_row(unsigned* arrived, unsigned blocks) {
  COPILOT_SHARED(bool, is_last);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(arrived, 1u) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

// Once all slices of the row are there; by the threads of one block.
template <class T>
__device__ __forceinline__ void merge_slices(const MistakeCrossEntropy& job, const Slices& slices, int64_t row);

template <class T>
__global__ void __launch_bounds__(kThreads, 3) slices_kernel(MistakeCrossEntropy job, Slices slices) {
  const unsigned count = slices.count, row = blockIdx.x / count, at = blockIdx.x % count;
  if (is_ignored(job.labels, row, job.ignore_index, job.vocabulary)) {
    if (at == 0) write_ignored_row(job, row);
    return;
  }
  const int64_t first = static_cast<int64_t>(at) * slices.size;
  const HeldSlice<T> slice{Slice<T>(job.logits, row, first, smaller(first + slices.size, job.vocabulary))};
  const int kept = slices.kept < slice.size ? slices.kept : slice.size;
  COPILOT_SHARED(Entries, entries);
  const int64_t place = blockIdx.x * static_cast<int64_t>(slices.kept);
  uint64_t* best = slices.best + place;
  uint64_t* found = slices.found ? slices.found + place : entries.found;
  const int room = slices.found ? kept : kRoom;
  slice.wait();

  Sweep swept;
  for (bool exact = kept > kMostOfHands;; exact = true) {
    // Index behind all: whatever equals the bar reaches it.
    const uint64_t bar = exact ? exact_bar(slice, kept, entries.radix) : key_of(bar_of_hands(slice, kept), -1);
    swept = sweep(slice, bar, exact, found, room);
    if (exact || (swept.found >= kept && swept.found <= room)) break;
  }

  static_assert(kRoom <= kMergedEntries);
  uint64_t* rest = dynamic_shared<uint64_t>();  // in place of the slice, which nothing reads again
  const uint64_t last_kept = keep_largest(found, swept.found, kept, slices.kept, best, rest, entries.last_kept);
  // No other entry is larger.
  const float least_kept = value_of(last_kept);
  const float reference = fabsf(least_kept) < kInfinity ? least_kept : swept.reference;
  // Of nothing but -infinity no mass is left, and its reference of 0 may be far above the others'.
  const float scale = swept.mass == 0.0f ? 0.0f : expf(swept.reference - reference);
  Sums sums{swept.mass * scale, swept.square * scale * scale};
  for (int i = threadIdx.x; i < swept.found - kept; i += blockDim.x) {
    const float weight = expf(value_of(rest[i]) - reference);
    sums.mass += weight;
    sums.square += weight * weight;
  }
  sums = block_reduce(sums, Sums{}, [](Sums a, Sums b) { return Sums{a.mass + b.mass, a.square + b.square}; });
  if (threadIdx.x == 0) slices.sums[blockIdx.x] = {sums, reference};
  if (is_last_of_row(slices.arrived + row, count)) merge_slices<T>(job, slices, row);
}

// ---- Slices become a row ----

// How many keys of slices that are not the `own` one are larger than `key`; every slice has `kept` keys in descending
// order. Four searches go on at a time, as each step waits for the one before it.
__device__ __forceinline__ int count_larger(const uint64_t* keys, int slices, int kept, int own, uint64_t key) {
  constexpr int kAtOnce = 4;
  int first_step = 1;
  while (2 * first_step <= kept) first_step *= 2;
  int larger = 0;
  for (int first = 0; first < slices; first += kAtOnce) {
    int found[kAtOnce] = {};
    for (int step = first_step; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int last = found[i] + step;
        if (first + i < slices && last <= kept && keys[static_cast<int64_t>(first + i) * kept + last - 1] > key) {
          found[i] = last;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) larger += first + i == own ? 0 : found[i];
  }
  return larger;
}

struct RowSums {
  double kept;
  Sums rest;
};

// All numbers of a row but those of its kept tokens.
template <class T>
__device__ __forceinline__ void write_row(const MistakeCrossEntropy& job, int64_t row, float largest, double total,
                                          Sums rest) {
  const float target = to_float(static_cast<const T*>(job.logits.data)[row * job.logits.stride + job.labels[row]]);
  job.loss[row] = static_cast<float>(log(total) + (static_cast<double>(largest) - target));
  job.largest_and_total[2 * row] = largest;
  job.largest_and_total[2 * row + 1] = static_cast<float>(total);
  job.target_prob[row] = expf(target - largest) * static_cast<float>(1.0 / total);
  job.rest_mass[row] = static_cast<float>(rest.mass / total);
  job.rest_square[row] = static_cast<float>(rest.square / (total * total));
}

template <class T>
__device__ __forceinline__ void merge_slices(const MistakeCrossEntropy& job, const Slices& slices, int64_t row) {
  float* prob = job.top_prob + row * job.k;
  int64_t* index = job.top_index + row * job.k;
  const int64_t entries = slices.count * static_cast<int64_t>(slices.kept);
  const uint64_t* keys = slices.best + row * entries;
  if (entries <= kMergedEntries) {
    uint64_t* staged = dynamic_shared<uint64_t>();  // in place of the slice
    for (int64_t i = threadIdx.x; i < entries; i += blockDim.x) staged[i] = keys[i];
    keys = staged;
    __syncthreads();
  }
  uint64_t most = 0;
  for (int slice = 0; slice < slices.count; ++slice) {
    const uint64_t key = keys[static_cast<int64_t>(slice) * slices.kept];
    most = key > most ? key : most;
  }
  const float largest = value_of(most);

  RowSums sums{};
  for (int slice = 0, j = threadIdx.x;; j += blockDim.x) {
    for (; j >= slices.kept; j -= slices.kept) ++slice;
    if (slice >= slices.count) break;
    const uint64_t mine = keys[static_cast<int64_t>(slice) * slices.kept + j];
    if (mine == 0) continue;
    const int larger = j + count_larger(keys, slices.count, slices.kept, slice, mine);
    const float weight = expf(value_of(mine) - largest);
    if (larger < job.k) {
      index[larger] = index_of(mine);
      prob[larger] = weight;
      sums.kept += weight;
    } else {
      sums.rest.mass += weight;
      sums.rest.square += weight * weight;
    }
  }
  for (int slice = threadIdx.x; slice < slices.count; slice += blockDim.x) {
    const SliceSums others = slices.sums[row * slices.count + slice];
    if (others.sums.mass == 0.0f) continue;  // its reference may be far above
    const double scale = expf(others.reference - largest);
    sums.rest.mass += others.sums.mass * scale;
    sums.rest.square += others.sums.square * (scale * scale);
  }
  sums = block_reduce(sums, RowSums{}, [](RowSums a, RowSums b) {
    return RowSums{a.kept + b.kept, {a.rest.mass + b.rest.mass, a.rest.square + b.rest.square}};
  });
  const double total = sums.kept + sums.rest.mass;
  const float factor = static_cast<float>(1.0 / total);
  for (int64_t j = threadIdx.x; j < job.k; j += blockDim.x) prob[j] *= factor;
  if (threadIdx.x == 0) write_row<T>(job, row, largest, total, sums.rest);
}

// ---- The whole vocabulary is kept ----

// A block's part of the row, as floats: in shared memory where it has room there.
template <class T>
struct Values {
  const Slice<T>& slice;
  float* kept;  // null: read again

  __device__ __forceinline__ void put(int chunk, const float* values) const {
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      const int at = chunk + slice.place(i);
      if (at >= slice.size) continue;
      Pack<float> pack;
#pragma unroll
      for (int j = 0; j < 4; ++j) pack.at[j] = values[i + j];
      *reinterpret_cast<Pack<float>*>(kept + at) = pack;
    }
  }

  __device__ __forceinline__ void get(int chunk, float* values) const {
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      const int at = chunk + slice.place(i);
      Pack<float> pack{{-kInfinity, -kInfinity, -kInfinity, -kInfinity}};
      if (at < slice.size) pack = *reinterpret_cast<const Pack<float>*>(kept + at);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[i + j] = pack.at[j];
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3) whole_kernel(MistakeCrossEntropy job, int64_t size, bool has_room) {
  announce_block();
  const int64_t row = blockIdx.x / cluster_size(), first = cluster_rank() * size;
  const Slice<T> slice(job.logits, row, first, smaller(first + size, job.vocabulary));
  const Values<T> kept{slice, dynamic_shared<float>()};
  float* out = job.top_prob + row * job.vocabulary + first;
  const bool out_is_aligned = is_aligned(out), is_first = cluster_rank() == 0 && threadIdx.x == 0;
  const auto write = [&](int chunk, const float* values) {
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      const int at = chunk + slice.place(i);
      store_pack(out + at, slice.size - at, out_is_aligned, values + i);
    }
  };
  if (is_ignored(job.labels, row, job.ignore_index, job.vocabulary)) {
    const float zeros[kElements] = {};
    for (int chunk = 0; chunk < slice.size; chunk += kChunk) write(chunk, zeros);
    if (cluster_rank() == 0) write_ignored_row(job, row);
    return;
  }

  float values[kElements], largest = -kInfinity;
  for (int chunk = 0; chunk < slice.size; chunk += kChunk) {
    slice.load(chunk, values);
    if (has_room) kept.put(chunk, values);
#pragma unroll
    for (int i = 0; i < kElements; ++i) largest = max_or_nan(values[i], largest);
  }
  wait_for_blocks();
  largest = cluster_reduce(largest, -kInfinity, max_or_nan);

  const auto read_weights = [&](int chunk) {
    slice.load(chunk, values);
#pragma unroll
    for (int i = 0; i < kElements; ++i) values[i] = fast_exp(values[i] - largest);
  };
  float mass = 0.0f;
  for (int chunk = 0; chunk < slice.size; chunk += kChunk) {
    if (has_room) {
      kept.get(chunk, values);
#pragma unroll
      for (int i = 0; i < kElements; ++i) values[i] = fast_exp(values[i] - largest);
      kept.put(chunk, values);
    } else {
      read_weights(chunk);
    }
    float part = 0.0f;  // a long sum of equal terms would drift
#pragma unroll
    for (int i = 0; i < kElements; ++i) part += values[i];
    mass += part;
  }
  const double total = cluster_reduce(static_cast<double>(mass), 0.0, [](double a, double b) { return a + b; });

  const float factor = static_cast<float>(1.0 / total);
  for (int chunk = 0; chunk < slice.size; chunk += kChunk) {
    if (has_room) {
      kept.get(chunk, values);
    } else {
      read_weights(chunk);
    }
#pragma unroll
    for (float& value : values) value *= factor;
    write(chunk, values);
  }
  if (is_first) write_row<T>(job, row, largest, total, Sums{});
}

// ---- The gradient: g (p^ - onehot(y)), every element read and written once, by the same thread ----

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(MistakeCrossEntropyBackward job, unsigned chunks) {
  const int64_t row = blockIdx.x / chunks, first = blockIdx.x % chunks * static_cast<int64_t>(kChunk);
  const Slice<T> slice(job.logits, row, first, smaller(first + kChunk, job.vocabulary));
  float values[kElements] = {};
  if (!is_ignored(job.labels, row, job.ignore_index, job.vocabulary)) {
    const float largest = job.largest_and_total[2 * row], factor = 1.0f / job.largest_and_total[2 * row + 1];
    const float grad = job.grad[row];
    const int64_t target = job.labels[row] - first;
    slice.load(0, values);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const float weight = expf(values[i] - largest);
      values[i] = slice.place(i) == target ? grad * (weight * factor - 1.0f) : weight * (grad * factor);
    }
  }
  T* out = static_cast<T*>(job.grad_logits.data) + row * job.grad_logits.stride + first;
  const bool out_is_aligned = is_aligned(out);
#pragma unroll
  for (int i = 0; i < kElements; i += kPack<T>) {
    const int at = slice.place(i);
    store_pack(out + at, slice.size - at, out_is_aligned, values + i);
  }
}

// ---- The host ----

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A multiple of 64, so that slices of aligned rows are aligned.
int64_t slice_size(int64_t vocabulary, int64_t slices) { return 64 * divided(divided(vocabulary, slices), 64); }

// Without their memory. How a row is cut follows from the vocabulary, the dtype and the GPU alone, so that the other
// rows do not matter.
Slices slices_of(int64_t vocabulary, int64_t k, int64_t element_size) {
  // Two blocks at least have room on a multiprocessor: three where there is more of it, as on 9.0.
  const int64_t bytes = current_device().shared_per_block < 128 * 1024 ? 32 * 1024 : 64 * 1024;
  Slices slices{};
  slices.size = slice_size(vocabulary, divided(vocabulary, bytes / element_size));
  slices.count = static_cast<int>(divided(vocabulary, slices.size));
  slices.kept = static_cast<int>(smaller(k, slices.size));
  return slices;
}

template <class T>
void launch_slices(const MistakeCrossEntropy& job, int64_t rows, void* scratch, Stream stream) {
  Slices slices = slices_of(job.vocabulary, job.k, sizeof(T));
  const int64_t blocks = rows * slices.count;
  slices.sums = static_cast<SliceSums*>(scratch);
  slices.best = reinterpret_cast<uint64_t*>(slices.sums + blocks);
  slices.found = slices.kept > kRoom ? slices.best + blocks * slices.kept : nullptr;
  slices.arrived = reinterpret_cast<unsigned*>(slices.best + (slices.found ? 2 : 1) * blocks * slices.kept);
  set_to_zero(slices.arrived, rows * sizeof(unsigned), stream);
  const int64_t held = HeldSlice<T>::room(slices.size), merged = kMergedEntries * sizeof(uint64_t);
  launch(slices_kernel<T>,
         {.blocks = blocks,
          .threads = kThreads,
          .stream = stream,
          .shared = static_cast<size_t>(held > merged ? held : merged)},
         job, slices);
}

template <class T>
void launch_whole(const MistakeCrossEntropy& job, int64_t rows, Stream stream) {
  const Device device = current_device();
  unsigned blocks = 1;
  while (blocks < 8 && blocks < device.most_blocks && blocks * 4 * kChunk < job.vocabulary) blocks *= 2;
  const int64_t size = slice_size(job.vocabulary, blocks);
  const size_t shared = size * sizeof(float);
  const bool has_room = shared + 4096 <= device.shared_per_block;  // there are a few variables besides
  launch(whole_kernel<T>, {rows * blocks, kThreads, stream, blocks, has_room ? shared : 0}, job, size, has_room);
}

}  // namespace

int64_t mistake_cross_entropy_scratch(int64_t rows, int64_t vocabulary, int64_t k, DType dtype) {
  if (k == 0) return 0;
  const Slices slices = slices_of(vocabulary, k, dtype == DType::kFloat32 ? 4 : 2);
  const int64_t lists = slices.kept > kRoom ? 2 : 1;
  return rows * slices.count *
             static_cast<int64_t>(sizeof(SliceSums) + lists * slices.kept * static_cast<int64_t>(sizeof(uint64_t))) +
         rows * static_cast<int64_t>(sizeof(unsigned));
}

void mistake_cross_entropy(const MistakeCrossEntropy& job, int64_t rows, void* scratch, Stream stream) {
  with_dtype(job.logits.dtype, [&](auto element) {
    using T = decltype(element);
    if (job.k == 0) {
      launch_whole<T>(job, rows, stream);
    } else {
      launch_slices<T>(job, rows, scratch, stream);
    }
  });
}

void mistake_cross_entropy_backward(const MistakeCrossEntropyBackward& job, int64_t rows, Stream stream) {
  const int64_t chunks = divided(job.vocabulary, kChunk);
  with_dtype(job.logits.dtype, [&](auto element) {
    launch(backward_kernel<decltype(element)>, {.blocks = rows * chunks, .threads = kThreads, .stream = stream}, job,
           chunks);
  });
}

}  // namespace copilot::cuda
