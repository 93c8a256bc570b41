// copilot::candidate_loss and its gradient; see copilot/ops/candidate_loss.py.

#include "candidate_loss_job.h"

namespace copilot {
namespace {

void check_target(const Candidates& candidates, int64_t rows) {
  for (int64_t i = 0; !candidates.top_index && i < rows; ++i) {
    STD_TORCH_CHECK(candidates.target[i] >= 0 && candidates.target[i] < candidates.k, "target must lie in [0, ",
                    candidates.k, ") where every token is kept", "; got ", candidates.target[i]);
  }
}

CandidateLosses candidate_loss_cpu(Tensor delta, Tensor top_prob, std::optional<Tensor> top_index, Tensor target,
                                   Tensor target_prob, Tensor rest_mass, Tensor rest_square, std::string rectifier,
                                   std::string loss) {
  const Candidates candidates = candidates_of(delta, top_prob, top_index, target, rectifier, loss);
  const int64_t rows = delta.size(0);
  check_target(candidates, rows);
  CandidateLosses found = empty_losses(delta);
  const CandidateLoss job = loss_job(candidates, target_prob, rest_mass, rest_square, found);
  torch::stable::parallel_for(0, rows, rows_per_thread(candidates.k),
                              [&](int64_t begin, int64_t end) { cpu_kernels().candidate_loss(job, begin, end); });
  return found;
}

Tensor candidate_loss_backward_cpu(Tensor upstream, Tensor gradient, Tensor delta, Tensor top_prob,
                                   std::optional<Tensor> top_index, Tensor target, std::string rectifier,
                                   std::string loss) {
  const Candidates candidates = candidates_of(delta, top_prob, top_index, target, rectifier, loss);
  const int64_t rows = delta.size(0);
  check_target(candidates, rows);
  Tensor out = empty({rows, candidates.k}, delta.scalar_type(), delta);
  const CandidateLossBackward job{candidates, gradient_of(gradient, rows), column_of(upstream, rows, "upstream"),
                                  mutable_rows_of(out, "out")};
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
