// log p~ of Eq. 8; see rectify.cuh.
//
// The floor is z and a dense delta read once and log p~ written once, in 16-byte accesses: 4 + 2 bytes a token for
// bfloat16 logits and candidates. With clusters that is what is read, but for a dense delta, whose second reading comes
// from L2. Without, z is read once more for rows of more than one slice, and with a dense delta of the linear
// rectifier twice, both from L2 where it holds the batch.

#include "rectify.cuh"

namespace copilot::cuda {
namespace {

template <Exchange exchange, bool kDense>
__global__ void __launch_bounds__(kSliceThreads, exchange == Exchange::kMemory && kDense ? 4 : 5)
    rectify_slice(const __grid_constant__ Rectification job, float* out) {
  RowSlice<kDense> slice(job);
  slice.load();
  const Solution solution = slice.template solve<exchange>();
  float* to = out + slice.row() * job.inputs.vocabulary + slice.first();
  const bool aligned = is_aligned(to);
  slice.each_pack(solution, [&](int at, const float* four) { store_pack(to + at, slice.count() - at, aligned, four); });
  slice.each_candidate(solution, [&](int at, float value) { to[at] = value; });
}

template <bool kDense>
__global__ void __launch_bounds__(kSliceThreads, kDense ? 4 : 5) sum_slice(const __grid_constant__ Rectification job) {
  RowSlice<kDense> slice(job);
  slice.load();
  slice.store_sums();
}

__global__ void __launch_bounds__(kSliceThreads, 4) mass_of_slice(const __grid_constant__ Rectification job) {
  RowSlice<true> slice(job);
  slice.load();
  slice.store_mass();
}

}  // namespace

int64_t rectify_scratch(int64_t rows, int64_t vocabulary) {
  const SliceSplit split = split_of(vocabulary, current_device());
  return split.cluster ? 0 : rows * split.slices * static_cast<int64_t>(sizeof(SliceSums) + sizeof(float));
}

void rectify_sums(const Rectification& job, Stream stream) {
  with_dense(job, [&](auto dense) { launch(sum_slice<dense.value>, slice_launch(job, stream), job); });
  if (job.dense && job.inputs.rectifier == Rectifier::kLinear) launch(mass_of_slice, slice_launch(job, stream), job);
}

void rectify(const RectifyInputs& inputs, float* out, void* scratch, Stream stream) {
  const Rectification job = rectification(inputs, scratch);
  if (!job.split.cluster) rectify_sums(job, stream);
  with_dense(job, [&](auto dense) {
    launch(job.split.cluster ? rectify_slice<Exchange::kCluster, dense.value>
                             : rectify_slice<Exchange::kMemory, dense.value>,
           slice_launch(job, stream), job, out);
  });
}

}  // namespace copilot::cuda
