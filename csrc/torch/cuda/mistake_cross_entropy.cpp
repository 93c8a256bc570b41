// copilot::mistake_cross_entropy and its backward on a GPU; see copilot/ops/mistake_cross_entropy.py.

#ifdef COPILOT_EMULATION
#include "mistake_cross_entropy.cu"
#endif

#include "gpu.h"
#include "mistake_cross_entropy_job.h"

namespace copilot {
namespace {

// `overwrite_logits` is for the autograd formula alone.
MistakeFields mistake_cross_entropy_gpu(Tensor logits, Tensor labels, std::optional<int64_t> k,
                                        std::optional<int64_t> ignore_index, bool /*overwrite_logits*/) {
  check_rows(logits, "logits");
  const Gpu gpu(logits);
  gpu.check(labels, "labels");
  STD_TORCH_CHECK(logits.size(1) <= int64_t{1} << 30, "logits must have 2^30 columns at most");
  MistakeFields fields = mistake_fields(logits, k);
  const MistakeCrossEntropy job = mistake_job(logits, labels, k, ignore_index, fields);
  const int64_t count = logits.size(0);
  const int64_t bytes = cuda::mistake_cross_entropy_scratch(count, job.vocabulary, job.k, job.logits.dtype);
  Tensor scratch = empty({bytes}, ScalarType::Byte, logits);
  cuda::mistake_cross_entropy(job, count, scratch.mutable_data_ptr(), gpu.stream());
  return fields;
}

void write_gradient(const Tensor& grad, const Tensor& logits, const Tensor& labels, const Tensor& largest_and_total,
                    std::optional<int64_t> ignore_index, const MutableRows& grad_logits) {
  const Gpu gpu(logits);
  gpu.check(grad, "grad");
  gpu.check(labels, "labels");
  gpu.check(largest_and_total, "largest_and_total");
  const auto job = mistake_backward_job(grad, logits, labels, largest_and_total, ignore_index, grad_logits);
  cuda::mistake_cross_entropy_backward(job, logits.size(0), gpu.stream());
}

Tensor backward_gpu(Tensor grad, Tensor logits, Tensor labels, Tensor largest_and_total,
                    std::optional<int64_t> ignore_index) {
  Tensor grad_logits = empty_gradient(logits);
  write_gradient(grad, logits, labels, largest_and_total, ignore_index, mutable_rows_of(grad_logits, "grad_logits"));
  return grad_logits;
}

void overwriting_backward_gpu(Tensor grad, Tensor logits, Tensor labels, Tensor largest_and_total,
                              std::optional<int64_t> ignore_index) {
  write_gradient(grad, logits, labels, largest_and_total, ignore_index, overwritten_rows(logits));
}

}  // namespace
}  // namespace copilot

COPILOT_LIBRARY_IMPL(COPILOT_GPU, m) {
  m.impl("mistake_cross_entropy", TORCH_BOX(&copilot::mistake_cross_entropy_gpu));
  m.impl("mistake_cross_entropy_backward", TORCH_BOX(&copilot::backward_gpu));
  m.impl("mistake_cross_entropy_backward_", TORCH_BOX(&copilot::overwriting_backward_gpu));
}
