// What the CUDA kernels share. They compile with nvcc, or against emulation.h with a C++ compiler.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "copilot/cuda.h"

#ifdef COPILOT_EMULATION
#include "emulation.h"
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>

constexpr unsigned kFullMask = 0xFFFFFFFFu;
#endif

namespace copilot::cuda {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- Launches ----

struct Launch {
  int64_t blocks;
  unsigned threads;         // of a block
  Stream stream = nullptr;  // the default stream
  unsigned cluster = 1;     // blocks that share their memory, at most Device::most_blocks
  size_t shared = 0;        // bytes of dynamic_shared()
};

struct Device {
  unsigned most_blocks;     // of a cluster; 1 where there are none
  size_t shared_per_block;  // bytes, at most
};

constexpr unsigned kMostBlocks = 16;     // of a cluster on any GPU
constexpr unsigned kPortableBlocks = 8;  // on every GPU that has clusters

// Of a cluster, given capabilities, 80 for 8.0: the one that the code was written for, and the GPU's that it was
// translated for when it was loaded or before.
inline unsigned most_blocks(int code, int gpu) {
  if (code < 90) return 1;
  return gpu < 110 ? kMostBlocks : kPortableBlocks;
}

// The x of a grid.
inline unsigned checked_blocks(int64_t blocks) {
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error("rows for more than the 2^31 - 1 blocks of a launch; got " + std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

#ifdef COPILOT_EMULATION

inline Device current_device() {
  return {most_blocks(emulation::code(), emulation::capability()), emulation::shared_per_block()};
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  if (how.blocks == 0) return;
  const int gpu = emulation::capability();
  if (how.cluster > most_blocks(gpu, gpu)) throw std::runtime_error("a cluster that this GPU does not run");
  emulation::Cluster(dim3{checked_blocks(how.blocks)}, how.threads, how.cluster, how.shared,
                     [&] { kernel(static_cast<Parameters>(arguments)...); });
}

inline void set_to_zero(void* memory, size_t bytes, Stream) { std::memset(memory, 0, bytes); }

#else

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next to ask for it takes the error for its own
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Only looked at.
template <class = void>
__global__ void nothing() {}

// f(config), what the runtime calls `how`.
template <class F>
auto with_config(const Launch& how, F&& f) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = how.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(checked_blocks(how.blocks));
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared;
  config.stream = how.stream;
  config.attrs = &cluster;
  config.numAttrs = how.cluster > 1 ? 1 : 0;
  return f(config);
}

inline cudaError_t allow_large_clusters(const void* kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// Whether the current GPU runs the largest clusters, of blocks with the shared memory that all may have: one of few
// multiprocessors, or a part of one, need not.
inline bool runs_largest_clusters() {
  const Launch how{.blocks = kMostBlocks, .threads = 256, .cluster = kMostBlocks, .shared = 48 * 1024};
  int clusters = 0;
  const bool known = allow_large_clusters(reinterpret_cast<const void*>(nothing<>)) == cudaSuccess &&
                     with_config(how, [&](const cudaLaunchConfig_t& config) {
                       return cudaOccupancyMaxActiveClusters(&clusters, nothing<>, &config);
                     }) == cudaSuccess;
  if (!known) cudaGetLastError();  // or the next to ask for it takes the error for its own
  return clusters > 0;
}

inline Device current_device() {
  thread_local int known = -1;
  thread_local Device found;
  int device;
  check(cudaGetDevice(&device));
  if (device == known) return found;
  int shared;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, nothing<>));
  found = {most_blocks(code.ptxVersion, code.binaryVersion), static_cast<size_t>(shared)};
  if (found.most_blocks > kPortableBlocks && !runs_largest_clusters()) found.most_blocks = kPortableBlocks;
  known = device;
  return found;
}

// Lets `kernel` have more shared memory than the 48 KB, its variables included, that it may have unasked: all that
// there is, so that threads that launch it with different sizes ask for the same.
inline void allow_shared(const void* kernel, size_t dynamic) {
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, kernel));
  if (dynamic + code.sharedSizeBytes <= 48 * 1024) return;
  const size_t most = current_device().shared_per_block - code.sharedSizeBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)));
}

