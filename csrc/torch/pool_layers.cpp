// copilot::pool_layers; see copilot/ops/pool_layers.py.

#include "tensors.h"

namespace copilot {
namespace {

Tensor pool_layers_cpu(std::vector<Tensor> hidden_states, std::optional<Tensor> rows, std::string pooling) {
  STD_TORCH_CHECK(!hidden_states.empty(), "hidden_states must hold at least one tensor");
  std::vector<Rows> layers;
  for (const Tensor& hidden : hidden_states) layers.push_back(rows_of(hidden, "hidden_states"));
  const int64_t available = hidden_states[0].size(0), width = hidden_states[0].size(1);
  for (const Tensor& hidden : hidden_states) {
    STD_TORCH_CHECK(hidden.size(0) == available && hidden.size(1) == width, "hidden_states must be of one shape");
  }
  const int64_t count = rows ? rows->numel() : available;
  const int64_t* chosen = rows ? indices_of(*rows, "rows") : nullptr;
  for (int64_t i = 0; chosen != nullptr && i < count; ++i) {
    STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < available, "rows must lie in [0, ", available, "); got ", chosen[i]);
  }
  Tensor out = empty({count, width}, ScalarType::Float, hidden_states[0]);
  const Pooling kind = pooling == "mean" ? Pooling::kMean : pooling == "max" ? Pooling::kMax : Pooling::kSum;
  const PoolLayers job{layers.data(), static_cast<int64_t>(layers.size()), chosen, width, kind, floats_of(out)};
  torch::stable::parallel_for(0, count, rows_per_thread(width * job.n_layers), [&](int64_t begin, int64_t end) {
    cpu_kernels().pool_layers(job, begin, end);
  });
  return out;
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def("pool_layers(Tensor[] hidden_states, Tensor? rows, str pooling) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) { m.impl("pool_layers", TORCH_BOX(&copilot::pool_layers_cpu)); }
