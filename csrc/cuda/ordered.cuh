// Floats as whole numbers of the same order, and a bound of the k-th largest of what a block has.

#pragma once

#include "device.cuh"

namespace copilot::cuda {

// 0 and -0 are equal. Not of NaN.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float of_ordered(uint32_t number) {
  return __uint_as_float(number >> 31 ? number & 0x7FFFFFFFu : ~number);
}

constexpr unsigned kMostHands = 256;

struct Hands {
  uint32_t largest[kMostHands];
  float reached;
};

// Given the largest of what every thread has, a number that k of all reach at least, and few more do: the k-th largest
// of what hands of threads have as their largest. There are 2 k hands, or less than twice as many, as long as there are
// threads enough; if there are fewer than k, the result is -infinity. All threads of a block of whole warps call it,
// with a barrier between two calls.
__device__ __forceinline__ float reached_by(int k, float largest) {
  COPILOT_SHARED(Hands, hands);
  unsigned threads = 1;  // of a hand
  while (threads < 32 && (blockDim.x > threads * kMostHands || static_cast<unsigned>(4 * k) * threads <= blockDim.x)) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, static_cast<int>(threads)));
    threads *= 2;
  }
  const unsigned count = blockDim.x / threads, hand = threadIdx.x / threads;
  const bool is_first = threadIdx.x % threads == 0;
  // No two are equal, at the cost of the last bits, which lower the result a little.
  const uint32_t mine = (ordered(largest) & ~(kMostHands - 1)) | (kMostHands - 1 - hand);
  if (is_first) hands.largest[hand] = mine;
  if (threadIdx.x == 0) hands.reached = -kInfinity;
  __syncthreads();
  if (is_first) {
    int larger = 0;
#pragma unroll 8
    for (unsigned i = 0; i < count; ++i) larger += hands.largest[i] > mine;
    // That of -infinity would be NaN.
    if (larger == k - 1 && largest > -kInfinity) hands.reached = of_ordered(mine & ~(kMostHands - 1));
  }
  __syncthreads();
  return hands.reached;
}

}  // namespace copilot::cuda
