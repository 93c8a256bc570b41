// Runs every CUDA kernel on random numbers and compares with its twin for the CPU, without torch: one line a kernel,
// and 1 is returned if any differs. Another kernel is a function that runs it on a Check, and a Check in check_all().
//
// To build it for the GPU that is there, or to emulate one:
//   includes="-Icsrc/include -Icsrc/cpu -Icsrc/cuda" files="csrc/selfcheck/selfcheck.cu csrc/cuda/*.cu csrc/cpu/*.cpp"
//   nvcc -arch=native -std=c++20 -O3 -Xcompiler -Wno-psabi $includes $files -o selfcheck
//   g++ -std=c++20 -O2 -Wno-psabi -U_FORTIFY_SOURCE -DCOPILOT_EMULATION $includes -x c++ $files -o selfcheck
// "selfcheck 10" runs every tenth case, for tools under which all take too long.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu_kernels.h"
#include "device.cuh"

namespace copilot {
namespace {

// ---- Memory of both sides ----

#ifdef COPILOT_EMULATION
void* allocate(size_t size) { return std::malloc(size); }
void release(void* memory) { std::free(memory); }
void copy(void* to, const void* from, size_t size) { std::memcpy(to, from, size); }
#else
void* allocate(size_t size) {
  void* memory;
  cuda::check(cudaMalloc(&memory, size));
  return memory;
}
void release(void* memory) { cudaFree(memory); }
void copy(void* to, const void* from, size_t size) { cuda::check(cudaMemcpy(to, from, size, cudaMemcpyDefault)); }
#endif

// The same numbers on the CPU and on the GPU.
template <class T>
class Both {
 public:
  explicit Both(std::vector<T> values) : host(std::move(values)), size_(host.size() * sizeof(T)) {
    device_ = allocate(size_ + 16);
    copy(device_, host.data(), size_);
  }
  Both(const Both&) = delete;
  ~Both() { release(device_); }

  T* device() { return static_cast<T*>(device_); }
  std::vector<T> from_device() const {
    std::vector<T> values(host.size());
    copy(values.data(), device_, size_);
    return values;
  }

  std::vector<T> host;

 private:
  size_t size_;
  void* device_;
};

// For results: none of them is that.
template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(count, static_cast<T>(-1));
}

// ---- Numbers ----

std::vector<float> numbers(int64_t count, float least, float most, std::mt19937& random) {
  std::vector<float> values(count);
  for (float& value : values) value = std::uniform_real_distribution<float>(least, most)(random);
  return values;
}

struct Format {
  int exponent, mantissa, size;  // bits, bits, bytes
};

Format format_of(DType dtype) {
  if (dtype == DType::kFloat32) return {8, 23, 4};
  return dtype == DType::kBFloat16 ? Format{8, 7, 2} : Format{5, 10, 2};
}

double value_of(DType dtype, uint32_t bits) {
  const auto [exponent_bits, mantissa_bits, size] = format_of(dtype);
  const int largest = (1 << exponent_bits) - 1, exponent = bits >> mantissa_bits & largest;
  const double mantissa = std::ldexp(bits & ((1u << mantissa_bits) - 1), -mantissa_bits);
  const double size_of_it = exponent < largest
                                ? std::ldexp(mantissa + (exponent > 0), std::max(exponent, 1) - largest / 2)
                            : mantissa != 0.0 ? NAN
                                              : INFINITY;
  return bits >> (exponent_bits + mantissa_bits) & 1 ? -size_of_it : size_of_it;
}

// What numbers are drawn from.
struct Spread {
  int lowest, highest;                  // powers of two
  bool negative;                        // too
  int mantissa = 23;                    // bits of it that vary, at most
  int zeros = 0, minus_infinities = 0;  // of 64 numbers
};

// Rows on both sides.
class Matrix {
 public:
  Matrix(DType dtype, int64_t rows, int64_t stride, const Spread& spread, std::mt19937& random)
      : dtype_(dtype), stride_(stride), bytes_(bytes_of(rows, spread, random)) {}

