// The Pilot's cross-entropy, its gradient and the compact mistakes it leaves; see csrc/cpu/mistake_cross_entropy.h.
//
// With k tokens kept, the vocabulary is cut into slices. A block streams one, and leaves its k largest entries in order
// and the sums over all others. The blocks of a row are a cluster, whose first one merges what they leave; where there
// are no clusters, or more slices than they have blocks, a small second kernel does. What must be moved is the logits,
// once. At k = 32, what slices leave is 1 % of that, and a quarter, or half of shorter elements, is read twice, the
// second time from the second-level cache, to know from which value on an entry may be among the k largest. Sums run in
// float in a thread and in double over threads.
//
// With the whole vocabulary kept, a cluster of blocks holds a row in shared memory between its two reductions, so that
// the logits are read once and the probabilities written once. Where there are no clusters, it is one block, and a row
// that is too long for it is read three times.

#include "ordered.cuh"

namespace copilot::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kElements = 16;  // that a thread has at a time
constexpr int kChunk = kThreads * kElements;
constexpr int kSlice = 8 * kChunk;  // elements, at most
constexpr int64_t kFewSlices = 8;   // whose blocks can be a cluster
constexpr int kRoom = 1024;         // entries of a slice that have room in shared memory
constexpr int kRanked = 256;        // of which so many are ranked, if they are enough
constexpr int kMostOfHands = 128;   // up to this k, the threads' largest entries tell the k largest from the rest
constexpr unsigned kMergeThreads = 128;

