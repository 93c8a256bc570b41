// What the bindings of mistake_cross_entropy share: the checks that need no data.

#pragma once

#include <limits>
#include <tuple>

#include "tensors.h"

namespace copilot {

// In place of an ignore_index, where there is none: no label of a kernel is that.
constexpr int64_t kNoneIgnored = std::numeric_limits<int64_t>::min();

inline int64_t ignored_label(std::optional<int64_t> ignore_index) {
  STD_TORCH_CHECK(ignore_index != kNoneIgnored, "ignore_index must be None or above -2^63; got ", kNoneIgnored);
  return ignore_index.value_or(kNoneIgnored);
}

inline const int64_t* labels_of(const Tensor& labels, const Tensor& logits) {
  const int64_t* label = indices_of(labels, "labels");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == logits.size(0),
                  "labels must be (N,), one for each row of logits");
  return label;
}

inline const float* checked_floats(const Tensor& tensor, int64_t elements, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.numel() == elements,
                  name, " must be an adjacent float32 tensor of ", elements, " elements");
  return static_cast<const float*>(tensor.const_data_ptr());
}

// loss, largest_and_total, top_index, top_prob, target_prob, rest_mass, rest_square.
using MistakeFields = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline MistakeFields mistake_fields(const Tensor& logits, std::optional<int64_t> k) {
  const int64_t count = logits.size(0), vocabulary = logits.size(1);
  STD_TORCH_CHECK(!k || (*k >= 1 && *k <= vocabulary), "k must be None or in [1, ", vocabulary, "]; got ",
                  k.value_or(0));
  const auto floats = [&](const std::vector<int64_t>& size) { return empty(size, ScalarType::Float, logits); };
  return {floats({count}),
          floats({count, 2}),
          empty({count, k.value_or(0)}, ScalarType::Long, logits),
          floats({count, k.value_or(vocabulary)}),
          floats({count}),
          floats({count}),
          floats({count})};
}

inline MistakeCrossEntropy mistake_job(const Tensor& logits, const Tensor& labels, std::optional<int64_t> k,
                                       std::optional<int64_t> ignore_index, MistakeFields& fields) {
  auto& [loss, largest_and_total, top_index, top_prob, target_prob, rest_mass, rest_square] = fields;
  return {rows_of(logits, "logits"),
          logits.size(1),
          labels_of(labels, logits),
          ignored_label(ignore_index),
          k.value_or(0),
          floats_of(loss),
          floats_of(largest_and_total),
          static_cast<int64_t*>(top_index.mutable_data_ptr()),
          floats_of(top_prob),
          floats_of(target_prob),
          floats_of(rest_mass),
          floats_of(rest_square)};
}

inline MistakeCrossEntropyBackward mistake_backward_job(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                                        const Tensor& largest_and_total,
                                                        std::optional<int64_t> ignore_index,
                                                        const MutableRows& grad_logits) {
  const int64_t count = logits.size(0);
  return {checked_floats(grad, count, "grad"),
          rows_of(logits, "logits"),
          logits.size(1),
          labels_of(labels, logits),
          ignored_label(ignore_index),
          checked_floats(largest_and_total, 2 * count, "largest_and_total"),
          grad_logits};
}

inline Tensor empty_gradient(const Tensor& logits) {
  check_rows(logits, "logits");
  return empty({logits.size(0), logits.size(1)}, logits.scalar_type(), logits);
}

// Of the gradient that takes the place of the logits.
inline MutableRows overwritten_rows(Tensor& logits) {
  const MutableRows rows = mutable_rows_of(logits, "logits");
  STD_TORCH_CHECK(logits.size(0) <= 1 || logits.stride(0) >= logits.size(1), "rows of logits must not overlap");
  return rows;
}

}  // namespace copilot