inline void set_to_zero(void* memory, size_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemsetAsync(memory, 0, bytes, stream));
}

// Launches `kernel`; without blocks there is nothing to do.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  if (how.blocks == 0) return;
  if (how.shared > 0) allow_shared(reinterpret_cast<const void*>(kernel), how.shared);
  if (how.cluster > kPortableBlocks) check(allow_large_clusters(reinterpret_cast<const void*>(kernel)));
  check(with_config(how, [&](const cudaLaunchConfig_t& config) {
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }));
}

#endif

// ---- Shared memory and clusters ----
//
// COPILOT_SHARED(Type, name); declares a variable that the threads of a block share. It is not initialised.

#ifdef COPILOT_EMULATION

#define COPILOT_SHARED(Type, name)  \
  static const char name##_key = 0; \
  auto& name = *reinterpret_cast<Type*>(copilot::emulation::current->block->variable(&name##_key, sizeof(Type)))

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulation::current->block->dynamic.bytes.get());
}

inline unsigned cluster_rank() { return emulation::current->block->rank; }
inline unsigned cluster_size() { return emulation::running->size(); }
inline void cluster_sync() { emulation::current->block->cluster_barrier.wait(); }
inline void announce_block() {}
inline void wait_for_blocks() {}
template <class T>
T* of_peer(T* address, unsigned rank) {
  return emulation::of_peer(address, rank);
}

// Ends the whole grid: an index that only the device sees is beyond [0, size); `why` may be empty.
[[noreturn]] inline void refuse_index(const char* name, int64_t size, const char* why, int64_t got) {
  throw std::runtime_error(std::string("refused by the kernel, ") + name + " must lie in [0, " + std::to_string(size) +
                           ")" + why + "; got " + std::to_string(got));
}

#else

#define COPILOT_SHARED(Type, name) __shared__ Type name

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ uint4 copilot_dynamic_shared[];
  return reinterpret_cast<T*>(copilot_dynamic_shared);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
__device__ __forceinline__ unsigned cluster_size() { return cooperative_groups::this_cluster().num_blocks(); }
__device__ __forceinline__ void cluster_sync() { cooperative_groups::this_cluster().sync(); }
// A kernel's first statement, and what comes before the first of_peer(): until then a block may not have begun. After
// the last of_peer() there must be a cluster_sync(): a block that has ended has no variables.
__device__ __forceinline__ void announce_block() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::); }
__device__ __forceinline__ void wait_for_blocks() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
// The same variable of another block of the cluster.
template <class T>
__device__ __forceinline__ T* of_peer(T* address, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(address, rank);
}
#else
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ unsigned cluster_size() { return 1; }
__device__ __forceinline__ void cluster_sync() { __syncthreads(); }
__device__ __forceinline__ void announce_block() {}
__device__ __forceinline__ void wait_for_blocks() {}
template <class T>
__device__ __forceinline__ T* of_peer(T* address, unsigned) {
  return address;
}
#endif

// Ends the whole grid: an index that only the device sees is beyond [0, size); `why` may be empty.
[[noreturn]] __device__ __forceinline__ void refuse_index(const char* name, int64_t size, const char* why,
                                                          int64_t got) {
  printf("copilot: %s must lie in [0, %lld)%s; got %lld\n", name, static_cast<long long>(size), why,
         static_cast<long long>(got));
  __trap();
  __builtin_unreachable();
}

#endif

// ---- Elements ----

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

#ifdef COPILOT_EMULATION
inline float to_float(Float16 x) { return static_cast<float>(std::bit_cast<_Float16>(x.bits)); }
#else
__device__ __forceinline__ float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
#endif

