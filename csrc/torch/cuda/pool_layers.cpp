// copilot::pool_layers on a GPU; see copilot/ops/pool_layers.py.

#ifdef COPILOT_EMULATION
#include "pool_layers.cu"
#endif

#include "gpu.h"
#include "pool_layers_job.h"

namespace copilot {
namespace {

Tensor pool_layers_gpu(std::vector<Tensor> hidden_states, std::optional<Tensor> rows, std::string pooling) {
  STD_TORCH_CHECK(!hidden_states.empty(), "hidden_states must hold at least one tensor");
  const Gpu gpu(hidden_states[0]);
  for (const Tensor& hidden : hidden_states) gpu.check(hidden, "hidden_states");
  if (rows) gpu.check(*rows, "rows");
  const PoolWork work(hidden_states, rows, pooling);
  cuda::pool_layers(work.job(), work.n_rows(), work.count(), gpu.stream());
  return work.out();
}

}  // namespace
}  // namespace copilot

COPILOT_LIBRARY_IMPL(COPILOT_GPU, m) { m.impl("pool_layers", TORCH_BOX(&copilot::pool_layers_gpu)); }
