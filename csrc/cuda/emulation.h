// The part of CUDA C++ that the kernels use, on the CPU: their logic is tested where no GPU is.
//
// The threads of a cluster of blocks are fibers of one CPU thread. Each runs until it must wait for others, and who
// goes on next changes from round to round, so that a missing barrier shows as a wrong result. A barrier that some
// threads never reach raises an error, as does a trap. Clusters run one after the other. What this cannot show: memory
// that is not there, the speed, and the weaker order of memory operations of a GPU.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

namespace copilot::emulation {

class Barrier;
struct Block;

struct Fiber {
  Block* block;
  dim3 thread;
  unsigned lane, warp;
  jmp_buf resume;
  bool started = false, finished = false;
  std::unique_ptr<char[]> stack;
};

class Cluster;

inline thread_local Fiber* current = nullptr;
inline thread_local Cluster* running = nullptr;

void yield();
void progress();

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const unsigned mine = generation_;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++generation_;
      progress();
    } else {
      while (generation_ == mine) yield();
    }
  }

 private:
  int threads_, arrived_ = 0;
  unsigned generation_ = 0;
};

struct Warp {
  explicit Warp(int lanes) : lanes(lanes), barrier(lanes) {}

  int lanes;
  Barrier barrier;
  uint64_t slots[32] = {};
};

inline int from_environment(const char* name, int otherwise) {
  const char* given = std::getenv(name);
  return given ? std::atoi(given) : otherwise;
}

// The GPU's, and that of the code it runs, which may be written for an older one; 80 for 8.0.
inline int capability() { return from_environment("COPILOT_EMULATED_CAPABILITY", 90); }
inline int code() { return from_environment("COPILOT_EMULATED_CODE", capability()); }

// Bytes of shared memory that a block may have: by default what 9.0 and 10.0 allow.
inline size_t shared_per_block() { return from_environment("COPILOT_EMULATED_SHARED", 227 * 1024); }

// Shared memory starts full of NaN.
inline std::unique_ptr<unsigned char[]> shared_bytes(size_t size) {
  std::unique_ptr<unsigned char[]> bytes(new unsigned char[size + 1]);
  std::memset(bytes.get(), 0xFF, size);
  return bytes;
}

struct Variable {
  size_t size;
  std::unique_ptr<unsigned char[]> bytes;
};

struct Block {
  Block(dim3 index, dim3 size, unsigned rank, size_t dynamic_size, Barrier& cluster_barrier)
      : index(index),
        size(size),
        rank(rank),
        barrier(size.x),
        cluster_barrier(cluster_barrier),
        dynamic{dynamic_size, shared_bytes(dynamic_size)} {
    for (unsigned first = 0; first < size.x; first += 32) warps.emplace_back(std::min(32u, size.x - first));
  }

  unsigned char* variable(const void* key, size_t bytes) {
    Variable& found = variables[key];
    if (!found.bytes) {
      found = {bytes, shared_bytes(bytes)};
      taken += bytes;
      if (taken > shared_per_block()) throw std::runtime_error("a block takes more shared memory than the GPU has");
    }
    return found.bytes.get();
  }

  dim3 index, size;
  unsigned rank;
  Barrier barrier;
  Barrier& cluster_barrier;
  std::vector<Warp> warps;
  Variable dynamic;
  size_t taken = dynamic.size;
  std::map<const void*, Variable> variables;
};

// Runs a kernel, cluster by cluster.
class Cluster {
 public:
  Cluster(dim3 grid, unsigned block_size, unsigned cluster_size, size_t shared, std::function<void()> kernel)
      : kernel_(std::move(kernel)) {
    if (block_size == 0 || block_size > 1024 || grid.x % cluster_size != 0 || cluster_size > 16 ||
        shared > shared_per_block()) {
      throw std::runtime_error("a launch that no GPU accepts");
    }
    std::vector<Fiber> fibers(block_size * cluster_size);
    for (Fiber& fiber : fibers) fiber.stack.reset(new char[kStack]);
    fibers_ = fibers.data();
    count_ = fibers.size();
    Cluster* outer = std::exchange(running, this);
    try {
      for (unsigned x = 0; x < grid.x; x += cluster_size) run({x, 0, 0}, block_size, cluster_size, shared);
    } catch (...) {
      running = outer;
      throw;
    }
    running = outer;
  }

  void yield() {
    if (_setjmp(current->resume) == 0) _longjmp(scheduler_, 1);
  }

  void progress() { ++progress_; }

  Block& peer(unsigned rank) { return blocks_[rank]; }
  unsigned size() const { return blocks_.size(); }

 private:
  static constexpr size_t kStack = 64 * 1024;

