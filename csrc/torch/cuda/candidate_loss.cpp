// copilot::candidate_loss and its gradient on a GPU; see copilot/ops/candidate_loss.py.

#ifdef COPILOT_EMULATION
#include "candidate_loss.cu"
#endif

#include "candidate_loss_job.h"
#include "gpu.h"

namespace copilot {
namespace {

void check_all(const Gpu& gpu, const Tensor& top_prob, const std::optional<Tensor>& top_index, const Tensor& target) {
  gpu.check(top_prob, "top_prob");
  if (top_index) gpu.check(*top_index, "top_index");
  gpu.check(target, "target");
}

CandidateLosses candidate_loss_gpu(Tensor delta, Tensor top_prob, std::optional<Tensor> top_index, Tensor target,
                                   Tensor target_prob, Tensor rest_mass, Tensor rest_square, std::string rectifier,
                                   std::string loss) {
  const Gpu gpu(delta);
  check_all(gpu, top_prob, top_index, target);
  gpu.check(target_prob, "target_prob");
  gpu.check(rest_mass, "rest_mass");
  gpu.check(rest_square, "rest_square");
  const Candidates candidates = candidates_of(delta, top_prob, top_index, target, rectifier, loss);
  const int64_t rows = delta.size(0);
  CandidateLosses found = empty_losses(delta);
  const CandidateLoss job = loss_job(candidates, target_prob, rest_mass, rest_square, found);
  cuda::candidate_loss(job, rows, gpu.stream());
  return found;
}

Tensor candidate_loss_backward_gpu(Tensor upstream, Tensor gradient, Tensor delta, Tensor top_prob,
                                   std::optional<Tensor> top_index, Tensor target, std::string rectifier,
                                   std::string loss) {
  const Gpu gpu(delta);
  check_all(gpu, top_prob, top_index, target);
  gpu.check(upstream, "upstream");
  gpu.check(gradient, "gradient");
  const Candidates candidates = candidates_of(delta, top_prob, top_index, target, rectifier, loss);
  const int64_t rows = delta.size(0);
  Tensor out = empty({rows, candidates.k}, delta.scalar_type(), delta);
  const CandidateLossBackward job{candidates, gradient_of(gradient, rows), column_of(upstream, rows, "upstream"),
                                  mutable_rows_of(out, "out")};
  cuda::candidate_loss_backward(job, rows, gpu.stream());
  return out;
}

}  // namespace
}  // namespace copilot

COPILOT_LIBRARY_IMPL(COPILOT_GPU, m) {
  m.impl("candidate_loss", TORCH_BOX(&copilot::candidate_loss_gpu));
  m.impl("candidate_loss_backward", TORCH_BOX(&copilot::candidate_loss_backward_gpu));
}
