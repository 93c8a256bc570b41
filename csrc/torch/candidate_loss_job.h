// What the bindings of candidate_loss share.

#pragma once

#include <tuple>

#include "tensors.h"

namespace copilot {

inline Objective objective_of(const std::string& rectifier, const std::string& loss) {
  if (rectifier == "linear") return Objective::kLinear;
  return loss == "ce" ? Objective::kCrossEntropy : loss == "kl" ? Objective::kKl : Objective::kSquared;
}

inline const float* column_of(const Tensor& tensor, int64_t rows, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.dim() == 1 &&
                      tensor.size(0) == rows,
                  name, " must be an adjacent float32 tensor (", rows, ",)");
  return static_cast<const float*>(tensor.const_data_ptr());
}

// The values of `target` are not looked at.
inline Candidates candidates_of(const Tensor& delta, const Tensor& top_prob, const std::optional<Tensor>& top_index,
                                const Tensor& target, const std::string& rectifier, const std::string& loss) {
  const Candidates found{
      rows_of(top_prob, "top_prob"), rows_of(delta, "delta"), top_index ? indices_of(*top_index, "top_index") : nullptr,
      indices_of(target, "target"),  delta.size(1),           objective_of(rectifier, loss)};
  const int64_t rows = delta.size(0), k = delta.size(1);
  STD_TORCH_CHECK(top_prob.size(0) == rows && top_prob.size(1) == k, "top_prob must be (", rows, ", ", k,
                  "), as delta");
  STD_TORCH_CHECK(!top_index || (top_index->dim() == 2 && top_index->size(0) == rows && top_index->size(1) == k),
                  "top_index must be (", rows, ", ", k, "), as delta");
  STD_TORCH_CHECK(!top_index || k > 0, "top_index must hold at least one token of every row; got (", rows, ", 0)");
  STD_TORCH_CHECK(target.numel() == rows, "target must be (", rows, ",), as the rows of delta");
  return found;
}

// The losses (M,) and, for the backward, (M, 3).
using CandidateLosses = std::tuple<Tensor, Tensor>;

inline CandidateLosses empty_losses(const Tensor& delta) {
  const int64_t rows = delta.size(0);
  return {empty({rows}, ScalarType::Float, delta), empty({rows, 3}, ScalarType::Float, delta)};
}

inline CandidateLoss loss_job(const Candidates& candidates, const Tensor& target_prob, const Tensor& rest_mass,
                              const Tensor& rest_square, CandidateLosses& found) {
  auto& [losses, gradient] = found;
  const int64_t rows = losses.size(0);
  return {candidates,
          column_of(target_prob, rows, "target_prob"),
          column_of(rest_mass, rows, "rest_mass"),
          column_of(rest_square, rows, "rest_square"),
          floats_of(losses),
          reinterpret_cast<CandidateGradient*>(floats_of(gradient))};
}

inline const CandidateGradient* gradient_of(const Tensor& gradient, int64_t rows) {
  STD_TORCH_CHECK(
      gradient.numel() == 3 * rows && gradient.is_contiguous() && gradient.scalar_type() == ScalarType::Float,
      "gradient must be what candidate_loss gave");
  return static_cast<const CandidateGradient*>(gradient.const_data_ptr());
}

}  // namespace copilot