  // For results.
  Matrix(DType dtype, int64_t rows, int64_t width)
      : dtype_(dtype), stride_(width), bytes_(unwritten<char>(rows * width * format_of(dtype).size)) {}

  Rows host() { return {bytes_.host.data(), stride_, dtype_}; }
  Rows device() { return {bytes_.device(), stride_, dtype_}; }
  MutableRows mutable_host() { return {bytes_.host.data(), stride_, dtype_}; }
  MutableRows mutable_device() { return {bytes_.device(), stride_, dtype_}; }

  std::vector<double> values() const { return decoded(bytes_.host); }
  std::vector<double> values_of_device() const { return decoded(bytes_.from_device()); }

 private:
  std::vector<char> bytes_of(int64_t rows, const Spread& spread, std::mt19937& random) const {
    const int size = format_of(dtype_).size;
    std::vector<char> bytes(rows * stride_ * size);
    for (int64_t i = 0; i < rows * stride_; ++i) {
      const uint32_t bits = drawn(spread, random);
      std::memcpy(&bytes[i * size], &bits, size);  // the lower bytes come first
    }
    return bytes;
  }

  uint32_t drawn(const Spread& spread, std::mt19937& random) const {
    const auto [exponent_bits, mantissa_bits, size] = format_of(dtype_);
    const uint32_t one = 1u << mantissa_bits, largest = (1u << exponent_bits) - 1, sign = (largest + 1) * one;
    const int kind = random() % 64;
    if (kind < spread.zeros) return 0;
    if (kind < spread.zeros + spread.minus_infinities) return sign | largest * one;
    const uint32_t exponent = largest / 2 + spread.lowest + random() % (spread.highest - spread.lowest + 1);
    const int equal = std::max(mantissa_bits - spread.mantissa, 0);
    const uint32_t bits = exponent * one | (random() % one >> equal << equal);
    return spread.negative && random() % 2 ? sign | bits : bits;
  }

  std::vector<double> decoded(const std::vector<char>& bytes) const {
    const int size = format_of(dtype_).size;
    std::vector<double> values(bytes.size() / size);
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, &bytes[i * size], size);
      values[i] = value_of(dtype_, bits);
    }
    return values;
  }

  DType dtype_;
  int64_t stride_;
  Both<char> bytes_;
};

// side(x) is what a kernel of that side is given.
struct OnHost {
  template <class T>
  T* operator()(Both<T>& of) const {
    return of.host.data();
  }
  Rows operator()(Matrix& of) const { return of.host(); }
};

struct OnDevice {
  template <class T>
  T* operator()(Both<T>& of) const {
    return of.device();
  }
  Rows operator()(Matrix& of) const { return of.device(); }
};

// ---- Checks ----

// Collects the differences of one kernel.
class Check {
 public:
  Check(const char* name, int every) : name_(name), every_(every) {}

  // Of every `every` cases it takes one.
  bool takes_this_case() { return cases_++ % every_ == 0; }

  std::mt19937& random() { return random_; }
  int comparisons() const { return comparisons_; }

  // Differences count relative to the value and the mean of all that are finite.
  template <class T>
  void compare(const std::vector<T>& of_gpu, const std::vector<T>& of_cpu, double allowed, const std::string& of) {
    ++comparisons_;
    double mean = 0.0;
    for (const double value : of_cpu) mean += std::isfinite(value) ? std::fabs(value) / of_cpu.size() : 0.0;
    for (size_t i = 0; i < of_cpu.size(); ++i) {
      const double a = of_gpu[i], b = of_cpu[i];
      double difference = std::fabs(a - b) / (std::fabs(b) + mean);
      if (a == b || (std::isnan(a) && std::isnan(b))) difference = 0.0;
      if (difference <= allowed) {
        largest_ = std::max(largest_, difference);
      } else if (failure_.empty()) {
        failure_ = of + " [" + std::to_string(i) + "]: " + std::to_string(a) + " on the GPU, " + std::to_string(b) +
                   " on the CPU";
      }
    }
  }

