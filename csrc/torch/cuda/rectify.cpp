// copilot::rectify on GPUs; see copilot/ops/rectify.py.

#ifdef COPILOT_EMULATION
#include "rectify.cu"
#endif

#include "gpu.h"
#include "rectify_inputs_gpu.h"

namespace copilot {
namespace {

Tensor rectify_gpu(Tensor pilot_logits, Tensor delta, std::optional<Tensor> index, double strength,
                   std::string rectifier, std::string fusion) {
  const RectifyInputs inputs = rectify_inputs_gpu(pilot_logits, delta, index, strength, rectifier, fusion);
  const Gpu gpu(pilot_logits);
  gpu.check(delta, "delta");
  if (index) gpu.check(*index, "index");
  Tensor out = empty({inputs.rows, inputs.vocabulary}, ScalarType::Float, pilot_logits);
  Tensor scratch = empty({cuda::rectify_scratch(inputs.rows, inputs.vocabulary)}, ScalarType::Byte, pilot_logits);
  cuda::rectify(inputs, floats_of(out), scratch.mutable_data_ptr(), gpu.stream());
  return out;
}

}  // namespace
}  // namespace copilot

COPILOT_LIBRARY_IMPL(COPILOT_GPU, m) { m.impl("rectify", TORCH_BOX(&copilot::rectify_gpu)); }
