// What the bindings of rectify and rectify_sample share.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "rectify_inputs.h"

namespace copilot {

inline float element_of(const Rows& rows, int64_t row, int64_t i) {
  const int64_t at = row * rows.stride + i;
  switch (rows.dtype) {
    case DType::kBFloat16:
      return static_cast<const torch::headeronly::BFloat16*>(rows.data)[at];
    case DType::kFloat16:
      return static_cast<const torch::headeronly::Half*>(rows.data)[at];
    default:
      return static_cast<const float*>(rows.data)[at];
  }
}

// The candidates of every row, in the order of their tokens.
inline std::vector<Candidate> candidates_of(const RectifyInputs& inputs) {
  const int64_t rows = inputs.rows, kept = inputs.n_candidates;
  std::vector<Candidate> candidates(rows * kept);
  for (int64_t i = 0; i < rows * kept; ++i) {
    const int64_t token = inputs.index[i];
    STD_TORCH_CHECK(token >= 0 && token < inputs.vocabulary, "index must lie in [0, ", inputs.vocabulary, "); got ",
                    token);
    candidates[i] = {token, element_of(inputs.delta, i / kept, i % kept)};
  }
  torch::stable::parallel_for(0, rows, rows_per_thread(64 * kept), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::sort(candidates.begin() + row * kept, candidates.begin() + (row + 1) * kept,
                [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
    }
  });
  return candidates;
}

constexpr int64_t kStreamedBytes = 16 << 20;

// A job of rectify without its `out`, and the passes that it takes. Its rows must outlive it.
class RectifyWork {
 public:
  explicit RectifyWork(const RectifyInputs& given) : job_{}, rows_(given.rows), candidates_(candidates_of(given)) {
    const RectifyInputs inputs = without_mixture(given);
    job_.logits = inputs.logits;
    job_.vocabulary = inputs.vocabulary;
    job_.rectifier = inputs.rectifier;
    job_.strength = inputs.strength;
    if (given.index == nullptr) job_.delta = inputs.delta;
    job_.candidates = candidates_.data();
    job_.n_candidates = inputs.n_candidates;
    const CpuKernels& kernels = cpu_kernels();
    passes_ = {kernels.rectify_reduce, kernels.rectify_write};
    if (job_.rectifier == Rectifier::kLinear && job_.delta.data != nullptr) {
      passes_.insert(passes_.begin() + 1, kernels.rectify_total);
    }
  }
  RectifyWork(const RectifyWork&) = delete;

  int64_t rows() const { return rows_; }
  int64_t vocabulary() const { return job_.vocabulary; }

  // A thread takes whole rows, which then stay in its cache from pass to pass.
  class ByRows {
   public:
    // Row i of log p~ goes to out + i * out_stride.
    ByRows(const RectifyWork& work, float* out, int64_t out_stride)
        : passes_(work.passes_), job_(work.job_with(out, out_stride)), scratch_(rectify_scratch(work.vocabulary())) {}

    void run(int64_t row) {
      for (RectifyPass* pass : passes_) pass(job_, row, 0, rectify_chunks(job_.vocabulary), scratch_.data());
    }

   private:
    const std::vector<RectifyPass*>& passes_;
    Rectify job_;
    std::vector<float> scratch_;
  };

  // The chunks of all rows, one after the other, are dealt out pass by pass.
  void run_by_chunks(float* out, int64_t out_stride) const {
    const Rectify job = job_with(out, out_stride);
    const int64_t chunks = rectify_chunks(job.vocabulary), size = rectify_scratch(job.vocabulary);
    std::vector<float> scratch(rows_ * size);
    for (RectifyPass* pass : passes_) {
      torch::stable::parallel_for(0, rows_ * chunks, rows_per_thread(kRectifyChunk), [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t row = begin / chunks, first = begin % chunks;
          const int64_t last = std::min(chunks, first + end - begin);
          pass(job, row, first, last, scratch.data() + row * size);
          begin += last - first;
        }
      });
    }
  }

 private:
  Rectify job_with(float* out, int64_t out_stride) const {
    Rectify job = job_;
    job.out = out;
    job.out_stride = out_stride;
    job.streams = rows_ * out_stride * static_cast<int64_t>(sizeof(float)) > kStreamedBytes;
    return job;
  }

  Rectify job_;
  int64_t rows_;
  std::vector<Candidate> candidates_;
  std::vector<RectifyPass*> passes_;
};

}  // namespace copilot
