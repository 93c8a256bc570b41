// copilot::rectify_sample; see copilot/ops/rectify_sample.py.

#include <tuple>

#include "tensors.h"

namespace copilot {
namespace {

using Body = void (*)(int64_t begin, int64_t end, void* context);

void on_this_thread(int64_t count, Body body, void* context) { body(0, count, context); }

void on_all_threads(int64_t chunks, Body body, void* context) {
  constexpr int64_t kChunksPerThread = 8;
  torch::stable::parallel_for(0, chunks, kChunksPerThread,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

uint64_t number_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == 1, name, " must hold one element; got ", tensor.numel());
  return static_cast<uint64_t>(*indices_of(tensor, name));
}

const int64_t* checked_index(const Tensor& index, const Tensor& delta, int64_t vocabulary) {
  STD_TORCH_CHECK(index.dim() == 2 && index.size(0) == delta.size(0) && index.size(1) == delta.size(1),
                  "delta and index must have one shape");
  const int64_t* tokens = indices_of(index, "index");
  for (int64_t i = 0; i < index.numel(); ++i) {
    STD_TORCH_CHECK(tokens[i] >= 0 && tokens[i] < vocabulary, "index must lie in [0, ", vocabulary, "); got ",
                    tokens[i]);
  }
  return tokens;
}

std::tuple<Tensor, Tensor> rectify_sample_cpu(Tensor pilot_logits, Tensor delta, std::optional<Tensor> index,
                                              double strength, std::string rectifier, std::string fusion,
                                              double temperature, std::optional<int64_t> top_k,
                                              std::optional<double> top_p, Tensor seed, Tensor offset) {
  RectifySample job{};
  job.logits = rows_of(pilot_logits, "pilot_logits");
  job.delta = rows_of(delta, "delta");
  const int64_t rows = pilot_logits.size(0);
  job.vocabulary = pilot_logits.size(1);
  STD_TORCH_CHECK(job.vocabulary > 0, "pilot_logits must have at least one token");
  STD_TORCH_CHECK(delta.size(0) == rows && (index || delta.size(1) == job.vocabulary),
                  "delta must have the rows of pilot_logits, and without index its tokens");
  job.sparse = index.has_value();
  if (index) job.index = checked_index(*index, delta, job.vocabulary);
  job.candidates = delta.size(1);
  const bool logit_fusion = fusion == "logit", linear = rectifier == "linear" && !logit_fusion;
  job.rectifier = linear ? Rectifier::kLinear : Rectifier::kSimplex;
  job.strength = logit_fusion ? 1.0 : strength;  // softmax(z + lambda delta) is the mixture's second part alone
  job.scale = linear || logit_fusion ? static_cast<float>(strength) : 1.0f;
  job.temperature = static_cast<float>(temperature);
  job.top_k = top_k.value_or(0);
  job.top_p = top_p.value_or(1.0);
  job.seed = number_of(seed, "seed");
  job.offset = number_of(offset, "offset");
  Tensor token = empty({rows}, ScalarType::Long, pilot_logits);
  Tensor log_prob = empty({rows}, ScalarType::Float, pilot_logits);
  job.token = static_cast<int64_t*>(token.mutable_data_ptr());
  job.log_prob = floats_of(log_prob);

  // Few rows are split over the vocabulary, many over the rows.
  if (rows < static_cast<int64_t>(torch::stable::get_num_threads())) {
    job.split = on_all_threads;
    cpu_kernels().rectify_sample(job, 0, rows);
  } else {
    job.split = on_this_thread;
    torch::stable::parallel_for(0, rows, rows_per_thread(job.vocabulary),
                                [&](int64_t begin, int64_t end) { cpu_kernels().rectify_sample(job, begin, end); });
  }
  return {token, log_prob};
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def(
      "rectify_sample(Tensor pilot_logits, Tensor delta, Tensor? index, float strength, str rectifier, str fusion, "
      "float temperature, int? top_k, float? top_p, Tensor seed, Tensor offset) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) { m.impl("rectify_sample", TORCH_BOX(&copilot::rectify_sample_cpu)); }
