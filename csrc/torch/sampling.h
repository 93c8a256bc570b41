// The arguments of rectify_sample, checked, as the kernels of the CPU and of GPUs take them.

#pragma once

#include "tensors.h"

namespace copilot {

inline float temperature_of(double temperature) {
  STD_TORCH_CHECK(temperature == 0 || (temperature >= 1e-30 && temperature <= 1e30),
                  "temperature must be 0 or in [1e-30, 1e30]; got ", temperature);
  return static_cast<float>(temperature);
}

// 0: all
inline int64_t top_k_of(std::optional<int64_t> top_k, int64_t vocabulary) {
  STD_TORCH_CHECK(vocabulary > 0, "pilot_logits must have at least one token");
  return top_k && *top_k < vocabulary ? *top_k : 0;
}

// Where the one number is.
inline const int64_t* number_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == 1, name, " must hold one element; got ", tensor.numel());
  return indices_of(tensor, name);
}

}  // namespace copilot