// An element of fewer bits has them in the lower ones.
__device__ __forceinline__ float of_bits(uint32_t bits, DType dtype) {
  const auto lower = static_cast<uint16_t>(bits);
  if (dtype == DType::kFloat32) return __uint_as_float(bits);
  return dtype == DType::kBFloat16 ? to_float(BFloat16{lower}) : to_float(Float16{lower});
}

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
#ifdef COPILOT_EMULATION
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
  } else {
    const uint32_t bits = __float_as_uint(x);
    return {static_cast<uint16_t>(x != x ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
#else
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
  }
}

// ---- Functions as the GPU has them: within 2^-22 of the result for moderate x, and 0 for what float32 holds but
// poorly ----

#ifdef COPILOT_EMULATION
inline float fast_exp(float x) { return std::exp(x); }
inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_log(float x) { return std::log(x); }
#else
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_exp(float x) { return fast_exp2(x * 1.44269504f); }
__device__ __forceinline__ float fast_log(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y * 0.693147181f;
}
#endif

// f(T{}) with T the element type.
template <class F>
decltype(auto) with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
    default:
      return f(float{});
  }
}

// Sixteen bytes: what one instruction moves.
template <class T>
constexpr int kPack = 16 / sizeof(T);

template <class T>
struct alignas(16) Pack {
  T at[kPack<T>];
};

template <class T>
__device__ __forceinline__ void to_floats(const Pack<T>& pack, float (&values)[kPack<T>]) {
  if constexpr (std::is_same_v<T, BFloat16>) {  // an instruction for each element
    uint32_t words[4];
    memcpy(words, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < 8; ++i)
      values[i] = __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xFFFF0000);
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) values[i] = to_float(pack.at[i]);
  }
}

__host__ __device__ __forceinline__ bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// The elements of `from` that are below `count`, as floats, `fill` behind them. An aligned whole pack is one access;
// which thread has which element does not depend on that.
template <class T>
__device__ __forceinline__ void load_pack(const T* from, int64_t count, bool aligned, float fill, float* values) {
  if (aligned && count >= kPack<T>) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
    Pack<T> pack;
    memcpy(&pack, &bits, sizeof(pack));
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) values[i] = to_float(pack.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) values[i] = i < count ? to_float(from[i]) : fill;
  }
}

template <class T>
__device__ __forceinline__ void store_pack(T* to, int64_t count, bool aligned, const float* values) {
  if (aligned && count >= kPack<T>) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) pack.at[i] = from_float<T>(values[i]);
    uint4 bits;
    memcpy(&bits, &pack, sizeof(pack));
    __stcs(reinterpret_cast<uint4*>(to), bits);
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) {
      if (i < count) to[i] = from_float<T>(values[i]);
    }
  }
}

#ifdef COPILOT_EMULATION

template <class T>
void copy_pack(Pack<T>* to, const T* from) {
  memcpy(to, from, sizeof(*to));
}
inline void wait_for_copies() {}

#else

// From aligned memory to shared memory, not before wait_for_copies() of this thread.
template <class T>
__device__ __forceinline__ void copy_pack(Pack<T>* to, const T* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#endif

// ---- Reductions: every thread takes part and gets the result, the same to the last bit ----

// f(word) of every 32 bits of a value. They are copied one by one, or the compiler puts the value into memory.
template <class T, class F>
__device__ __forceinline__ T by_words(T value, F&& f) {
  static_assert(sizeof(T) % 4 == 0);
  char* bytes = reinterpret_cast<char*>(&value);
#pragma unroll
  for (size_t at = 0; at < sizeof(T); at += 4) {
    uint32_t word;
    memcpy(&word, bytes + at, 4);
    word = f(word);
    memcpy(bytes + at, &word, 4);
  }
  return value;
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return by_words(value, [&](uint32_t word) { return __shfl_xor_sync(kFullMask, word, mask); });
}

template <class T>
__device__ __forceinline__ T broadcast_lane(T value, int lane) {
  return by_words(value, [&](uint32_t word) { return __shfl_sync(kFullMask, word, lane); });
}

// `op` need not commute to the last bit: the first lane's result counts.
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = op(value, shuffle_xor(value, mask));
  return broadcast_lane(value, 0);
}

