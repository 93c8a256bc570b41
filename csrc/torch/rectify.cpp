// copilot::rectify; see copilot/ops/rectify.py.

#include "tensors.h"

namespace copilot {
namespace {

// The k candidates of every row, in the order of their tokens.
std::vector<Candidate> candidates_of(const Tensor& index, const Tensor& delta, int64_t rows, int64_t vocabulary) {
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

// A thread takes whole rows, which then stay in its cache from pass to pass.
void run_by_rows(const Rectify& job, int64_t rows, const std::vector<RectifyPass*>& passes) {
  torch::stable::parallel_for(0, rows, rows_per_thread(job.vocabulary), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(rectify_scratch(job.vocabulary));
    for (int64_t row = begin; row < end; ++row) {
      for (RectifyPass* pass : passes) pass(job, row, 0, rectify_chunks(job.vocabulary), scratch.data());
    }
  });
}

// The chunks of all rows, one after the other, are dealt out pass by pass.
void run_by_chunks(const Rectify& job, int64_t rows, const std::vector<RectifyPass*>& passes) {
  const int64_t chunks = rectify_chunks(job.vocabulary), size = rectify_scratch(job.vocabulary);
  std::vector<float> scratch(rows * size);
  for (RectifyPass* pass : passes) {
    torch::stable::parallel_for(0, rows * chunks, rows_per_thread(kRectifyChunk), [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t row = begin / chunks, first = begin % chunks;
        const int64_t last = std::min(chunks, first + end - begin);
        pass(job, row, first, last, scratch.data() + row * size);
        begin += last - first;
      }
    });
  }
}

Tensor rectify_cpu(Tensor pilot_logits, Tensor delta, std::optional<Tensor> index, double strength,
                   std::string rectifier, std::string fusion) {
  Rectify job{};
  job.logits = rows_of(pilot_logits, "pilot_logits");
  const int64_t rows = pilot_logits.size(0);
  job.vocabulary = pilot_logits.size(1);
  job.rectifier = fusion == "logit"       ? Rectifier::kLogit
                  : rectifier == "linear" ? Rectifier::kLinear
                                          : Rectifier::kSimplex;
  job.strength = strength;
  const Tensor& shape = index ? *index : pilot_logits;
  STD_TORCH_CHECK(delta.dim() == 2 && delta.size(0) == shape.size(0) && delta.size(1) == shape.size(1),
                  "delta must have the shape of ", index ? "index" : "pilot_logits");
  std::vector<Candidate> candidates;
  if (index) {
    candidates = candidates_of(*index, delta, rows, job.vocabulary);
    job.n_candidates = index->size(1);
  } else {
    job.delta = rows_of(delta, "delta");
  }
  job.candidates = candidates.data();
  if (job.rectifier == Rectifier::kSimplex && (strength == 0.0 || strength == 1.0)) {
    job.rectifier = Rectifier::kLogit;  // softmax(z) or softmax(z + delta), no mixture
    if (strength == 0.0) {
      job.delta = {};
      job.n_candidates = 0;
    }
  }
  Tensor out = empty({rows, job.vocabulary}, ScalarType::Float, pilot_logits);
  job.out = floats_of(out);

  const CpuKernels& kernels = cpu_kernels();
  std::vector<RectifyPass*> passes = {kernels.rectify_reduce, kernels.rectify_write};
  if (job.rectifier == Rectifier::kLinear && !index) passes.insert(passes.begin() + 1, kernels.rectify_total);
  const bool many_rows = rows >= 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  many_rows ? run_by_rows(job, rows, passes) : run_by_chunks(job, rows, passes);
  return out;
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def(
      "rectify(Tensor pilot_logits, Tensor delta, Tensor? index, float strength, str rectifier, str fusion) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) { m.impl("rectify", TORCH_BOX(&copilot::rectify_cpu)); }
