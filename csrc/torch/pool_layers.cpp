// copilot::pool_layers; see copilot/ops/pool_layers.py.

#include "tensors.h"

namespace copilot {
namespace {

// A contiguous tensor of any shape as rows of its last dimension, or a matrix with adjacent elements.
Rows rows_of_states(const Tensor& hidden) {
  if (hidden.dim() == 2) return rows_of(hidden, "hidden_states");
  STD_TORCH_CHECK(
      hidden.dim() > 0 && hidden.is_contiguous(),
      "hidden_states must be contiguous, or two-dimensional ones, their last dimension adjacent");
  return {hidden.const_data_ptr(), hidden.size(-1), dtype_of(hidden, "hidden_states")};
}

Tensor pool_layers_cpu(std::vector<Tensor> hidden_states, std::optional<Tensor> rows, std::string pooling) {
  STD_TORCH_CHECK(!hidden_states.empty(), "hidden_states must hold at least one tensor");
  std::vector<Rows> layers;
  for (const Tensor& hidden : hidden_states) layers.push_back(rows_of_states(hidden));
  const Tensor& first = hidden_states[0];
  std::vector<int64_t> shape(first.sizes().begin(), first.sizes().end());
  for (const Tensor& hidden : hidden_states) {
    STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), hidden.sizes().begin(), hidden.sizes().end()),
                    "hidden_states must be of one shape");
  }
  const int64_t width = shape.back();
  int64_t count = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) count *= shape[i];
  const int64_t* chosen = nullptr;
  if (rows) {
    chosen = indices_of(*rows, "rows");
    for (int64_t i = 0; i < rows->numel(); ++i) {
      STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < count, "rows must lie in [0, ", count, "); got ", chosen[i]);
    }
    count = rows->numel();
    shape = {count, width};
  }
  Tensor out = empty(shape, ScalarType::Float, first);
  const Pooling kind = pooling == "mean" ? Pooling::kMean : pooling == "max" ? Pooling::kMax : Pooling::kSum;
  const PoolLayers job{layers.data(), static_cast<int64_t>(layers.size()), chosen, width, kind, floats_of(out)};
  torch::stable::parallel_for(0, count, rows_per_thread(width * job.n_layers),
                              [&](int64_t begin, int64_t end) { cpu_kernels().pool_layers(job, begin, end); });
  return out;
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def("pool_layers(Tensor[] hidden_states, Tensor? rows, str pooling) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) { m.impl("pool_layers", TORCH_BOX(&copilot::pool_layers_cpu)); }