  // Whether all agreed.
  bool report() const {
    if (failure_.empty()) {
      std::printf("%-30s agrees in %d comparisons, largest difference %.1e\n", name_, comparisons_, largest_);
    } else {
      std::printf("%-30s DIFFERS: %s\n", name_, failure_.c_str());
    }
    return failure_.empty();
  }

 private:
  const char* name_;
  const int every_;
  std::mt19937 random_{1};
  int cases_ = 0, comparisons_ = 0;
  double largest_ = 0.0;
  std::string failure_;
};

constexpr DType f32 = DType::kFloat32, bf16 = DType::kBFloat16, f16 = DType::kFloat16;

// ---- pool_layers: the same bits ----

struct PoolCase {
  std::vector<DType> dtypes;  // of the layers in turn
  int64_t n_layers, n_rows, width, stride;
  Pooling pooling;
  std::vector<int64_t> rows;  // all, if empty
};

void run(const PoolCase& of, Check& check, const std::string& name) {
  if (!check.takes_this_case()) return;
  std::vector<std::unique_ptr<Matrix>> states;
  std::vector<Rows> host, device;
  for (int64_t i = 0; i < of.n_layers; ++i) {
    states.push_back(std::make_unique<Matrix>(of.dtypes[i % of.dtypes.size()], of.n_rows, of.stride,
                                              Spread{-8, 3, true}, check.random()));
    host.push_back(states.back()->host());
    device.push_back(states.back()->device());
  }
  Both<int64_t> rows(of.rows);
  const int64_t count = of.rows.empty() ? of.n_rows : static_cast<int64_t>(of.rows.size());
  Both<float> out(unwritten<float>(count * of.width));
  const bool all = of.rows.empty();
  const PoolLayers on_host{host.data(), of.n_layers, all ? nullptr : rows.host.data(),
                           of.width,    of.pooling,  out.host.data()};
  const PoolLayers on_device{device.data(), of.n_layers, all ? nullptr : rows.device(),
                             of.width,      of.pooling,  out.device()};
  cpu_kernels().pool_layers(on_host, 0, count);
  cuda::pool_layers(on_device, of.n_rows, count, nullptr);
  check.compare(out.from_device(), out.host, 0.0, name);
}

void check_pool_layers(Check& check) {
  for (const Pooling pooling : {Pooling::kMean, Pooling::kMax, Pooling::kSum}) {
    for (const std::vector<DType>& dtypes : {std::vector{f32}, {bf16}, {f16}, {f32, bf16, f16}}) {
      run({dtypes, 33, 40, 576, 576, pooling, {}}, check, "33 layers");
      run({dtypes, 33, 40, 576, 576, pooling, {39, 0, 7, 7}}, check, "chosen rows");
      run({dtypes, 300, 2, 64, 72, pooling, {}}, check, "300 layers");
      run({dtypes, 5, 3, 111, 113, pooling, {}}, check, "rows that are not aligned");
    }
  }
}

// ---- candidate_loss and its gradient ----

struct CandidateCase {
  int64_t n_rows, k;
  bool indexed;
  DType prob, delta;
};

constexpr CandidateCase kCandidateCases[] = {
    {1000, 32, true, f32, f32},  {77, 21, true, f16, bf16},    {5, 3000, true, f32, f16},    {9, 111, false, f32, f32},
    {4, 32000, false, f32, f32}, {3, 50257, false, f32, bf16}, {2, 262144, false, bf16, f32}};

constexpr std::pair<Objective, const char*> kObjectives[] = {{Objective::kSquared, "squared"},
                                                             {Objective::kLinear, "linear"},
                                                             {Objective::kCrossEntropy, "ce"},
                                                             {Objective::kKl, "kl"}};

