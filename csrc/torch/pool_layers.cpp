// copilot::pool_layers; see copilot/ops/pool_layers.py.

#include "pool_layers_job.h"

namespace copilot {
namespace {

Tensor pool_layers_cpu(std::vector<Tensor> hidden_states, std::optional<Tensor> rows, std::string pooling) {
  const PoolWork work(hidden_states, rows, pooling);
  const PoolLayers& job = work.job();
  for (int64_t i = 0; job.rows && i < work.count(); ++i) {
    STD_TORCH_CHECK(job.rows[i] >= 0 && job.rows[i] < work.n_rows(), "rows must lie in [0, ", work.n_rows(), "); got ",
                    job.rows[i]);
  }
  torch::stable::parallel_for(0, work.count(), rows_per_thread(job.width * job.n_layers),
                              [&](int64_t begin, int64_t end) { cpu_kernels().pool_layers(job, begin, end); });
  return work.out();
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def("pool_layers(Tensor[] hidden_states, Tensor? rows, str pooling) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) { m.impl("pool_layers", TORCH_BOX(&copilot::pool_layers_cpu)); }
