// Eight adjacent elements a thread, of a dtype that is an argument of the launch: who has which element is then the
// same for all dtypes, so that rows of several go together, and one kernel serves them all.

#pragma once

#include "device.cuh"

namespace copilot::cuda {

constexpr int kEight = 8;
__host__ __device__ __forceinline__ int64_t eights(int64_t width) { return (width + kEight - 1) / kEight; }

__host__ __device__ __forceinline__ int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Whether every row starts where sixteen bytes can be read at once.
inline bool are_aligned(const Rows& rows) {
  return is_aligned(rows.data) && rows.stride * size_of(rows.dtype) % 16 == 0;
}

__device__ __forceinline__ const void* element_of(const Rows& rows, int64_t row, int64_t v) {
  return static_cast<const char*>(rows.data) + (row * rows.stride + v) * size_of(rows.dtype);
}

// What is read of eight elements, before its first use waits for it. Of two bytes each, they have no `high`.
struct Eight {
  uint4 low, high;
};

__device__ __forceinline__ Eight read_eight(const void* from, DType dtype) {
  const uint4* packs = static_cast<const uint4*>(from);
  Eight eight{};
  eight.low = __ldcs(packs);
  if (dtype == DType::kFloat32) eight.high = __ldcs(packs + 1);
  return eight;
}

__device__ __forceinline__ void to_floats(const Eight& eight, DType dtype, float* values) {
  if (dtype == DType::kFloat32) {
    memcpy(values, &eight, sizeof(eight));
  } else if (dtype == DType::kBFloat16) {
    Pack<BFloat16> pack;
    memcpy(&pack, &eight.low, sizeof(pack));
#pragma unroll
    for (int i = 0; i < kEight; ++i) values[i] = to_float(pack.at[i]);
  } else {
    Pack<Float16> pack;
    memcpy(&pack, &eight.low, sizeof(pack));
#pragma unroll
    for (int i = 0; i < kEight; ++i) values[i] = to_float(pack.at[i]);
  }
}

template <class T>
__device__ __forceinline__ void load_elements(const void* from, int64_t count, float* values) {
  const T* elements = static_cast<const T*>(from);
#pragma unroll
  for (int i = 0; i < kEight; ++i) values[i] = i < count ? to_float(elements[i]) : 0.0f;
}

// Element by element: at the end of a row, or where rows are not aligned. Zeros from `count` on.
__device__ __forceinline__ void load_some(const void* from, DType dtype, int64_t count, float* values) {
  if (dtype == DType::kFloat32) {
    load_elements<float>(from, count, values);
  } else if (dtype == DType::kBFloat16) {
    load_elements<BFloat16>(from, count, values);
  } else {
    load_elements<Float16>(from, count, values);
  }
}

__device__ __forceinline__ float load_one(const void* from, DType dtype) {
  if (dtype == DType::kFloat32) return *static_cast<const float*>(from);
  const uint16_t bits = *static_cast<const uint16_t*>(from);
  return dtype == DType::kBFloat16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}

template <class T>
__device__ __forceinline__ void store_elements(void* to, int64_t count, const float* values) {
  T* elements = static_cast<T*>(to);
  const bool aligned = is_aligned(to);
#pragma unroll
  for (int i = 0; i < kEight; i += kPack<T>) store_pack(elements + i, count - i, aligned, values + i);
}

// The first `count` of eight values.
__device__ __forceinline__ void store_eight(const MutableRows& rows, int64_t row, int64_t v, int64_t count,
                                            const float* values) {
  void* to = static_cast<char*>(rows.data) + (row * rows.stride + v) * size_of(rows.dtype);
  if (rows.dtype == DType::kFloat32) {
    store_elements<float>(to, count, values);
  } else if (rows.dtype == DType::kBFloat16) {
    store_elements<BFloat16>(to, count, values);
  } else {
    store_elements<Float16>(to, count, values);
  }
}

}  // namespace copilot::cuda
