// Philox 4x32-10 (Salmon et al., 2011) as copilot/ops/reference_sampling.py numbers its words: token v takes word v % 4
// of block 2 (v / 4) for the upper 32 bits of its uniform, and of the block after it for the rest.

namespace copilot::COPILOT_TARGET::sampling {

struct RandomRow {
  uint64_t seed, offset;
  uint32_t row;

  // Words of the tokens from `first`, a multiple of four, to before first + 4 * groups.
  void words(int64_t first, int64_t groups, uint32_t half, uint32_t* out) const {
    for (int64_t i = 0; i < groups; ++i) {
      uint32_t a = 2 * static_cast<uint32_t>(first / 4 + i) + half, b = row;
      uint32_t c = static_cast<uint32_t>(offset), d = static_cast<uint32_t>(offset >> 32);
      uint32_t key = static_cast<uint32_t>(seed), other_key = static_cast<uint32_t>(seed >> 32);
      for (int round = 0; round < 10; ++round) {
        const uint64_t of_a = uint64_t{0xD2511F53u} * a, of_c = uint64_t{0xCD9E8D57u} * c;
        a = static_cast<uint32_t>(of_c >> 32) ^ b ^ key;
        b = static_cast<uint32_t>(of_c);
        c = static_cast<uint32_t>(of_a >> 32) ^ d ^ other_key;
        d = static_cast<uint32_t>(of_a);
        key += 0x9E3779B9u;
        other_key += 0xBB67AE85u;
      }
      out[4 * i] = a;
      out[4 * i + 1] = b;
      out[4 * i + 2] = c;
      out[4 * i + 3] = d;
    }
  }

  // log(E) of a token, E = -log(U), given its upper word.
  double log_exponential(int64_t token, uint32_t upper) const {
    uint32_t lower[4];
    words(token & ~int64_t{3}, 1, 1, lower);
    const uint64_t bits = static_cast<uint64_t>(upper) << 21 | lower[token & 3] >> 11 | 1;
    return std::log(-std::log(static_cast<double>(bits) * 0x1p-53));
  }
};

}  // namespace copilot::COPILOT_TARGET::sampling
