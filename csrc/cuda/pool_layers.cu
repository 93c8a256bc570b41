// Pool of Eq. 6: a thread has eight elements of the result in registers while it reads all layers, several before it
// needs the first. Each element is read once and the result written once, in float32: that is the floor. The additions
// are those of a loop over the layers.

#include "eight.cuh"

namespace copilot::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLayers = 128;  // of a launch: a parameter of a kernel has at most 4 KB

// What one launch pools.
struct Part {
  Rows layers[kLayers];
  int n_layers;
  const int64_t* rows;
  int64_t n_rows, count, width;
  bool aligned;    // all layers are
  bool continues;  // what `out` already holds
  float divisor;
  float* out;
};

template <bool kMax>
__device__ __forceinline__ void absorb(const float* values, float* pooled) {
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if constexpr (kMax) {
      pooled[i] = values[i] > pooled[i] || values[i] != values[i] ? values[i] : pooled[i];
    } else {
      pooled[i] += values[i];
    }
  }
}

// kWide: there may be float32 among the layers, so that fewer fit in the registers at once.
template <bool kMax, bool kWide>
__device__ __forceinline__ void absorb_whole(const Part& part, int64_t row, int64_t start, float* pooled) {
  constexpr int kAtOnce = kWide ? 8 : 16;
  for (int first = 0; first < part.n_layers; first += kAtOnce) {
    Eight read[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= part.n_layers) continue;
      const Rows& layer = part.layers[first + i];
      read[i] = read_eight(element_of(layer, row, start), kWide ? layer.dtype : DType::kBFloat16);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= part.n_layers) continue;
      float values[kEight];
      to_floats(read[i], part.layers[first + i].dtype, values);
      absorb<kMax>(values, pooled);
    }
  }
}

template <bool kMax, bool kWide>
__global__ void __launch_bounds__(kThreads) pool_part(const __grid_constant__ Part part) {
  const int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x, in_row = eights(part.width);
  const int64_t i = item / in_row, start = item % in_row * kEight;
  if (i >= part.count) return;
  const int64_t row = part.rows ? part.rows[i] : i, count = part.width - start;
  if (row < 0 || row >= part.n_rows) refuse_index("rows", part.n_rows, "", row);
  const MutableRows out{part.out, part.width, DType::kFloat32};
  float pooled[kEight];
  if (part.continues) {
    load_some(part.out + i * part.width + start, DType::kFloat32, count, pooled);
  } else {
#pragma unroll
    for (float& value : pooled) value = kMax ? -kInfinity : -0.0f;  // which changes no number, be it zero
  }
  if (part.aligned && count >= kEight) {
    absorb_whole<kMax, kWide>(part, row, start, pooled);
  } else {
    for (int layer = 0; layer < part.n_layers; ++layer) {
      float values[kEight];
      load_some(element_of(part.layers[layer], row, start), part.layers[layer].dtype, count, values);
      absorb<kMax>(values, pooled);
    }
  }
#pragma unroll
  for (float& value : pooled) value /= part.divisor;
  store_eight(out, i, start, count, pooled);
}

}  // namespace

void pool_layers(const PoolLayers& job, int64_t n_rows, int64_t count, Stream stream) {
  const Launch how{(count * eights(job.width) + kThreads - 1) / kThreads, kThreads, stream};
  for (int64_t first = 0; first < job.n_layers; first += kLayers) {
    const int64_t left = job.n_layers - first;
    Part part{};
    part.n_layers = static_cast<int>(left < kLayers ? left : kLayers);
    part.rows = job.rows;
    part.n_rows = n_rows;
    part.count = count;
    part.width = job.width;
    part.continues = first > 0;
    part.divisor = job.pooling == Pooling::kMean && left <= kLayers ? static_cast<float>(job.n_layers) : 1.0f;
    part.out = job.out;
    part.aligned = true;
    bool wide = false;
    for (int i = 0; i < part.n_layers; ++i) {
      part.layers[i] = job.layers[first + i];
      part.aligned = part.aligned && are_aligned(part.layers[i]);
      wide = wide || part.layers[i].dtype == DType::kFloat32;
    }
    if (job.pooling == Pooling::kMax) {
      launch(wide ? pool_part<true, true> : pool_part<true, false>, how, part);
    } else {
      launch(wide ? pool_part<false, true> : pool_part<false, false>, how, part);
    }
  }
}

}  // namespace copilot::cuda
