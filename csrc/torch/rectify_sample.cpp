// copilot::rectify_sample; see copilot/ops/rectify_sample.py.

#include <limits>
#include <tuple>

#include "rectify_job.h"
#include "sampling.h"

namespace copilot {
namespace {

// Memory for the log p~ of some rows that are to be drawn from.
std::vector<float> rows_to_draw_from(int64_t rows, int64_t vocabulary) {
  return std::vector<float>(rows * sample_row_size(vocabulary), -std::numeric_limits<float>::infinity());
}

// Few rows: p~ is split over the vocabulary.
void draw_from_few(const RectifyWork& work, const RectifySample& job) {
  const int64_t size = sample_row_size(job.vocabulary);
  std::vector<float> log_rectified = rows_to_draw_from(work.rows(), job.vocabulary);
  work.run_by_chunks(log_rectified.data(), size);
  torch::stable::parallel_for(0, work.rows(), rows_per_thread(job.vocabulary), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      cpu_kernels().sample_row(job, row, log_rectified.data() + row * size);
    }
  });
}

// Every thread has memory for one row.
void draw_from_many(const RectifyWork& work, const RectifySample& job) {
  torch::stable::parallel_for(0, work.rows(), rows_per_thread(job.vocabulary), [&](int64_t begin, int64_t end) {
    std::vector<float> log_rectified = rows_to_draw_from(1, job.vocabulary);
    RectifyWork::ByRows by_rows(work, log_rectified.data(), 0);
    for (int64_t row = begin; row < end; ++row) {
      by_rows.run(row);
      cpu_kernels().sample_row(job, row, log_rectified.data());
    }
  });
}

std::tuple<Tensor, Tensor> rectify_sample_cpu(Tensor pilot_logits, Tensor delta, std::optional<Tensor> index,
                                              double strength, std::string rectifier, std::string fusion,
                                              double temperature, std::optional<int64_t> top_k,
                                              std::optional<double> top_p, Tensor seed, Tensor offset) {
  const RectifyWork work(rectify_inputs(pilot_logits, delta, index, strength, rectifier, fusion));
  RectifySample job{};
  job.vocabulary = work.vocabulary();
  job.temperature = temperature_of(temperature);
  job.top_k = top_k_of(top_k, job.vocabulary);
  job.top_p = top_p.value_or(1.0);
  job.seed = static_cast<uint64_t>(*number_of(seed, "seed"));
  job.offset = static_cast<uint64_t>(*number_of(offset, "offset"));
  Tensor token = empty({work.rows()}, ScalarType::Long, pilot_logits);
  Tensor log_prob = empty({work.rows()}, ScalarType::Float, pilot_logits);
  job.token = static_cast<int64_t*>(token.mutable_data_ptr());
  job.log_prob = floats_of(log_prob);
  const bool few = work.rows() < static_cast<int64_t>(torch::stable::get_num_threads());
  few ? draw_from_few(work, job) : draw_from_many(work, job);
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
