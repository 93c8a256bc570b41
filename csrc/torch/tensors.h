// What the bindings share: torch's tensors as the kernels see them, through torch's stable ABI, so that one build
// serves torch 2.11 and later.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "copilot/kernels.h"
#include "cpu_kernels.h"

namespace copilot {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

inline void check_rows(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 2 && (tensor.stride(1) == 1 || tensor.size(1) <= 1), name,
                  " must be two-dimensional, its last dimension adjacent");
}

inline Rows rows_of(const Tensor& tensor, const char* name) {
  check_rows(tensor, name);
  return {tensor.const_data_ptr(), tensor.stride(0), dtype_of(tensor, name)};
}

inline MutableRows mutable_rows_of(Tensor& tensor, const char* name) {
  check_rows(tensor, name);
  return {tensor.mutable_data_ptr(), tensor.stride(0), dtype_of(tensor, name)};
}

// The data of an adjacent int64 tensor.
inline const int64_t* indices_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous(), name,
                  " must be an adjacent int64 tensor");
  return static_cast<const int64_t*>(tensor.const_data_ptr());
}

inline Tensor empty(const std::vector<int64_t>& size, ScalarType dtype, const Tensor& like) {
  return torch::stable::empty(size, dtype, std::nullopt, like.device());
}

inline float* floats_of(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

// Rows given to a thread at least: below some thousand elements, starting it costs more than it saves.
inline int64_t rows_per_thread(int64_t elements_a_row) {
  constexpr int64_t kElementsPerThread = 16384;
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_a_row));
}

}  // namespace copilot
