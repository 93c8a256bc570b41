// The arguments of rectify and rectify_sample, checked, as the kernels of the CPU and of GPUs take them.

#pragma once

#include "tensors.h"

namespace copilot {

inline Rectifier rectifier_of(const std::string& rectifier, const std::string& fusion) {
  if (fusion == "logit") return Rectifier::kLogit;
  return rectifier == "linear" ? Rectifier::kLinear : Rectifier::kSimplex;
}

// All but where the tokens of `index` lie. The tensors must outlive it.
inline RectifyInputs rectify_inputs(const Tensor& pilot_logits, const Tensor& delta, const std::optional<Tensor>& index,
                                    double strength, const std::string& rectifier, const std::string& fusion) {
  RectifyInputs inputs{};
  inputs.logits = rows_of(pilot_logits, "pilot_logits");
  inputs.rows = pilot_logits.size(0);
  inputs.vocabulary = pilot_logits.size(1);
  inputs.rectifier = rectifier_of(rectifier, fusion);
  inputs.strength = strength;
  const Tensor& shape = index ? *index : pilot_logits;
  STD_TORCH_CHECK(
      delta.dim() == 2 && shape.dim() == 2 && delta.size(0) == shape.size(0) && delta.size(1) == shape.size(1),
      "delta must have the shape of ", index ? "index" : "pilot_logits");
  if (index) {
    STD_TORCH_CHECK(index->size(0) == inputs.rows, "index must be (N, k)");
    inputs.index = indices_of(*index, "index");
    inputs.n_candidates = index->size(1);
  }
  if (!index || inputs.n_candidates > 0) inputs.delta = rows_of(delta, "delta");
  return inputs;
}

// softmax(z) at strength 0, whatever delta is; softmax(z + delta) for the simplex at strength 1.
inline RectifyInputs without_mixture(RectifyInputs inputs) {
  if (inputs.strength == 0.0) {
    inputs.delta = {};
    inputs.index = nullptr;
    inputs.n_candidates = 0;
    inputs.rectifier = Rectifier::kLogit;
  } else if (inputs.strength == 1.0 && inputs.rectifier == Rectifier::kSimplex) {
    inputs.rectifier = Rectifier::kLogit;
  }
  return inputs;
}

}  // namespace copilot