  void run(dim3 first, unsigned block_size, unsigned cluster_size, size_t shared) {
    Barrier cluster_barrier(block_size * cluster_size);
    blocks_.clear();
    blocks_.reserve(cluster_size);
    for (unsigned rank = 0; rank < cluster_size; ++rank) {
      blocks_.emplace_back(dim3{first.x + rank, first.y, first.z}, dim3{block_size}, rank, shared, cluster_barrier);
      for (unsigned thread = 0; thread < block_size; ++thread) {
        Fiber& fiber = fibers_[rank * block_size + thread];
        fiber.block = &blocks_.back();
        fiber.thread = {thread, 0, 0};
        fiber.lane = thread % 32;
        fiber.warp = thread / 32;
        fiber.started = fiber.finished = false;
      }
    }
    size_t left = count_;
    while (left > 0) {
      const unsigned before = progress_;
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      const size_t start = (random_ >> 33) % count_;
      const bool backwards = random_ >> 63;
      for (size_t i = 0; i < count_; ++i) {
        current = &fibers_[(start + (backwards ? count_ - i : i)) % count_];
        if (current->finished) continue;
        resume();
        if (failure_) std::rethrow_exception(failure_);
        if (current->finished) {
          --left;
          ++progress_;
        }
      }
      if (progress_ == before) throw std::runtime_error("threads wait for others that never come");
    }
  }

  void resume() {
    if (_setjmp(scheduler_) != 0) return;
    if (current->started) _longjmp(current->resume, 1);
    current->started = true;
    ++progress_;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = current->stack.get();
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, &Cluster::enter, 0);
    setcontext(&context);
  }

  static void enter() {
    try {
      running->kernel_();
    } catch (...) {
      running->failure_ = std::current_exception();
    }
    current->finished = true;
    _longjmp(running->scheduler_, 1);
  }

  std::function<void()> kernel_;
  Fiber* fibers_ = nullptr;
  size_t count_ = 0;
  std::vector<Block> blocks_;
  unsigned progress_ = 0;
  uint64_t random_ = 1;
  jmp_buf scheduler_;
  std::exception_ptr failure_;
};

inline void yield() { running->yield(); }
inline void progress() { running->progress(); }

inline Warp& warp() { return current->block->warps[current->warp]; }

// What the lane `from` of this warp holds.
template <class T>
inline T exchanged(T value, unsigned from) {
  static_assert(sizeof(T) <= 8);
  Warp& mine = warp();
  std::memcpy(&mine.slots[current->lane], &value, sizeof(T));
  mine.barrier.wait();
  T other;
  std::memcpy(&other, &mine.slots[from < static_cast<unsigned>(mine.lanes) ? from : current->lane], sizeof(T));
  mine.barrier.wait();
  return other;
}

template <class T>
inline T* of_peer(T* address, unsigned rank) {
  const auto* byte = reinterpret_cast<const unsigned char*>(address);
  Block &mine = *current->block, &other = running->peer(rank);
  const auto within = [&](const Variable& variable) {
    return byte >= variable.bytes.get() && byte < variable.bytes.get() + variable.size;
  };
  if (within(mine.dynamic)) {
    return reinterpret_cast<T*>(other.dynamic.bytes.get() + (byte - mine.dynamic.bytes.get()));
  }
  for (const auto& [key, variable] : mine.variables) {
    if (within(variable)) {
      return reinterpret_cast<T*>(other.variable(key, variable.size) + (byte - variable.bytes.get()));
    }
  }
  throw std::runtime_error("an address outside of shared memory");
}

}  // namespace copilot::emulation

#define threadIdx (copilot::emulation::current->thread)
#define blockIdx (copilot::emulation::current->block->index)
#define blockDim (copilot::emulation::current->block->size)

// ---- Barriers and warps; every lane takes part ----

constexpr unsigned kFullMask = 0xFFFFFFFFu;

inline void __syncthreads() { copilot::emulation::current->block->barrier.wait(); }

template <class T>
inline T __shfl_sync(unsigned, T value, int from) {
  return copilot::emulation::exchanged(value, static_cast<unsigned>(from) % 32);
}
template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
  return copilot::emulation::exchanged(value, copilot::emulation::current->lane ^ static_cast<unsigned>(mask));
}
template <class T>
inline T __shfl_up_sync(unsigned, T value, unsigned by) {
  const unsigned lane = copilot::emulation::current->lane;
  return copilot::emulation::exchanged(value, lane >= by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned, bool holds) {
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const bool there = lane < static_cast<unsigned>(copilot::emulation::warp().lanes);
    if (copilot::emulation::exchanged(holds, lane) && there) bits |= 1u << lane;
  }
  return bits;
}

// ---- Memory: fibers are never interrupted, so that any operation is atomic ----

template <class T>
inline T __ldg(const T* from) {
  return *from;
}
template <class T>
inline T __ldcs(const T* from) {
  return *from;
}
template <class T>
inline void __stcs(T* to, T value) {
  *to = value;
}
template <class T>
inline T atomicAdd(T* to, T value) {
  return std::exchange(*to, static_cast<T>(*to + value));
}

inline void __threadfence() {}

// ---- Numbers ----

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
