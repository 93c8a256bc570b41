// Runs every CUDA kernel on random numbers and compares with its twin for the CPU, without torch: one line a kernel,
// and 1 is returned if any differs. Another kernel is a function that runs it on a Check, and a Check in check_all().
//
// To build it for the GPU that is there, or to emulate one:
//   includes="-Icsrc/include -Icsrc/cpu -Icsrc/cuda" files="csrc/selfcheck/selfcheck.cu csrc/cuda/*.cu csrc/cpu/*.cpp"
//   nvcc -arch=native -std=c++20 -O3 -Xcompiler -Wno-psabi $includes $files -o selfcheck
//   g++ -std=c++20 -O2 -Wno-psabi -U_FORTIFY_SOURCE -DCOPILOT_EMULATION $includes -x c++ $files -o selfcheck

#include <algorithm>
#include <cmath>
#include <cstdio>
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

// ---- Numbers ----

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
  if (exponent == largest) return mantissa != 0.0 ? NAN : INFINITY;
  const double size_of_it = std::ldexp(mantissa + (exponent > 0), std::max(exponent, 1) - largest / 2);
  return bits >> (exponent_bits + mantissa_bits) & 1 ? -size_of_it : size_of_it;
}

// Rows on both sides.
class Matrix {
 public:
  // Numbers whose powers of two lie in [lowest, highest].
  Matrix(DType dtype, int64_t rows, int64_t width, int64_t stride, int lowest, int highest, bool negative,
         std::mt19937& random)
      : dtype_(dtype), width_(width), stride_(stride), bytes_(bytes_of(rows, lowest, highest, negative, random)) {}

  // For results.
  Matrix(DType dtype, int64_t rows, int64_t width)
      : dtype_(dtype), width_(width), stride_(width), bytes_(std::vector<char>(rows * width * format_of(dtype).size)) {}

  Rows host() { return {bytes_.host.data(), stride_, dtype_}; }
  Rows device() { return {bytes_.device(), stride_, dtype_}; }
  MutableRows mutable_host() { return {bytes_.host.data(), stride_, dtype_}; }
  MutableRows mutable_device() { return {bytes_.device(), stride_, dtype_}; }

  std::vector<double> values() const { return decoded(bytes_.host); }
  std::vector<double> values_of_device() const { return decoded(bytes_.from_device()); }

 private:
  std::vector<char> bytes_of(int64_t rows, int lowest, int highest, bool negative, std::mt19937& random) {
    const auto [exponent_bits, mantissa_bits, size] = format_of(dtype_);
    const int bias = (1 << (exponent_bits - 1)) - 1;
    std::vector<char> bytes(rows * stride_ * size);
    for (int64_t i = 0; i < rows * stride_; ++i) {
      const uint32_t exponent = bias + lowest + random() % (highest - lowest + 1);
      uint32_t bits = exponent << mantissa_bits | (random() & ((1u << mantissa_bits) - 1));
      if (negative) bits |= (random() & 1) << (exponent_bits + mantissa_bits);
      std::memcpy(&bytes[i * size], &bits, size);  // the lower bytes come first
    }
    return bytes;
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
  int64_t width_, stride_;
  Both<char> bytes_;
};

// ---- Checks ----

// Collects the differences of one kernel.
class Check {
 public:
  explicit Check(const char* name) : name_(name) {}

  std::mt19937& random() { return random_; }

  // Differences count relative to the value and the mean of all.
  template <class T>
  void compare(const std::vector<T>& of_gpu, const std::vector<T>& of_cpu, double allowed, const std::string& of) {
    ++comparisons_;
    double mean = 0.0;
    for (const T value : of_cpu) mean += std::fabs(value) / of_cpu.size();
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
      std::printf("%-24s agrees in %d comparisons, largest difference %.1e\n", name_, comparisons_, largest_);
    } else {
      std::printf("%-24s DIFFERS: %s\n", name_, failure_.c_str());
    }
    return failure_.empty();
  }

 private:
  const char* name_;
  std::mt19937 random_{1};
  int comparisons_ = 0;
  double largest_ = 0.0;
  std::string failure_;
};

// ---- pool_layers: the same bits ----

struct PoolCase {
  std::vector<DType> dtypes;  // of the layers in turn
  int64_t n_layers, n_rows, width, stride;
  Pooling pooling;
  std::vector<int64_t> rows;  // all, if empty
};

void run(const PoolCase& of, Check& check, const std::string& name) {
  std::vector<std::unique_ptr<Matrix>> states;
  std::vector<Rows> host, device;
  for (int64_t i = 0; i < of.n_layers; ++i) {
    states.push_back(std::make_unique<Matrix>(of.dtypes[i % of.dtypes.size()], of.n_rows, of.width, of.stride, -8, 3,
                                              true, check.random()));
    host.push_back(states.back()->host());
    device.push_back(states.back()->device());
  }
  Both<int64_t> rows(of.rows);
  const int64_t count = of.rows.empty() ? of.n_rows : static_cast<int64_t>(of.rows.size());
  Both<float> out(std::vector<float>(count * of.width));
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
  constexpr DType f32 = DType::kFloat32, bf16 = DType::kBFloat16, f16 = DType::kFloat16;
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
    {1000, 32, true, DType::kFloat32, DType::kFloat32},   {77, 21, true, DType::kFloat16, DType::kBFloat16},
    {5, 3000, true, DType::kFloat32, DType::kFloat16},    {9, 111, false, DType::kFloat32, DType::kFloat32},
    {4, 32000, false, DType::kFloat32, DType::kFloat32},  {3, 50257, false, DType::kFloat32, DType::kBFloat16},
    {2, 262144, false, DType::kBFloat16, DType::kFloat32}};

