// Pool of Eq. 6: a block of the result stays in the first cache while the layers, a few at a time, are added to it.

namespace copilot::COPILOT_TARGET {

constexpr int64_t kPoolBlock = 4096;  // elements of the result
constexpr int64_t kLayersAtOnce = 6;  // as many streams of memory as are read side by side

// pooled = combine(pooled, layer) for one layer after the other; `pooled` has room for whole vectors.
template <class T, class Combine>
inline void absorb(const T* const* layers, int64_t n_layers, int64_t count, float* pooled, Combine&& combine) {
  int64_t v = 0;
  for (; v + kLanes <= count; v += kLanes) {
    Floats value = load(pooled + v);
    for (int64_t layer = 0; layer < n_layers; ++layer) value = combine(value, load(layers[layer] + v));
    store(pooled + v, value);
  }
  if (v == count) return;
  Floats value = load(pooled + v);
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    value = combine(value, load_some(layers[layer] + v, count - v, 0.0f));
  }
  store(pooled + v, value);
}

// Adds `count` elements from `start` on of one row of some layers, all with elements T, to `pooled`.
template <class T>
inline void absorb_row(const T*, const PoolLayers& job, int64_t layer, int64_t n_layers, int64_t row, int64_t start,
                       int64_t count, float* pooled) {
  const T* from[kLayersAtOnce];
  for (int64_t i = 0; i < n_layers; ++i) {
    from[i] = static_cast<const T*>(job.layers[layer + i].data) + row * job.layers[layer + i].stride + start;
  }
  if (job.pooling == Pooling::kMax) {
    // A NaN of either stays.
    const auto largest = [](Floats a, Floats b) { return b == b ? maximum(b, a) : b; };
    return absorb(from, n_layers, count, pooled, largest);
  }
  absorb(from, n_layers, count, pooled, [](Floats a, Floats b) { return a + b; });
}

// How many layers from this one on, at most kLayersAtOnce, are of its dtype.
inline int64_t alike(const PoolLayers& job, int64_t layer) {
  int64_t count = 1;
  while (count < kLayersAtOnce && layer + count < job.n_layers &&
         job.layers[layer + count].dtype == job.layers[layer].dtype) {
    ++count;
  }
  return count;
}

inline void pool_layers(const PoolLayers& job, int64_t begin, int64_t end) {
  alignas(64) float block[kPoolBlock];
  const int64_t room = std::min(kPoolBlock, (job.width + kLanes - 1) / kLanes * kLanes);  // of a row in the block
  const int64_t rows_at_once = kPoolBlock / std::max(room, kLanes);
  // What changes no layer: 0 would change -0.
  const float nothing = job.pooling == Pooling::kMax ? -std::numeric_limits<float>::infinity() : -0.0f;
  const float divisor = job.pooling == Pooling::kMean ? static_cast<float>(job.n_layers) : 1.0f;
  for (int64_t first = begin; first < end; first += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, end - first);
    for (int64_t start = 0; start < job.width; start += kPoolBlock) {
      const int64_t count = std::min(kPoolBlock, job.width - start);
      std::fill_n(block, rows * room, nothing);
      for (int64_t layer = 0, n = 0; layer < job.n_layers; layer += n) {
        n = alike(job, layer);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t row = job.rows ? job.rows[first + i] : first + i;
          with_row(job.layers[layer], row, [&](const auto* of_dtype) {
            absorb_row(of_dtype, job, layer, n, row, start, count, block + i * room);
          });
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        float* out = job.out + (first + i) * job.width + start;
        for (int64_t v = 0; v < count; ++v) out[v] = block[i * room + v] / divisor;
      }
    }
  }
}

}  // namespace copilot::COPILOT_TARGET
