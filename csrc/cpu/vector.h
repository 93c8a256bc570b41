// COPILOT_LANES floats at a time through the compiler's vector types: the same source becomes AVX-512, AVX2 or
// SSE2/NEON code, depending on the target under which it is included (see kernels_avx512.cpp). No include guard: each
// target has its own copy, in the namespace COPILOT_TARGET.

namespace copilot::COPILOT_TARGET {

constexpr int64_t kLanes = COPILOT_LANES;

using Floats = float __attribute__((vector_size(4 * COPILOT_LANES)));
using Ints = int32_t __attribute__((vector_size(4 * COPILOT_LANES)));
using Words = uint32_t __attribute__((vector_size(4 * COPILOT_LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * COPILOT_LANES)));

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

inline Floats broadcast(float value) { return Floats{} + value; }

// Lanes where `mask` is set (-1, as comparisons give it) from `yes`, the others from `no`.
inline Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }

// As in `a > b ? a : b`: a NaN in `a` is dropped, one in `b` stays.
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }

// ---- Elements as float, and back with round to nearest even ----

struct BFloat16 {
  uint16_t word;
};
struct Float16 {
  uint16_t word;
};

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline Halves load_words(const void* from) {
  Halves words;
  std::memcpy(&words, from, sizeof(words));
  return words;
}

// One instruction, where GCC makes four of the compiler's own conversion.
inline Words widened(Halves word) {
#if defined(__x86_64__) && COPILOT_LANES == 16
  return bits<Words>(_mm512_maskz_cvtepu16_epi32(-1, bits<__m256i>(word)));
#elif defined(__x86_64__) && COPILOT_LANES == 8
  return bits<Words>(_mm256_cvtepu16_epi32(bits<__m128i>(word)));
#else
  return __builtin_convertvector(word, Words);
#endif
}

inline Floats load(const BFloat16* from) { return bits<Floats>(widened(load_words(from)) << 16); }

// Subnormals are numbers, also where the processor is told to take those of float32 for zeros.
inline Floats load(const Float16* from) {
#if defined(__x86_64__) && COPILOT_LANES == 16
  return bits<Floats>(_mm512_maskz_cvtph_ps(-1, bits<__m256i>(load_words(from))));
#elif defined(__x86_64__) && COPILOT_LANES == 8
  return bits<Floats>(_mm256_cvtph_ps(bits<__m128i>(load_words(from))));
#else
  const Words wide = widened(load_words(from)), magnitude = wide & 0x7fffu;
  const Words subnormal = bits<Words>(__builtin_convertvector(bits<Ints>(magnitude), Floats) * 0x1p-24f);
  const Words normal = (magnitude << 13) + (magnitude >= 0x7c00u ? Words{} + 0x70000000u : Words{} + 0x38000000u);
  return bits<Floats>((magnitude < 0x400u ? subnormal : normal) | (wide & 0x8000u) << 16);
#endif
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

// Past the caches, to a multiple of a vector's size; `streamed` brings it before all that is stored later.
inline void stream(float* to, Floats value) {
#if defined(__x86_64__) && COPILOT_LANES == 16
  _mm512_stream_ps(to, bits<__m512>(value));
#elif defined(__x86_64__) && COPILOT_LANES == 8
  _mm256_stream_ps(to, bits<__m256>(value));
#elif defined(__x86_64__)
  _mm_stream_ps(to, bits<__m128>(value));
#else
  store(to, value);
#endif
}

inline void streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

inline void store(BFloat16* to, Floats value) {
  Words word = bits<Words>(value);
  Words rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  Words quiet = (word >> 16) | 0x40u;  // rounding must not carry a NaN into infinity
  Halves narrow = __builtin_convertvector(value == value ? rounded : quiet, Halves);
  std::memcpy(to, &narrow, sizeof(narrow));
}

inline void store(Float16* to, Floats value) {
  Words word = bits<Words>(value);
  Words sign = (word & 0x80000000u) >> 16;
  Words absolute = word & 0x7fffffffu;
  Words normal = (absolute - 0x38000000u + 0xfffu + ((absolute >> 13) & 1u)) >> 13;
  // Adding 0.5 puts the subnormal's units, 2^-24, into the last bits of the sum.
  Words subnormal = bits<Words>(bits<Floats>(absolute) + 0.5f) - 0x3f000000u;
  Words result = absolute < 0x38800000u ? subnormal : normal;
  result = absolute >= 0x477ff000u ? (Words{} + 0x7c00u) : result;
  result = absolute > 0x7f800000u ? (Words{} + 0x7e00u) : result;
  Halves narrow = __builtin_convertvector(result | sign, Halves);
  std::memcpy(to, &narrow, sizeof(narrow));
}

// The first `count` < kLanes elements; the other lanes are `fill`.
template <class T>
inline Floats load_some(const T* from, int64_t count, float fill) {
  T some[kLanes] = {};
  std::memcpy(some, from, count * sizeof(T));
  Floats value = load(some);
  for (int64_t lane = count; lane < kLanes; ++lane) value[lane] = fill;
  return value;
}

template <class T>
inline void store_some(T* to, Floats value, int64_t count) {
  T some[kLanes];
  store(some, value);
  std::memcpy(to, some, count * sizeof(T));
}

// Calls f(typed pointer to the start of the row).
template <class F>
inline auto with_row(const Rows& rows, int64_t row, F&& f) {
  switch (rows.dtype) {
    case DType::kBFloat16:
      return f(static_cast<const BFloat16*>(rows.data) + row * rows.stride);
    case DType::kFloat16:
      return f(static_cast<const Float16*>(rows.data) + row * rows.stride);
    default:
      return f(static_cast<const float*>(rows.data) + row * rows.stride);
  }
}

// ---- Reductions over the lanes, always in the same order ----

inline float sum(Floats value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t step = kLanes / 2; step > 0; step /= 2) {
    for (int64_t lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
  }
  return lanes[0];
}

inline float maximum(Floats value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t step = kLanes / 2; step > 0; step /= 2) {
    for (int64_t lane = 0; lane < step; ++lane) {
      lanes[lane] = lanes[lane] > lanes[lane + step] ? lanes[lane] : lanes[lane + step];
    }
  }
  return lanes[0];
}

