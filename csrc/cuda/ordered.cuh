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
// of what hands of threads have as their largest. There are from 2 k to 4 k hands, 8 at least, as long as there are
// threads enough; if there are fewer than k, the result is -infinity. All threads of a block of whole warps call it,
// with a barrier between two calls.
__device__ __forceinline__ float reached_by(int k, float largest) {
  COPILOT_SHARED(Hands, hands);
  unsigned threads = 1, count = blockDim.x, hand = threadIdx.x;  // threads of a hand, hands, this thread's
  while (threads < 32 && (count > kMostHands || static_cast<unsigned>(4 * k) <= count)) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, static_cast<int>(threads)));
    threads *= 2;
    count /= 2;
    hand /= 2;
  }
  // No two are equal, at the cost of the last bits, which lower the result a little.
  const uint32_t mine = (ordered(largest) & ~(kMostHands - 1)) | (kMostHands - 1 - hand);
  const unsigned part = threadIdx.x % threads;
  if (part == 0) hands.largest[hand] = mine;
  if (threadIdx.x == 0) hands.reached = -kInfinity;
  __syncthreads();
  int larger = 0;
#pragma unroll 4
  for (unsigned i = part; i < count; i += threads) larger += hands.largest[i] > mine;
  for (unsigned mask = 1; mask < threads; mask *= 2) {
    larger += __shfl_xor_sync(kFullMask, larger, static_cast<int>(mask));
  }
  // That of -infinity would be NaN.
  if (part == 0 && larger == k - 1 && largest > -kInfinity) hands.reached = of_ordered(mine & ~(kMostHands - 1));
  __syncthreads();
  return hands.reached;
}

}  // namespace copilot::cuda
