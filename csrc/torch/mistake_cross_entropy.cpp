// copilot::mistake_cross_entropy and its backward; see copilot/ops/mistake_cross_entropy.py.

#include <tuple>

#include "tensors.h"

namespace copilot {
namespace {

// No label is negative where none is ignored.
constexpr int64_t kNoneIgnored = -1;

const int64_t* checked_labels(const Tensor& labels, const Tensor& logits, std::optional<int64_t> ignore_index) {
  const int64_t count = logits.size(0), vocabulary = logits.size(1);
  const int64_t* label = indices_of(labels, "labels");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == count, "labels must be (N,), one for each row of logits");
  for (int64_t n = 0; n < count; ++n) {
    STD_TORCH_CHECK((label[n] >= 0 && label[n] < vocabulary) || (ignore_index && label[n] == *ignore_index),
                    "labels must lie in [0, ", vocabulary, ") or be ignore_index; got ", label[n]);
  }
  return label;
}

const float* checked_floats(const Tensor& tensor, int64_t elements, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() &&
                      tensor.numel() == elements,
                  name, " must be an adjacent float32 tensor of ", elements, " elements");
  return static_cast<const float*>(tensor.const_data_ptr());
}

using Fields = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// `overwrite_logits` is for the autograd formula alone.
Fields mistake_cross_entropy_cpu(Tensor logits, Tensor labels, std::optional<int64_t> k,
                                 std::optional<int64_t> ignore_index, bool /*overwrite_logits*/) {
  const Rows rows = rows_of(logits, "logits");
  const int64_t* label = checked_labels(labels, logits, ignore_index);
  const int64_t count = logits.size(0), vocabulary = logits.size(1);
  STD_TORCH_CHECK(!k || (*k >= 1 && *k <= vocabulary), "k must be None or in [1, ", vocabulary, "]; got ",
                  k.value_or(0));
  auto floats = [&](std::vector<int64_t> size) { return empty(size, ScalarType::Float, logits); };
  Tensor loss = floats({count}), largest_and_total = floats({count, 2});
  Tensor top_index = empty({count, k.value_or(0)}, ScalarType::Long, logits);
  Tensor top_prob = floats({count, k.value_or(vocabulary)});
  Tensor target_prob = floats({count}), rest_mass = floats({count}), rest_square = floats({count});
  const MistakeCrossEntropy job{rows,
                                vocabulary,
                                label,
                                ignore_index.value_or(kNoneIgnored),
                                k.value_or(0),
                                floats_of(loss),
                                floats_of(largest_and_total),
                                static_cast<int64_t*>(top_index.mutable_data_ptr()),
                                floats_of(top_prob),
                                floats_of(target_prob),
                                floats_of(rest_mass),
                                floats_of(rest_square)};
  torch::stable::parallel_for(0, count, rows_per_thread(vocabulary), [&](int64_t begin, int64_t end) {
    cpu_kernels().mistake_cross_entropy(job, begin, end);
  });
  return {loss, largest_and_total, top_index, top_prob, target_prob, rest_mass, rest_square};
}

void write_gradient(const Tensor& grad, const Tensor& logits, const Tensor& labels, const Tensor& largest_and_total,
                    std::optional<int64_t> ignore_index, const MutableRows& grad_logits) {
  const int64_t count = logits.size(0), vocabulary = logits.size(1);
  const MistakeCrossEntropyBackward job{checked_floats(grad, count, "grad"),
                                        rows_of(logits, "logits"),
                                        vocabulary,
                                        checked_labels(labels, logits, ignore_index),
                                        ignore_index.value_or(kNoneIgnored),
                                        checked_floats(largest_and_total, 2 * count, "largest_and_total"),
                                        grad_logits};
  torch::stable::parallel_for(0, count, rows_per_thread(vocabulary), [&](int64_t begin, int64_t end) {
    cpu_kernels().mistake_cross_entropy_backward(job, begin, end);
  });
}

Tensor backward_cpu(Tensor grad, Tensor logits, Tensor labels, Tensor largest_and_total,
                    std::optional<int64_t> ignore_index) {
  check_rows(logits, "logits");
  Tensor grad_logits = empty({logits.size(0), logits.size(1)}, logits.scalar_type(), logits);
  write_gradient(grad, logits, labels, largest_and_total, ignore_index, mutable_rows_of(grad_logits, "grad_logits"));
  return grad_logits;
}

void overwriting_backward_cpu(Tensor grad, Tensor logits, Tensor labels, Tensor largest_and_total,
                              std::optional<int64_t> ignore_index) {
  const MutableRows rows = mutable_rows_of(logits, "logits");
  STD_TORCH_CHECK(logits.size(0) <= 1 || logits.stride(0) >= logits.size(1), "rows of logits must not overlap");
  write_gradient(grad, logits, labels, largest_and_total, ignore_index, rows);
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