// ---- exp and log ----

// exp(x) = scale (1 + expm1) for x <= 0, |expm1| < 0.42. The scale is 2^n; below -87.336 it means nothing.
struct Exponential {
  Floats scale;
  Floats expm1;
};

inline Exponential exponential_of(Floats x) {
  // Adding it rounds to a whole number n, and leaves n + 127, which is 2^n as an exponent, in the last bits.
  const Floats shifter = broadcast(0x1.8p23f + 127.0f);
  const Floats shifted = x * 0x1.715476p+0f + shifter;
  const Floats n = shifted - shifter;
  Floats r = x - n * 0x1.62e400p-1f;  // log(2) in two parts
  r = r - n * 0x1.7f7d1cp-20f;
  // (exp(r) - 1 - r) / r^2, Chebyshev interpolation for |r| <= log(2) / 2
  const Floats square = r * r;
  Floats p = square * 0x1.6d432ap-10f + (r * 0x1.120b74p-7f + 0x1.5554e8p-5f);
  p = p * square + (r * 0x1.5554dcp-3f + 0.5f);
  return {bits<Floats>(bits<Ints>(shifted) << 23), p * square + r};
}

// exp(x) to 1.1 ulp for x <= 0, or above it by rounding. 0 below -87.336, where results are no normal
// numbers: the processor takes a hundred times as long for those, and masked entries are many.
inline Floats exp(Floats x) {
  const Exponential e = exponential_of(x);
  return x < -0x1.5d58ap6f ? Floats{} : e.expm1 * e.scale + e.scale;
}

// x = 2^n (1 + m) of a normal x > 0, with 1 + m in [2/3, 4/3).
struct Logarithm {
  Floats n;
  Floats m;
  Floats inverse_scale;  // 2^-n
};

inline Logarithm logarithm_of(Floats x) {
  const Ints word = bits<Ints>(x);
  const Ints n = (word - 0x3f2aaaab) >> 23, exponent = n << 23;
  return {__builtin_convertvector(n, Floats), bits<Floats>(word - exponent) - 1.0f,
          bits<Floats>(0x3f800000 - exponent)};
}

// log(2^n (1 + m)).
inline Floats log_from(Floats n, Floats m) {
  // (log(1 + m) - m) / m^2, Chebyshev interpolation
  const Floats square = m * m;
  Floats p = m * 0x1.e7c500p-4f - 0x1.04cbb0p-3f;
  p = p * square + (m * 0x1.b98684p-4f - 0x1.f483f2p-4f);
  p = p * square + (m * 0x1.24e94cp-3f - 0x1.559140p-3f);
  p = p * square + (m * 0x1.9997d8p-3f - 0x1.ffff28p-3f);
  p = p * square + (m * 0x1.555556p-2f - 0.5f);
  return n * 0x1.62e430p-1f + (p * square + m);
}

// log(x) to 2 ulp for x >= 0: log(0) = -infinity; negative x and NaN give NaN.
inline Floats log(Floats x) {
  const Ints tiny = x < 0x1p-126f;
  const Logarithm parts = logarithm_of(tiny ? x * 0x1p23f : x);
  Floats result = log_from(parts.n - (tiny ? broadcast(23.0f) : Floats{}), parts.m);
  result = x > 0x1.fffffep127f ? x : result;
  result = x == 0.0f ? broadcast(-std::numeric_limits<float>::infinity()) : result;
  return x >= 0.0f ? result : broadcast(std::numeric_limits<float>::quiet_NaN());
}

inline float exp(float x) { return exp(broadcast(x))[0]; }
inline float log(float x) { return log(broadcast(x))[0]; }

}  // namespace copilot::COPILOT_TARGET
