// copilot::rectify; see copilot/ops/rectify.py.

#include "rectify_job.h"

namespace copilot {
namespace {

Tensor rectify_cpu(Tensor pilot_logits, Tensor delta, std::optional<Tensor> index, double strength,
                   std::string rectifier, std::string fusion) {
  const RectifyWork work(rectify_inputs(pilot_logits, delta, index, strength, rectifier, fusion));
  const int64_t rows = work.rows(), vocabulary = work.vocabulary();
  Tensor out = empty({rows, vocabulary}, ScalarType::Float, pilot_logits);
  if (rows < 4 * static_cast<int64_t>(torch::stable::get_num_threads())) {
    work.run_by_chunks(floats_of(out), vocabulary);
    return out;
  }
  torch::stable::parallel_for(0, rows, rows_per_thread(vocabulary), [&](int64_t begin, int64_t end) {
    RectifyWork::ByRows by_rows(work, floats_of(out), vocabulary);
    for (int64_t row = begin; row < end; ++row) by_rows.run(row);
  });
  return out;
}

}  // namespace
}  // namespace copilot

STABLE_TORCH_LIBRARY_FRAGMENT(copilot, m) {
  m.def(
      "rectify(Tensor pilot_logits, Tensor delta, Tensor? index, float strength, str rectifier, str fusion) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(copilot, CPU, m) { m.impl("rectify", TORCH_BOX(&copilot::rectify_cpu)); }