constexpr std::pair<Objective, const char*> kObjectives[] = {{Objective::kSquared, "squared"},
                                                             {Objective::kLinear, "linear"},
                                                             {Objective::kCrossEntropy, "ce"},
                                                             {Objective::kKl, "kl"}};

// Half of the targets are kept where there is an index.
void run(const CandidateCase& of, Objective objective, Check& loss, Check& backward, const std::string& name) {
  std::mt19937& random = loss.random();
  const auto numbers = [&](float least, float most) {
    std::vector<float> values(of.n_rows);
    for (float& value : values) value = std::uniform_real_distribution<float>(least, most)(random);
    return values;
  };
  const int power = std::max(-static_cast<int>(std::log2(of.k)) - 1, of.prob == DType::kFloat16 ? -10 : -30);
  Matrix prob(of.prob, of.n_rows, of.k, of.k, power - 3, power, false, random);
  Matrix delta(of.delta, of.n_rows, of.k, of.k + 8, -6, 1, true, random);
  std::vector<int64_t> tokens(of.indexed ? of.n_rows * of.k : 0), targets(of.n_rows);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = 3 * (i % of.k);
  for (int64_t& target : targets) target = of.indexed ? 3 * (random() % of.k) + random() % 2 : random() % of.k;
  Both<int64_t> index(tokens), target(targets);
  Both<float> target_prob(numbers(0.01f, 0.1f)), rest_mass(numbers(0.1f, 0.2f)), rest_square(numbers(0.01f, 0.02f));
  if (!of.indexed) {
    rest_mass.host = rest_square.host = std::vector<float>(of.n_rows);
    copy(rest_mass.device(), rest_mass.host.data(), of.n_rows * sizeof(float));
    copy(rest_square.device(), rest_square.host.data(), of.n_rows * sizeof(float));
  }
  Both<float> losses((std::vector<float>(of.n_rows))), gradient(std::vector<float>(3 * of.n_rows));
  const Candidates host{prob.host(),        delta.host(), of.indexed ? index.host.data() : nullptr,
                        target.host.data(), of.k,         objective};
  const Candidates device{prob.device(),   delta.device(), of.indexed ? index.device() : nullptr,
                          target.device(), of.k,           objective};
  const auto rows_of = [](float* gradient) { return reinterpret_cast<CandidateGradient*>(gradient); };
  cpu_kernels().candidate_loss({host, target_prob.host.data(), rest_mass.host.data(), rest_square.host.data(),
                                losses.host.data(), rows_of(gradient.host.data())},
                               0, of.n_rows);
  cuda::candidate_loss({device, target_prob.device(), rest_mass.device(), rest_square.device(), losses.device(),
                        rows_of(gradient.device())},
                       of.n_rows, nullptr);
  loss.compare(losses.from_device(), losses.host, 4e-6, name);
  loss.compare(gradient.from_device(), gradient.host, 4e-6, name + ", for the gradient");

  Both<float> upstream(numbers(-1.0f, 1.0f));
  Matrix out(of.delta, of.n_rows, of.k);
  cpu_kernels().candidate_loss_backward({host, rows_of(gradient.host.data()), upstream.host.data(), out.mutable_host()},
                                        0, of.n_rows);
  cuda::candidate_loss_backward({device, rows_of(gradient.device()), upstream.device(), out.mutable_device()},
                                of.n_rows, nullptr);
  backward.compare(out.values_of_device(), out.values(), of.delta == DType::kFloat32 ? 4e-6 : 0.01, name);
}

void check_candidate_loss(Check& loss, Check& backward) {
  for (const CandidateCase& of : kCandidateCases) {
    for (const auto& [objective, name] : kObjectives) {
      run(of, objective, loss, backward, std::to_string(of.k) + " tokens, " + name);
    }
  }
}

bool check_all() {
  Check pool("pool_layers"), loss("candidate_loss"), backward("candidate_loss_backward");
  check_pool_layers(pool);
  check_candidate_loss(loss, backward);
  bool all = true;
  for (const Check* check : {&pool, &loss, &backward}) all = check->report() && all;
  return all;
}

}  // namespace
}  // namespace copilot

int main() {
  try {
    const copilot::cuda::Device device = copilot::cuda::current_device();
    std::printf("A GPU of capability %d.%d, against the CPU's %s kernels\n", device.capability / 10,
                device.capability % 10, copilot::cpu_kernels().name);
    return copilot::check_all() ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
