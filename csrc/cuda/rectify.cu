// log p~ of Eq. 8; see rectify.cuh.
//
// The floor is z and a dense delta read once and log p~ written once, in 16-byte accesses: 4 + 2 bytes a token for
// bfloat16 logits and candidates. With clusters that is what is read, but for a long dense delta, whose second reading
// comes from L2. Without, z is read once more for rows of more than one slice, and with a dense delta of the linear
// rectifier twice, both from L2 where it holds the batch.

#include "rectify.cuh"

namespace copilot::cuda {
namespace {

template <Exchange exchange>
__global__ void __launch_bounds__(kSliceThreads, 2)
    rectify_slice(const __grid_constant__ Rectification job, float* out) {
  RowSlice slice(job);
  slice.load();
  const Solution solution = slice.solve<exchange>();
  float* to = out + slice.row() * job.inputs.vocabulary + slice.first();
  const bool aligned = is_aligned(to);
  slice.each_pack(solution, [&](int at, const float* four) { store_pack(to + at, slice.count() - at, aligned, four); });
  slice.each_candidate(solution, [&](int at, float value) { to[at] = value; });
}

__global__ void __launch_bounds__(kSliceThreads, 2) sum_slice(const __grid_constant__ Rectification job) {
  RowSlice slice(job);
  slice.load();
  slice.store_sums();
}

__global__ void __launch_bounds__(kSliceThreads, 2) mass_of_slice(const __grid_constant__ Rectification job) {
  RowSlice slice(job);
  slice.load();
  slice.store_mass();
}

}  // namespace

int64_t rectify_scratch(int64_t rows, int64_t vocabulary) {
  const SliceSplit split = split_of(vocabulary, current_device());
  return split.cluster ? 0 : rows * split.slices * static_cast<int64_t>(sizeof(SliceSums) + sizeof(float));
}

void rectify_sums(const Rectification& job, Stream stream) {
  launch(sum_slice, slice_launch(job, stream), job);
  if (job.dense && job.inputs.rectifier == Rectifier::kLinear) launch(mass_of_slice, slice_launch(job, stream), job);
}

void rectify(const RectifyInputs& inputs, float* out, void* scratch, Stream stream) {
  const Rectification job = rectification(inputs, scratch);
  if (job.split.cluster) {
    launch(rectify_slice<Exchange::kCluster>, slice_launch(job, stream), job, out);
  } else {
    rectify_sums(job, stream);
    launch(rectify_slice<Exchange::kMemory>, slice_launch(job, stream), job, out);
  }
}

}  // namespace copilot::cuda
