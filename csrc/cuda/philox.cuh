// Philox 4x32-10 (Salmon et al., 2011), its words numbered as in csrc/cpu/philox.h: the same bits as on the CPU.

#pragma once

#include "device.cuh"

namespace copilot::cuda {

// Of four tokens, the first of them a multiple of four.
struct Words {
  uint32_t of_token[4];

  // Without an index that the compiler does not know, for which they would be put into memory.
  __device__ __forceinline__ uint32_t of(int token) const {
    const uint32_t even = token & 2 ? of_token[2] : of_token[0], odd = token & 2 ? of_token[3] : of_token[1];
    return token & 1 ? odd : even;
  }
};

struct RandomRow {
  uint64_t seed, offset;
  uint32_t row;

  // Of the tokens from `first` on: the upper half of their uniforms, or the lower one.
  __device__ __forceinline__ Words words(int first, uint32_t half) const {
    uint32_t a = static_cast<uint32_t>(first) / 2 + half, b = row;
    uint32_t c = static_cast<uint32_t>(offset), d = static_cast<uint32_t>(offset >> 32);
    uint32_t key = static_cast<uint32_t>(seed), other_key = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint64_t of_a = uint64_t{0xD2511F53u} * a, of_c = uint64_t{0xCD9E8D57u} * c;
      a = static_cast<uint32_t>(of_c >> 32) ^ b ^ key;
      b = static_cast<uint32_t>(of_c);
      c = static_cast<uint32_t>(of_a >> 32) ^ d ^ other_key;
      d = static_cast<uint32_t>(of_a);
      key += 0x9E3779B9u;
      other_key += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
  }

  // log(E) of a token, E = -log(U), given its upper word.
  __device__ __forceinline__ double log_exponential(int token, uint32_t upper) const {
    const uint32_t lower = words(token & ~3, 1).of(token);
    const uint64_t bits = static_cast<uint64_t>(upper) << 21 | lower >> 11 | 1;
    return log(-log(static_cast<double>(bits) * 0x1p-53));
  }
};

}  // namespace copilot::cuda
