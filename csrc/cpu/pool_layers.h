// Pool of Eq. 6: every row of the result is made in one sweep over its layers, a few vectors at a time.

namespace copilot::COPILOT_TARGET {

inline void pool_layers(const PoolLayers& job, int64_t begin, int64_t end) {
  const Floats scale = broadcast(job.pooling == Pooling::kMean ? 1.0f / static_cast<float>(job.n_layers) : 1.0f);
  constexpr int64_t kBlock = 4 * kLanes;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = job.rows ? job.rows[i] : i;
    float* out = job.out + i * job.width;
    for (int64_t start = 0; start < job.width; start += kBlock) {
      const int64_t count = std::min(kBlock, job.width - start);
      Floats pooled[4];
      for (int64_t layer = 0; layer < job.n_layers; ++layer) {
        with_row(job.layers[layer], row, [&](const auto* hidden) {
          for (int64_t part = 0; part * kLanes < count; ++part) {
            const int64_t left = count - part * kLanes;
            const auto* from = hidden + start + part * kLanes;
            const Floats value = left >= kLanes ? load(from) : load_some(from, left, 0.0f);
            if (layer == 0) {
              pooled[part] = value;
            } else if (job.pooling == Pooling::kMax) {
              // A NaN of either stays.
              pooled[part] = value == value ? maximum(value, pooled[part]) : value;
            } else {
              pooled[part] += value;
            }
          }
        });
      }
      for (int64_t part = 0; part * kLanes < count; ++part) {
        const int64_t left = count - part * kLanes;
        const Floats value = pooled[part] * scale;
        left >= kLanes ? store(out + start + part * kLanes, value)
                       : store_some(out + start + part * kLanes, value, left);
      }
    }
  }
}

}  // namespace copilot::COPILOT_TARGET
