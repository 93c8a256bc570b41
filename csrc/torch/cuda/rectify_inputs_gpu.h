// The arguments of rectify and rectify_sample as the kernels of GPUs take them.

#pragma once

#include "rectify_inputs.h"

namespace copilot {

// At strength 0 candidates are corrected by zeros, which `delta` becomes: only the kernel sees the tokens of `index`,
// and is to refuse what is none. The tensors must outlive the result.
inline RectifyInputs rectify_inputs_gpu(const Tensor& pilot_logits, Tensor& delta, const std::optional<Tensor>& index,
                                        double strength, const std::string& rectifier, const std::string& fusion) {
  if (index && strength == 0.0) {
    delta = torch::stable::new_zeros(delta, delta.sizes());
    strength = 1.0;
  }
  return without_mixture(rectify_inputs(pilot_logits, delta, index, strength, rectifier, fusion));
}

}  // namespace copilot