// Every kSampled / k-th chunk is read twice, first to learn which values may be among the k largest. Fewer chunks would
// leave more entries to be put aside.
template <class T>
constexpr int kSampled = 32 * sizeof(T);

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

  // This thread's elements of a chunk; behind the last one is -infinity. What is read again may stay in the caches.
  template <bool kAgain = false>
  __device__ __forceinline__ void load(int chunk, float* values) const {
    if (aligned && chunk + kChunk <= size) {  // every load is on its way before the first is waited for
      uint4 bits[kElements / kPack<T>];
#pragma unroll
      for (int i = 0; i < kElements; i += kPack<T>) {
        const auto* pack = reinterpret_cast<const uint4*>(from + chunk + place(i));
        bits[i / kPack<T>] = kAgain ? __ldg(pack) : __ldcs(pack);
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

__device__ __forceinline__ bool is_ignored(const int64_t* labels, int64_t row, int64_t ignore_index,
                                           int64_t vocabulary) {
  const int64_t label = labels[row];
  if (label == ignore_index) return true;
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

// ---- A slice ----

struct Sums {
  double mass;    // of exp(z - m)
  double square;  // of its squares
};

struct SliceSums {
  Sums sums;
  float reference;  // their m
};

// What slices leave to the kernel that merges them.
struct Slices {
  int64_t size;     // of a slice, but the last
  int count, kept;  // slices of a row, entries of a slice
  uint64_t* best;   // (N, count, kept), in descending order
  uint64_t* found;  // (N, count, kept), while they are sorted; null if there is room in shared memory
  SliceSums* sums;  // (N, count), over all other entries

  __host__ __device__ int64_t size_of(int64_t slice, int64_t vocabulary) const {
    return smaller(size, vocabulary - slice * size);
  }
};

// What has k entries at least that are no smaller, and few more: of every `step`-th chunk.
template <class T>
__device__ __forceinline__ float bar_of_hands(const Slice<T>& slice, int k, int step) {
  float most = -kInfinity;
  for (int chunk = 0; chunk < slice.size; chunk += step * kChunk) {
    float values[kElements];
    slice.template load<true>(chunk, values);
#pragma unroll
    for (int i = 0; i < kElements; ++i) most = fmaxf(most, values[i]);
  }
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
__device__ __forceinline__ uint64_t exact_bar(const Slice<T>& slice, int k) {
  static_assert(kThreads == 256);
  COPILOT_SHARED(Radix, radix);
  uint64_t bar = 0;
  int wanted = k;  // of the keys that begin as the bar does
  for (int shift = 56; shift >= 0; shift -= 8) {
    radix.counts[threadIdx.x] = 0;
    __syncthreads();
    unsigned last = 0, repeats = 0;  // equal bytes often follow each other, and additions to one address do so slowly
    for (int chunk = 0; chunk < slice.size; chunk += kChunk) {
      float values[kElements];
      slice.load(chunk, values);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const int place = chunk + slice.place(i);
        const uint64_t key = key_of(values[i], slice.first + place);
        if (place >= slice.size || (shift < 56 && (key ^ bar) >> (shift + 8) != 0)) continue;
        const unsigned byte = key >> shift & 255;
        if (byte != last) {
          if (repeats > 0) atomicAdd(&radix.counts[last], repeats);
          last = byte;
          repeats = 0;
        }
        ++repeats;
      }
    }
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

// Puts the entries that reach the bar into `found`, in no particular order, and sums the others up.
template <class T>
__device__ __forceinline__ Sweep sweep(const Slice<T>& slice, uint64_t bar, bool exact, uint64_t* found, int room) {
  COPILOT_SHARED(int, count);
  __syncthreads();
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  const float least = value_of(bar), reference = fabsf(least) < kInfinity ? least : 0.0f;
  float mass = 0.0f, square = 0.0f;
  bool has_room = true;
  for (int chunk = 0; chunk < slice.size && has_room; chunk += kChunk) {
    float values[kElements];
    slice.load(chunk, values);
    bool any = false;
#pragma unroll
    for (int i = 0; i < kElements; ++i) any |= !(values[i] < least);
    if (any) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (values[i] < least) continue;  // most, without any work
        const int place = chunk + slice.place(i);
        const uint64_t key = key_of(values[i], slice.first + place);
        if (place >= slice.size || (exact && key < bar)) continue;
        const int slot = atomicAdd(&count, 1);
        has_room &= slot < room;
        if (slot < room) found[slot] = key;
        values[i] = -kInfinity;
      }
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const float weight = fast_exp(values[i] - reference);
      mass += weight;
      square = fmaf(weight, weight, square);
    }
  }
  __syncthreads();
  return {count, reference, mass, square};
}

// Of a slice; and of all of a row, once they are merged.
struct Entries {
  uint64_t found[kRoom];
  uint64_t ranked[kRanked];
  int count;           // of `ranked`; more than kRanked: there is no room
  uint64_t last_kept;  // the kept-th
};

// Writes the `kept` largest of the keys in order. They end with what it returns.
__device__ __forceinline__ uint64_t keep_largest(const uint64_t* keys, int count, int kept, uint64_t* best,
                                                 Entries& entries) {
  float most = -kInfinity;
  for (int i = threadIdx.x; i < count; i += kThreads) most = fmaxf(most, value_of(keys[i]));
  const float bar = reached_by(kept, most);
  if (threadIdx.x == 0) entries.count = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    if (value_of(keys[i]) < bar) continue;
    const int slot = atomicAdd(&entries.count, 1);
    if (slot < kRanked) entries.ranked[slot] = keys[i];
  }
  __syncthreads();
  const bool have_room = entries.count <= kRanked;
  const uint64_t* ranked = have_room ? entries.ranked : keys;
  const int among = have_room ? entries.count : count;
  for (int i = threadIdx.x; i < among; i += kThreads) {
    const uint64_t key = ranked[i];
    int larger = 0;
    for (int j = 0; j < among; ++j) larger += ranked[j] > key;
    if (larger < kept) best[larger] = key;
    if (larger == kept - 1) entries.last_kept = key;
  }
  __syncthreads();
  return entries.last_kept;
}

// Once all slices of the row are there; by the threads of one block.
template <class T>
__device__ __forceinline__ void merge_slices(const MistakeCrossEntropy& job, const Slices& slices, int64_t row,
                                             Entries& entries);

// kMerges: the slices of a row are those of a cluster, whose first block merges them.
template <class T, bool kMerges>
__global__ void __launch_bounds__(kThreads, kMerges ? 6 : 5) slices_kernel(MistakeCrossEntropy job, Slices slices) {
  COPILOT_SHARED(Entries, entries);
  const int64_t row = blockIdx.x / slices.count, at = blockIdx.x % slices.count;
  if (is_ignored(job.labels, row, job.ignore_index, job.vocabulary)) {
    if (kMerges && at == 0) merge_slices<T>(job, slices, row, entries);
    return;
  }
  const int64_t first = at * slices.size;
  const Slice<T> slice(job.logits, row, first, smaller(first + slices.size, job.vocabulary));
  const int kept = slices.kept < slice.size ? slices.kept : slice.size;
  const int64_t place = blockIdx.x * static_cast<int64_t>(slices.kept);
  uint64_t* best = slices.best + place;
  uint64_t* found = slices.found ? slices.found + place : entries.found;
  const int room = slices.found ? kept : kRoom;

  Sweep swept;
  for (bool exact = kept > kMostOfHands;; exact = true) {
    const int step = kept < kSampled<T> ? kSampled<T> / kept : 1;
    // Index behind all: whatever equals the bar reaches it.
    const uint64_t bar = exact ? exact_bar(slice, kept) : key_of(bar_of_hands(slice, kept, step), -1);
    swept = sweep(slice, bar, exact, found, room);
    if (exact || (swept.found >= kept && swept.found <= room)) break;
  }

  const uint64_t last_kept = keep_largest(found, swept.found, kept, best, entries);
  float most = -kInfinity;  // of the others
  for (int i = threadIdx.x; i < swept.found; i += kThreads) {
    if (found[i] < last_kept) most = fmaxf(most, value_of(found[i]));
  }
  most = block_reduce(most, -kInfinity, Larger{});
  const float reference = fabsf(most) < kInfinity ? most : swept.reference;
  // Of nothing but -infinity no mass is left, and its reference of 0 may be far above the others'.
  const float scale = swept.mass == 0.0f ? 0.0f : expf(swept.reference - reference);
  Sums sums{swept.mass * scale, swept.square * scale * scale};
  for (int i = threadIdx.x; i < swept.found; i += kThreads) {
    if (found[i] >= last_kept) continue;
    const float weight = expf(value_of(found[i]) - reference);
    sums.mass += weight;
    sums.square += weight * weight;
  }
  sums = block_reduce(sums, Sums{}, [](Sums a, Sums b) { return Sums{a.mass + b.mass, a.square + b.square}; });
  if (threadIdx.x == 0) slices.sums[blockIdx.x] = {sums, reference};
  if constexpr (kMerges) {
    if (at > 0) return cluster_arrive();
    cluster_sync();
    merge_slices<T>(job, slices, row, entries);
  }
}

// ---- Slices become a row ----

// How many of the keys, in descending order, are larger.
__device__ __forceinline__ int count_larger(const uint64_t* keys, int count, uint64_t key) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (keys[middle] > key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
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

__device__ __forceinline__ void write_ignored_row(const MistakeCrossEntropy& job, int64_t row) {
  job.loss[row] = job.target_prob[row] = job.rest_mass[row] = job.rest_square[row] = 0.0f;
  job.largest_and_total[2 * row] = job.largest_and_total[2 * row + 1] = 0.0f;
}

template <class T>
__device__ __forceinline__ void merge_slices(const MistakeCrossEntropy& job, const Slices& slices, int64_t row,
                                             Entries& staged) {
  float* prob = job.top_prob + row * job.k;
  int64_t* index = job.top_index + row * job.k;
  if (is_ignored(job.labels, row, job.ignore_index, job.vocabulary)) {
    for (int64_t j = threadIdx.x; j < job.k; j += blockDim.x) {
      prob[j] = 0.0f;
      index[j] = 0;
    }
    if (threadIdx.x == 0) write_ignored_row(job, row);
    return;
  }

  const int64_t entries = slices.count * static_cast<int64_t>(slices.kept);
  const uint64_t* keys = slices.best + row * entries;
  if (entries <= kRoom) {
    for (int64_t i = threadIdx.x; i < entries; i += blockDim.x) staged.found[i] = keys[i];
    keys = staged.found;
    __syncthreads();
  }
  const auto entries_of = [&](int slice) {
    return static_cast<int>(smaller(slices.kept, slices.size_of(slice, job.vocabulary)));
  };
  uint64_t most = 0;
  for (int slice = 0; slice < slices.count; ++slice) {
    const uint64_t key = keys[static_cast<int64_t>(slice) * slices.kept];
    most = key > most ? key : most;
  }
  const float largest = value_of(most);

  RowSums sums{};
  for (int64_t i = threadIdx.x; i < entries; i += blockDim.x) {
    const int slice = static_cast<int>(i / slices.kept), j = static_cast<int>(i % slices.kept);
    if (j >= entries_of(slice)) continue;
    const uint64_t mine = keys[i];
    int64_t larger = j;
    for (int other = 0; other < slices.count; ++other) {
      if (other == slice) continue;
      larger += count_larger(keys + static_cast<int64_t>(other) * slices.kept, entries_of(other), mine);
    }
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
    const SliceSums& others = slices.sums[row * slices.count + slice];
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

template <class T>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(MistakeCrossEntropy job, Slices slices) {
  COPILOT_SHARED(Entries, entries);
  merge_slices<T>(job, slices, blockIdx.x, entries);
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
    if (is_first) write_ignored_row(job, row);
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

// Without their memory. How a row is cut follows from the vocabulary alone, so that the other rows do not matter.
Slices slices_of(int64_t vocabulary, int64_t k) {
  Slices slices{};
  slices.size = slice_size(vocabulary, divided(vocabulary, kSlice));
  slices.count = static_cast<int>(divided(vocabulary, slices.size));
  slices.kept = static_cast<int>(smaller(k, slices.size));
  return slices;
}

template <class T>
void launch_slices(const MistakeCrossEntropy& job, int64_t rows, void* scratch, Stream stream) {
  Slices slices = slices_of(job.vocabulary, job.k);
  const int64_t blocks = rows * slices.count;
  slices.sums = static_cast<SliceSums*>(scratch);
  slices.best = reinterpret_cast<uint64_t*>(slices.sums + blocks);
  slices.found = slices.kept > kRoom ? slices.best + blocks * slices.kept : nullptr;
  Launch how{.blocks = blocks, .threads = kThreads, .stream = stream};
  if (slices.count == 1 || (slices.count <= kFewSlices && current_device().capability >= 90)) {
    how.cluster = slices.count;
    return launch(slices_kernel<T, true>, how, job, slices);
  }
  launch(slices_kernel<T, false>, how, job, slices);
  launch(merge_kernel<T>, {.blocks = rows, .threads = kMergeThreads, .stream = stream}, job, slices);
}

template <class T>
void launch_whole(const MistakeCrossEntropy& job, int64_t rows, Stream stream) {
  const Device device = current_device();
  unsigned blocks = 1;
  while (device.capability >= 90 && blocks < 8 && blocks * (kSlice / 2) < job.vocabulary) blocks *= 2;
  const int64_t size = slice_size(job.vocabulary, blocks);
  const size_t shared = size * sizeof(float);
  const bool has_room = shared + 4096 <= device.shared_per_block;  // there are a few variables besides
  launch(whole_kernel<T>, {rows * blocks, kThreads, stream, blocks, has_room ? shared : 0}, job, size, has_room);
}

}  // namespace

int64_t mistake_cross_entropy_scratch(int64_t rows, int64_t vocabulary, int64_t k) {
  if (k == 0) return 0;
  const Slices slices = slices_of(vocabulary, k);
  const int64_t lists = slices.kept > kRoom ? 2 : 1;
  return rows * slices.count *
         static_cast<int64_t>(sizeof(SliceSums) + lists * slices.kept * static_cast<int64_t>(sizeof(uint64_t)));
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
