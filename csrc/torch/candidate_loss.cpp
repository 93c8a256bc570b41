// copilot::candidate_loss and its gradient; see copilot/ops/candidate_loss.py.

#include "tensors.h"

namespace copilot {
namespace {

Objective objective_of(const std::string& rectifier, const std::string& loss) {
  if (rectifier == "linear") return Objective::kLinear;
  return loss == "ce" ? Objective::kCrossEntropy : loss == "kl" ? Objective::kKl : Objective::kSquared;
}

const float* column_of(const Tensor& tensor, int64_t rows, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() &&
                      tensor.dim() == 1 && tensor.size(0) == rows,
                  name, " must be an adjacent float32 tensor (", rows, ",)");
  return static_cast<const float*>(tensor.const_data_ptr());
}

Candidates candidates_of(const Tensor& delta, const Tensor& top_prob, const std::optional<Tensor>& top_index,
                         const Tensor& target, const std::string& rectifier, const std::string& loss) {
  const Candidates found{
      rows_of(top_prob, "top_prob"), rows_of(delta, "delta"), top_index ? indices_of(*top_index, "top_index") : nullptr,
      indices_of(target, "target"),  delta.size(1),           objective_of(rectifier, loss)};
  const int64_t rows = delta.size(0), k = delta.size(1);
  STD_TORCH_CHECK(top_prob.size(0) == rows && top_prob.size(1) == k, "top_prob must be (", rows, ", ", k,
                  "), as delta");
  STD_TORCH_CHECK(!top_index || (top_index->dim() == 2 && top_index->size(0) == rows && top_index->size(1) == k),
                  "top_index must be (", rows, ", ", k, "), as delta");
  STD_TORCH_CHECK(target.numel() == rows, "target must be (", rows, ",), as the rows of delta");
  for (int64_t i = 0; !top_index && i < rows; ++i) {
    STD_TORCH_CHECK(found.target[i] >= 0 && found.target[i] < k, "target must lie in [0, ", k,
                    ") where every token is kept", "; got ", found.target[i]);
  }
  return found;
}

// The losses (M,) and, for the backward, (M, 3).
std::tuple<Tensor, Tensor> candidate_loss_cpu(Tensor delta, Tensor top_prob, std::optional<Tensor> top_index,
                                              Tensor target, Tensor target_prob, Tensor rest_mass, Tensor rest_square,
                                              std::string rectifier, std::string loss) {
  const Candidates candidates = candidates_of(delta, top_prob, top_index, target, rectifier, loss);
  const int64_t rows = delta.size(0);
  Tensor losses = empty({rows}, ScalarType::Float, delta);
  Tensor gradient = empty({rows, 3}, ScalarType::Float, delta);
  const CandidateLoss job{candidates,
                          column_of(target_prob, rows, "target_prob"),
                          column_of(rest_mass, rows, "rest_mass"),
                          column_of(rest_square, rows, "rest_square"),
                          floats_of(losses),
                          reinterpret_cast<CandidateGradient*>(floats_of(gradient))};
  torch::stable::parallel_for(0, rows, rows_per_thread(candidates.k),
                              [&](int64_t begin, int64_t end) { cpu_kernels().candidate_loss(job, begin, end); });
  return {losses, gradient};
}

Tensor candidate_loss_backward_cpu(Tensor upstream, Tensor gradient, Tensor delta, Tensor top_prob,
                                   std::optional<Tensor> top_index, Tensor target, std::string rectifier,
                                   std::string loss) {
  const Candidates candidates = candidates_of(delta, top_prob, top_index, target, rectifier, loss);
  const int64_t rows = delta.size(0);
  STD_TORCH_CHECK(
      gradient.numel() == 3 * rows && gradient.is_contiguous() && gradient.scalar_type() == ScalarType::Float,
      "gradient must be what candidate_loss gave");
  Tensor out = empty({rows, candidates.k}, delta.scalar_type(), delta);
  const CandidateLossBackward job{candidates, static_cast<const CandidateGradient*>(gradient.const_data_ptr()),
                                  column_of(upstream, rows, "upstream"), mutable_rows_of(out, "out")};
  torch::stable::parallel_for(0, rows, rows_per_thread(candidates.k), [&](int64_t begin, int64_t end) {
    cpu_kernels().candidate_loss_backward(job, begin, end);
  });
  return out;
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def(
      "candidate_loss(Tensor delta, Tensor top_prob, Tensor? top_index, Tensor target, Tensor target_prob, "
      "Tensor rest_mass, Tensor rest_square, str rectifier, str loss) -> (Tensor, Tensor)");
  m.def(
      "candidate_loss_backward(Tensor upstream, Tensor gradient, Tensor delta, Tensor top_prob, Tensor? top_index, "
      "Tensor target, str rectifier, str loss) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) {
  m.impl("candidate_loss", TORCH_BOX(&copilot::candidate_loss_cpu));
  m.impl("candidate_loss_backward", TORCH_BOX(&copilot::candidate_loss_backward_cpu));
}