template <class T>
struct WarpValues {
  T of_warp[32];
};

// Of blocks of whole warps. `nothing` changes no other value.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T value, T nothing, Op op) {
  using Values = WarpValues<T>;
  COPILOT_SHARED(Values, values);
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = warp_reduce(value, op);
  if (lane == 0) values.of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  value = warp_reduce(lane < warps ? values.of_warp[lane] : nothing, op);
  __syncthreads();
  return value;
}

template <class T>
struct BlockValues {
  T of_block[kMostBlocks];
};

// After wait_for_blocks(). One for each T and Op in a kernel, unless a cluster_sync() lies between two.
template <class T, class Op>
__device__ __forceinline__ T cluster_reduce(T value, T nothing, Op op) {
  const unsigned size = cluster_size();
  if (size == 1) return block_reduce(value, nothing, op);
  using OfWarps = WarpValues<T>;
  using OfBlocks = BlockValues<T>;
  COPILOT_SHARED(OfWarps, of_warps);
  COPILOT_SHARED(OfBlocks, of_blocks);
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = warp_reduce(value, op);
  if (lane == 0) of_warps.of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = warp_reduce(lane < warps ? of_warps.of_warp[lane] : nothing, op);
    // Every block tells every other one, so that one barrier is enough.
    if (lane < size) of_peer(&of_blocks, lane)->of_block[cluster_rank()] = value;
  }
  cluster_sync();
  return warp_reduce(lane < size ? of_blocks.of_block[lane] : nothing, op);
}

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The largest value, or NaN if there is one.
__device__ __forceinline__ float max_or_nan(float a, float b) { return a != a || a > b ? a : b; }

#ifndef COPILOT_EMULATION

// Of two words of two elements each.
template <bool kNaN, class T>
__device__ __forceinline__ uint32_t max_of_words(uint32_t a, uint32_t b) {
  using Two = std::conditional_t<std::is_same_v<T, BFloat16>, __nv_bfloat162, __half2>;
  Two x, y;
  memcpy(&x, &a, sizeof(a));
  memcpy(&y, &b, sizeof(b));
  const Two max = kNaN ? __hmax2_nan(x, y) : __hmax2(x, y);
  uint32_t word;
  memcpy(&word, &max, sizeof(word));
  return word;
}

#endif

// The largest element; of kNaN, NaN if there is one, else whatever NaN there are do not count.
template <bool kNaN, class T>
__device__ __forceinline__ float largest_of(const Pack<T>& pack) {
#ifdef COPILOT_EMULATION
  const auto larger = [](float a, float b) { return kNaN ? max_or_nan(a, b) : fmaxf(a, b); };
  float largest = to_float(pack.at[0]);
  for (const T element : pack.at) largest = larger(largest, to_float(element));
  return largest;
#else
  const auto larger = [](float a, float b) {
    if constexpr (!kNaN) return fmaxf(a, b);
    float max;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(max) : "f"(a), "f"(b));
    return max;
  };
  if constexpr (std::is_same_v<T, float>) {
    return larger(larger(pack.at[0], pack.at[1]), larger(pack.at[2], pack.at[3]));
  } else {
    uint32_t words[4];
    memcpy(words, &pack, sizeof(pack));
    const uint32_t max =
        max_of_words<kNaN, T>(max_of_words<kNaN, T>(words[0], words[1]), max_of_words<kNaN, T>(words[2], words[3]));
    T two[2];
    memcpy(two, &max, sizeof(max));
    return larger(to_float(two[0]), to_float(two[1]));
  }
#endif
}

}  // namespace copilot::cuda