// Half of the targets are kept where there is an index.
void run(const CandidateCase& of, Objective objective, Check& loss, Check& backward, const std::string& name) {
  if (!loss.takes_this_case()) return;
  std::mt19937& random = loss.random();
  const int power = std::max(-static_cast<int>(std::log2(of.k)) - 1, of.prob == f16 ? -10 : -30);
  Matrix prob(of.prob, of.n_rows, of.k, {power - 3, power, false}, random);
  Matrix delta(of.delta, of.n_rows, of.k + 8, {-6, 1, true}, random);
  std::vector<int64_t> tokens(of.indexed ? of.n_rows * of.k : 0), targets(of.n_rows);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = 3 * (i % of.k);
  for (int64_t& target : targets) target = of.indexed ? 3 * (random() % of.k) + random() % 2 : random() % of.k;
  Both<int64_t> index(tokens), target(targets);
  const auto floats = [&](float least, float most) { return numbers(of.n_rows, least, most, random); };
  Both<float> target_prob(floats(0.01f, 0.1f));
  Both<float> rest_mass(of.indexed ? floats(0.1f, 0.2f) : std::vector<float>(of.n_rows));
  Both<float> rest_square(of.indexed ? floats(0.01f, 0.02f) : std::vector<float>(of.n_rows));
  Both<float> losses(unwritten<float>(of.n_rows)), gradient(unwritten<float>(3 * of.n_rows));
  const auto candidates = [&](auto side) -> Candidates {
    return {side(prob), side(delta), of.indexed ? side(index) : nullptr, side(target), of.k, objective};
  };
  const auto rows_of = [](float* gradient) { return reinterpret_cast<CandidateGradient*>(gradient); };
  const auto job = [&](auto side) -> CandidateLoss {
    return {candidates(side),  side(target_prob), side(rest_mass),
            side(rest_square), side(losses),      rows_of(side(gradient))};
  };
  cpu_kernels().candidate_loss(job(OnHost{}), 0, of.n_rows);
  cuda::candidate_loss(job(OnDevice{}), of.n_rows, nullptr);
  loss.compare(losses.from_device(), losses.host, 4e-6, name);
  loss.compare(gradient.from_device(), gradient.host, 4e-6, name + ", for the gradient");

  Both<float> upstream(floats(-1.0f, 1.0f));
  Matrix out(of.delta, of.n_rows, of.k);
  const auto backward_job = [&](auto side, MutableRows out) -> CandidateLossBackward {
    return {candidates(side), rows_of(side(gradient)), side(upstream), out};
  };
  cpu_kernels().candidate_loss_backward(backward_job(OnHost{}, out.mutable_host()), 0, of.n_rows);
  cuda::candidate_loss_backward(backward_job(OnDevice{}, out.mutable_device()), of.n_rows, nullptr);
  backward.compare(out.values_of_device(), out.values(), of.delta == f32 ? 4e-6 : 0.01, name);
}

void check_candidate_loss(Check& loss, Check& backward) {
  for (const CandidateCase& of : kCandidateCases) {
    for (const auto& [objective, name] : kObjectives) {
      run(of, objective, loss, backward, std::to_string(of.k) + " tokens, " + name);
    }
  }
}

// ---- mistake_cross_entropy and its gradient: the same tokens ----

// The long rows are split over blocks. Blocks that have 49152 / 4 or twice 49152 / 8 floats have 48 KB, and variables.
constexpr std::pair<int64_t, int64_t> kRowsAndVocabularies[] = {
    {6, 111}, {4, 4096}, {2, 49152}, {2, 50257}, {2, 128256}, {1, 180224}};  // the last in 16 slices on some GPUs

// Every row is aligned, or few are.
int64_t stride_of(int64_t vocabulary, bool aligned) { return (vocabulary + 7) / 8 * 8 + !aligned; }

std::string description(DType dtype, int64_t vocabulary, bool aligned) {
  return std::to_string(vocabulary) +
         (dtype == f32    ? " float32"
          : dtype == bf16 ? " bfloat16"
                          : " float16") +
         (aligned ? "" : ", not aligned");
}

struct MistakeCase {
  DType dtype;
  int64_t rows, vocabulary;
  bool aligned;
  int64_t k;  // 0: all
};

