// copilot::rectify_sample on GPUs; see copilot/ops/rectify_sample.py.

#ifdef COPILOT_EMULATION
#include "rectify_sample.cu"
#endif

#include <tuple>

#include "gpu.h"
#include "rectify_inputs_gpu.h"
#include "sampling.h"

namespace copilot {
namespace {

std::tuple<Tensor, Tensor> rectify_sample_gpu(Tensor pilot_logits, Tensor delta, std::optional<Tensor> index,
                                              double strength, std::string rectifier, std::string fusion,
                                              double temperature, std::optional<int64_t> top_k,
                                              std::optional<double> top_p, Tensor seed, Tensor offset) {
  const RectifyInputs inputs = rectify_inputs_gpu(pilot_logits, delta, index, strength, rectifier, fusion);
  cuda::Sampling sampling{};
  sampling.temperature = temperature_of(temperature);
  sampling.top_k = top_k_of(top_k, inputs.vocabulary);
  sampling.top_p = top_p.value_or(1.0);
  sampling.seed = number_of(seed, "seed");
  sampling.offset = number_of(offset, "offset");
  const Gpu gpu(pilot_logits);
  gpu.check(delta, "delta");
  if (index) gpu.check(*index, "index");
  gpu.check(seed, "seed");
  gpu.check(offset, "offset");
  Tensor token = empty({inputs.rows}, ScalarType::Long, pilot_logits);
  Tensor log_prob = empty({inputs.rows}, ScalarType::Float, pilot_logits);
  Tensor scratch =
      empty({cuda::rectify_sample_scratch(inputs.rows, inputs.vocabulary)}, ScalarType::Byte, pilot_logits);
  sampling.token = static_cast<int64_t*>(token.mutable_data_ptr());
  sampling.log_prob = floats_of(log_prob);
  cuda::rectify_sample(inputs, sampling, scratch.mutable_data_ptr(), gpu.stream());
  return {token, log_prob};
}

}  // namespace
}  // namespace copilot

COPILOT_LIBRARY_IMPL(COPILOT_GPU, m) { m.impl("rectify_sample", TORCH_BOX(&copilot::rectify_sample_gpu)); }
