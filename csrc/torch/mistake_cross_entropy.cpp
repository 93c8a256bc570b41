// copilot::mistake_cross_entropy and its backward; see copilot/ops/mistake_cross_entropy.py.

#include "mistake_cross_entropy_job.h"

namespace copilot {
namespace {

void check_labels(const int64_t* label, int64_t count, int64_t vocabulary, std::optional<int64_t> ignore_index) {
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK((label[n] >= 0 && label[n] < vocabulary) || (ignore_index && label[n] == *ignore_index),
                    "labels must lie in [0, ", vocabulary, ignore_index ? ") or be ignore_index; got " : "); got ",
                    label[n]);
  }
}

// `overwrite_logits` is for the autograd formula alone.
MistakeFields mistake_cross_entropy_cpu(Tensor logits, Tensor labels, std::optional<int64_t> k,
                                        std::optional<int64_t> ignore_index, bool /*overwrite_logits*/) {
  check_rows(logits, "logits");
  MistakeFields fields = mistake_fields(logits, k);
  const MistakeCrossEntropy job = mistake_job(logits, labels, k, ignore_index, fields);
  const int64_t count = logits.size(0);
  check_labels(job.labels, count, job.vocabulary, ignore_index);
  torch::stable::parallel_for(0, count, rows_per_thread(job.vocabulary), [&](int64_t begin, int64_t end) {
    cpu_kernels().mistake_cross_entropy(job, begin, end);
  });
  return fields;
}

void write_gradient(const Tensor& grad, const Tensor& logits, const Tensor& labels, const Tensor& largest_and_total,
                    std::optional<int64_t> ignore_index, const MutableRows& grad_logits) {
  const auto job = mistake_backward_job(grad, logits, labels, largest_and_total, ignore_index, grad_logits);
  const int64_t count = logits.size(0);
  check_labels(job.labels, count, job.vocabulary, ignore_index);
  torch::stable::parallel_for(0, count, rows_per_thread(job.vocabulary), [&](int64_t begin, int64_t end) {
    cpu_kernels().mistake_cross_entropy_backward(job, begin, end);
  });
}

Tensor backward_cpu(Tensor grad, Tensor logits, Tensor labels, Tensor largest_and_total,
                    std::optional<int64_t> ignore_index) {
  Tensor grad_logits = empty_gradient(logits);
  write_gradient(grad, logits, labels, largest_and_total, ignore_index, mutable_rows_of(grad_logits, "grad_logits"));
  return grad_logits;
}

void overwriting_backward_cpu(Tensor grad, Tensor logits, Tensor labels, Tensor largest_and_total,
                              std::optional<int64_t> ignore_index) {
  write_gradient(grad, logits, labels, largest_and_total, ignore_index, overwritten_rows(logits));
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def(
      "mistake_cross_entropy(Tensor logits, Tensor labels, int? k, int? ignore_index, bool overwrite_logits) -> "
      "(Tensor loss, Tensor largest_and_total, Tensor top_index, Tensor top_prob, Tensor target_prob, "
      "Tensor rest_mass, Tensor rest_square)");
  m.def(
      "mistake_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor largest_and_total, "
      "int? ignore_index) -> Tensor");
  m.def(
      "mistake_cross_entropy_backward_(Tensor grad, Tensor(a!) logits, Tensor labels, Tensor largest_and_total, "
      "int? ignore_index) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) {
  m.impl("mistake_cross_entropy", TORCH_BOX(&copilot::mistake_cross_entropy_cpu));
  m.impl("mistake_cross_entropy_backward", TORCH_BOX(&copilot::backward_cpu));
  m.impl("mistake_cross_entropy_backward_", TORCH_BOX(&copilot::overwriting_backward_cpu));
}
