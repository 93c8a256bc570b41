// What the bindings of rectify and rectify_sample share.

#pragma once

#include "tensors.h"

namespace copilot {

// The k candidates of every row, in the order of their tokens.
inline std::vector<Candidate> candidates_of(const Tensor& index, const Tensor& delta, int64_t rows,
                                            int64_t vocabulary) {
  STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == rows, "index must be (N, k)");
  STD_TORCH_CHECK(delta.scalar_type() == ScalarType::Float && delta.is_contiguous(),
                  "delta must be float32 and adjacent where index is given");
  const int64_t* tokens = indices_of(index, "index");
  const float* deltas = static_cast<const float*>(delta.const_data_ptr());
  const int64_t kept = index.size(1);
  std::vector<Candidate> candidates(rows * kept);
  for (int64_t i = 0; i < rows * kept; ++i) {
    STD_TORCH_CHECK(tokens[i] >= 0 && tokens[i] < vocabulary, "index must lie in [0, ", vocabulary, "); got ",
                    tokens[i]);
    candidates[i] = {tokens[i], deltas[i]};
  }
  torch::stable::parallel_for(0, rows, rows_per_thread(64 * kept), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::sort(candidates.begin() + row * kept, candidates.begin() + (row + 1) * kept,
                [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
    }
  });
  return candidates;
}

// A job of rectify without its `out`, and the passes that it takes. Its rows must outlive it.
class RectifyWork {
 public:
  RectifyWork(const Tensor& pilot_logits, const Tensor& delta, const std::optional<Tensor>& index, double strength,
              const std::string& rectifier, const std::string& fusion)
      : job_{}, rows_(pilot_logits.dim() > 0 ? pilot_logits.size(0) : 0) {
    job_.logits = rows_of(pilot_logits, "pilot_logits");
    job_.vocabulary = pilot_logits.size(1);
    job_.rectifier = fusion == "logit"       ? Rectifier::kLogit
                     : rectifier == "linear" ? Rectifier::kLinear
                                             : Rectifier::kSimplex;
    job_.strength = strength;
    set_delta(delta, index, index ? *index : pilot_logits);
    if (job_.rectifier == Rectifier::kSimplex && (strength == 0.0 || strength == 1.0)) set_no_mixture();
    const CpuKernels& kernels = cpu_kernels();
    passes_ = {kernels.rectify_reduce, kernels.rectify_write};
    if (job_.rectifier == Rectifier::kLinear && !index) passes_.insert(passes_.begin() + 1, kernels.rectify_total);
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
  void set_delta(const Tensor& delta, const std::optional<Tensor>& index, const Tensor& shape) {
    STD_TORCH_CHECK(delta.dim() == 2 && delta.size(0) == shape.size(0) && delta.size(1) == shape.size(1),
                    "delta must have the shape of ", index ? "index" : "pilot_logits");
    if (!index) {
      job_.delta = rows_of(delta, "delta");
      return;
    }
    candidates_ = candidates_of(*index, delta, rows_, job_.vocabulary);
    job_.candidates = candidates_.data();
    job_.n_candidates = index->size(1);
  }

  // softmax(z) or softmax(z + delta)
  void set_no_mixture() {
    job_.rectifier = Rectifier::kLogit;
    if (job_.strength == 1.0) return;
    job_.delta = {};
    job_.n_candidates = 0;
  }

  Rectify job_with(float* out, int64_t out_stride) const {
    Rectify job = job_;
    job.out = out;
    job.out_stride = out_stride;
    return job;
  }

  Rectify job_;
  int64_t rows_;
  std::vector<Candidate> candidates_;
  std::vector<RectifyPass*> passes_;
};

}  // namespace copilot