// One row is ignored, and rows that are not aligned are full of ties.
void run(const MistakeCase& of, Check& mistake, Check& backward) {
  if (!mistake.takes_this_case()) return;
  constexpr int64_t ignored = -100;
  const std::string name = description(of.dtype, of.vocabulary, of.aligned) + ", k = " + std::to_string(of.k);
  const int64_t rows = of.rows, kept = of.k > 0 ? of.k : of.vocabulary;
  std::mt19937& random = mistake.random();
  Matrix logits(of.dtype, rows, stride_of(of.vocabulary, of.aligned),
                {.lowest = -8, .highest = 3, .negative = true, .mantissa = of.aligned ? 23 : 4, .minus_infinities = 1},
                random);
  std::vector<int64_t> tokens(rows);
  for (int64_t& token : tokens) token = random() % of.vocabulary;
  if (rows > 1) tokens[1] = ignored;
  Both<int64_t> labels(tokens), top_index(unwritten<int64_t>(rows * of.k));
  Both<float> loss(unwritten<float>(rows)), largest_and_total(unwritten<float>(2 * rows)),
      top_prob(unwritten<float>(rows * kept)), target_prob(unwritten<float>(rows)), rest_mass(unwritten<float>(rows)),
      rest_square(unwritten<float>(rows));
  Both<char> scratch(unwritten<char>(cuda::mistake_cross_entropy_scratch(rows, of.vocabulary, of.k, of.dtype)));
  const auto job = [&](auto side) -> MistakeCrossEntropy {
    return {side(logits),    of.vocabulary,           side(labels),    ignored,        of.k,
            side(loss),      side(largest_and_total), side(top_index), side(top_prob), side(target_prob),
            side(rest_mass), side(rest_square)};
  };
  cpu_kernels().mistake_cross_entropy(job(OnHost{}), 0, rows);
  cuda::mistake_cross_entropy(job(OnDevice{}), rows, scratch.device(), nullptr);
  mistake.compare(top_index.from_device(), top_index.host, 0.0, name + ", tokens");
  for (const auto& [field, what] : {std::pair{&loss, ", loss"},
                                    {&largest_and_total, ", for the gradient"},
                                    {&top_prob, ", probabilities"},
                                    {&target_prob, ", probability of the label"},
                                    {&rest_mass, ", rest"},
                                    {&rest_square, ", squares of the rest"}}) {
    mistake.compare(field->from_device(), field->host, 4e-6, name + what);
  }

  Both<float> grad(numbers(rows, -16.0f, 16.0f, random));
  const auto backward_job = [&](auto side, MutableRows out) -> MistakeCrossEntropyBackward {
    return {side(grad), side(logits), of.vocabulary, side(labels), ignored, side(largest_and_total), out};
  };
  Matrix elsewhere(of.dtype, rows, of.vocabulary);
  for (Matrix* out : {&elsewhere, &logits}) {
    cpu_kernels().mistake_cross_entropy_backward(backward_job(OnHost{}, out->mutable_host()), 0, rows);
    cuda::mistake_cross_entropy_backward(backward_job(OnDevice{}, out->mutable_device()), rows, nullptr);
    backward.compare(out->values_of_device(), out->values(), of.dtype == f32 ? 4e-6 : 0.01, name);
  }
}

void check_mistake_cross_entropy(Check& mistake, Check& backward) {
  for (const DType dtype : {f32, bf16, f16}) {
    for (const bool aligned : {true, false}) {
      for (const auto& [rows, vocabulary] : kRowsAndVocabularies) {
        for (const int64_t k : {0, 1, 32}) run({dtype, rows, vocabulary, aligned, k}, mistake, backward);
      }
      run({dtype, 2, 111, aligned, 111}, mistake, backward);
      run({dtype, 2, 50257, aligned, 600}, mistake, backward);
    }
  }
}

// ---- rectify and rectify_sample: the same tokens ----

