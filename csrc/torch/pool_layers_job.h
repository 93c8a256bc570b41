// What the bindings of pool_layers share.

#pragma once

#include "tensors.h"

namespace copilot {

// A contiguous tensor of any shape as rows of its last dimension, or a matrix with adjacent elements.
inline Rows rows_of_states(const Tensor& hidden) {
  if (hidden.dim() == 2) return rows_of(hidden, "hidden_states");
  STD_TORCH_CHECK(hidden.dim() > 0 && hidden.is_contiguous(),
                  "hidden_states must be contiguous, or two-dimensional ones, their last dimension adjacent");
  return {hidden.const_data_ptr(), hidden.size(-1), dtype_of(hidden, "hidden_states")};
}

// A job of pool_layers, with its result. The states and `rows` must outlive it. Hidden as its members are.
class __attribute__((visibility("hidden"))) PoolWork {
 public:
  PoolWork(const std::vector<Tensor>& hidden_states, const std::optional<Tensor>& rows, const std::string& pooling)
      : job_{}, out_(shaped(hidden_states, rows)) {
    job_.layers = layers_.data();
    job_.n_layers = static_cast<int64_t>(layers_.size());
    job_.rows = rows ? indices_of(*rows, "rows") : nullptr;
    job_.width = width_;
    job_.pooling = pooling == "mean" ? Pooling::kMean : pooling == "max" ? Pooling::kMax : Pooling::kSum;
    job_.out = floats_of(out_);
  }
  PoolWork(const PoolWork&) = delete;

  const PoolLayers& job() const { return job_; }
  int64_t n_rows() const { return n_rows_; }  // of a layer
  int64_t count() const { return count_; }    // of the result
  const Tensor& out() const { return out_; }

 private:
  Tensor shaped(const std::vector<Tensor>& hidden_states, const std::optional<Tensor>& rows) {
    STD_TORCH_CHECK(!hidden_states.empty(), "hidden_states must hold at least one tensor");
    for (const Tensor& hidden : hidden_states) layers_.push_back(rows_of_states(hidden));
    const Tensor& first = hidden_states[0];
    std::vector<int64_t> shape(first.sizes().begin(), first.sizes().end());
    for (const Tensor& hidden : hidden_states) {
      STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), hidden.sizes().begin(), hidden.sizes().end()),
                      "hidden_states must be of one shape");
    }
    width_ = shape.back();
    n_rows_ = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) n_rows_ *= shape[i];
    count_ = rows ? rows->numel() : n_rows_;
    if (rows) shape = {count_, width_};
    return empty(shape, ScalarType::Float, first);
  }

  std::vector<Rows> layers_;
  int64_t width_, n_rows_, count_;
  PoolLayers job_;
  Tensor out_;
};

}  // namespace copilot