struct RectifyCase {
  DType dtype, delta;
  int64_t rows, vocabulary;
  bool aligned, dense;
  Rectifier rectifier;
};

constexpr double kStrength = 0.6;
constexpr int64_t kCandidates = 32;

struct SamplingCase {
  const char* name;
  float temperature;
  int64_t top_k;
  double top_p;
};

constexpr SamplingCase kSamplingCases[] = {
    {"greedy", 0.0f, 0, 1.0}, {"temperature", 0.7f, 0, 1.0}, {"top-k and top-p", 1.3f, 50, 0.9}};

// Every row has its own tokens, each of them once and in no order.
std::vector<int64_t> tokens_of_candidates(int64_t rows, int64_t vocabulary, std::mt19937& random) {
  const int64_t step = vocabulary / kCandidates;
  std::vector<int64_t> tokens(rows * kCandidates);
  for (auto row = tokens.begin(); row != tokens.end(); row += kCandidates) {
    for (int64_t i = 0; i < kCandidates; ++i) row[i] = i * step + random() % step;
    std::shuffle(row, row + kCandidates, random);
  }
  return tokens;
}

// In the order of their tokens.
std::vector<Candidate> sorted_candidates(const std::vector<int64_t>& tokens, const Rows& delta) {
  std::vector<Candidate> candidates;
  for (const int64_t token : tokens) {
    candidates.push_back({token, static_cast<const float*>(delta.data)[candidates.size()]});
  }
  for (auto row = candidates.begin(); row != candidates.end(); row += kCandidates) {
    std::sort(row, row + kCandidates, [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  }
  return candidates;
}

void rectify_on_cpu(const Rectify& job, int64_t rows) {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t chunks = rectify_chunks(job.vocabulary);
  std::vector<float> scratch(rectify_scratch(job.vocabulary));
  for (int64_t row = 0; row < rows; ++row) {
    kernels.rectify_reduce(job, row, 0, chunks, scratch.data());
    if (job.rectifier == Rectifier::kLinear && job.delta.data != nullptr) {
      kernels.rectify_total(job, row, 0, chunks, scratch.data());
    }
    kernels.rectify_write(job, row, 0, chunks, scratch.data());
  }
}

// `log_rectified` is the CPU's.
void run(const SamplingCase& of, const RectifyInputs& inputs, const std::vector<float>& log_rectified, Check& check,
         const std::string& name) {
  const int64_t rows = inputs.rows, vocabulary = inputs.vocabulary;
  Both<int64_t> seed(std::vector<int64_t>{static_cast<int64_t>(check.random()())}),
      offset(std::vector<int64_t>{(int64_t{1} << 33) + 5}), token(unwritten<int64_t>(rows));
  Both<float> log_prob(unwritten<float>(rows));
  Both<char> scratch(unwritten<char>(cuda::rectify_sample_scratch(rows, vocabulary)));
  const RectifySample on_host{vocabulary,
                              of.temperature,
                              of.top_k,
                              of.top_p,
                              static_cast<uint64_t>(seed.host[0]),
                              static_cast<uint64_t>(offset.host[0]),
                              token.host.data(),
                              log_prob.host.data()};
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<float> scores(sample_row_size(vocabulary), -INFINITY);
    std::copy_n(log_rectified.begin() + row * vocabulary, vocabulary, scores.begin());
    cpu_kernels().sample_row(on_host, row, scores.data());
  }
  cuda::rectify_sample(
      inputs, {of.temperature, of.top_k, of.top_p, seed.device(), offset.device(), token.device(), log_prob.device()},
      scratch.device(), nullptr);
  check.compare(token.from_device(), token.host, 0.0, name + ", " + of.name);
  check.compare(log_prob.from_device(), log_prob.host, 4e-6, name + ", " + of.name + ", logarithm");
}

// Half of the corrections are 0, and some leave nothing of a token.
void run(const RectifyCase& of, Check& rectify, Check& sample, const std::string& name) {
  if (!rectify.takes_this_case()) return;
  std::mt19937& random = rectify.random();
  const bool linear = of.rectifier == Rectifier::kLinear;  // whose corrections are those of probabilities
  const int64_t stride = stride_of(of.vocabulary, of.aligned), n_candidates = of.dense ? 0 : kCandidates;
  Matrix logits(of.dtype, of.rows, stride, {.lowest = -8, .highest = 3, .negative = true, .minus_infinities = 1},
                random);
  Matrix delta(of.dense ? of.delta : f32, of.rows, of.dense ? stride : kCandidates,
               {.lowest = linear ? -14 : -6,
                .highest = linear ? -4 : 1,
                .negative = !linear,
                .zeros = 32,
                .minus_infinities = 1},
               random);
  Both<int64_t> index(of.dense ? std::vector<int64_t>() : tokens_of_candidates(of.rows, of.vocabulary, random));
  const std::vector<Candidate> candidates = sorted_candidates(index.host, delta.host());
  Both<float> out(unwritten<float>(of.rows * of.vocabulary));
  Both<char> scratch(unwritten<char>(cuda::rectify_scratch(of.rows, of.vocabulary)));
  rectify_on_cpu({logits.host(), of.dense ? delta.host() : Rows{}, candidates.data(), n_candidates, of.vocabulary,
                  of.rectifier, kStrength, out.host.data(), of.vocabulary},
                 of.rows);
  const RectifyInputs inputs{logits.device(), delta.device(), of.dense ? nullptr : index.device(),
                             n_candidates,    of.rows,        of.vocabulary,
                             of.rectifier,    kStrength};
  cuda::rectify(inputs, out.device(), scratch.device(), nullptr);
  rectify.compare(out.from_device(), out.host, 4e-6, name);
  // In turn, and for one dtype only: an emulated GPU takes long. Its delta is float32, with others p~ itself has ties
  // up to rounding.
  if (of.dtype != bf16) return;
  run(kSamplingCases[sample.comparisons() / 2 % std::size(kSamplingCases)], inputs, out.host, sample, name);
}

void check_rectify(Check& rectify, Check& sample) {
  for (const auto& [rectifier, of] : {std::pair{Rectifier::kSimplex, ", simplex"},
                                      {Rectifier::kLogit, ", logit"},
                                      {Rectifier::kLinear, ", linear"}}) {
    for (const auto& [dtype, delta] : {std::pair{f32, f16}, {bf16, f32}, {f16, bf16}}) {
      for (const auto& [rows, vocabulary] : kRowsAndVocabularies) {
        for (const bool aligned : {true, false}) {
          for (const bool dense : {true, false}) {
            run({dtype, delta, rows, vocabulary, aligned, dense, rectifier}, rectify, sample,
                description(dtype, vocabulary, aligned) + of + (dense ? ", dense" : ", candidates"));
          }
        }
      }
    }
  }
}

bool check_all(int every) {
  Check pool("pool_layers", every), loss("candidate_loss", every), loss_backward("candidate_loss_backward", every),
      mistake("mistake_cross_entropy", every), mistake_backward("mistake_cross_entropy_backward", every),
      rectify("rectify", every), sample("rectify_sample", every);
  check_pool_layers(pool);
  bool all = pool.report();
  check_candidate_loss(loss, loss_backward);
  all = loss.report() & loss_backward.report() & all;
  check_mistake_cross_entropy(mistake, mistake_backward);
  all = mistake.report() & mistake_backward.report() & all;
  check_rectify(rectify, sample);
  return rectify.report() & sample.report() & all;
}

}  // namespace
}  // namespace copilot

int main(int count, char** arguments) {
  const int every = count > 1 ? std::max(std::atoi(arguments[1]), 1) : 1;
  try {
    const copilot::cuda::Device device = copilot::cuda::current_device();
    std::printf(
        "A GPU with up to %u blocks a cluster and %zu KB of shared memory a block, against the CPU's %s kernels\n",
        device.most_blocks, device.shared_per_block / 1024, copilot::cpu_kernels().name);
    return copilot::check_all(every) ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
