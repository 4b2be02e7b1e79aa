// What the processor can give at most: multiply-adds from registers, exponentials among them, and
// bytes read from memory.
//
// machine.py compiles this file for the instruction set whose kernels run and calls it from Python;
// the benchmarks' shares are shares of these numbers.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <latch>
#include <limits>
#include <numbers>
#include <thread>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

// Two units with a latency of 4 to 6 cycles need 8 to 12 sums at work; two operands stay as well.
constexpr int kSums = kRegisters * 3 / 4;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Seconds from the start of the first thread to the end of the last; work(i) for i < threads.
template <typename Work>
double seconds_of(int threads, Work work) {
  std::latch ready(threads);
  std::vector<Clock::time_point> starts(threads);
  std::vector<std::thread> others;
  auto run = [&](int i) {
    ready.arrive_and_wait();
    starts[i] = Clock::now();
    work(i);
  };
  for (int i = 1; i < threads; ++i) others.emplace_back(run, i);
  run(0);
  for (std::thread& other : others) other.join();
  return seconds_since(*std::min_element(starts.begin(), starts.end()));
}

// sum = sum x + y, kSums at once. Returns the floating-point operations.
template <typename T>
double multiply_add(long rounds, volatile double* sink) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int kLanes = kVectorBytes / sizeof(T);
  Vector sums[kSums], x, y;
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = T(0.5), y[lane] = T(1) + T(lane);
  for (Vector& sum : sums) sum = y;
  for (long round = 0; round < rounds; ++round) {
// In registers only if unrolled.
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * x + y;
  }
  for (Vector& sum : sums) y += sum;
  *sink = static_cast<double>(y[0]);
  return 2.0 * kSums * kLanes * rounds;
}

#ifdef __AVX512BF16__
// sum += x0 y0 + x1 y1 for pairs of bfloat16, summed in float32.
double dot_product(long rounds, volatile double* sink) {
  const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  *sink = sums[0][0];
  return 2.0 * kSums * 32 * rounds;
}
#endif

// Of 2^r, as Taylor has them: only the time counts.
template <typename T, int degree>
constexpr std::array<T, degree + 1> coefficients() {
  std::array<T, degree + 1> found = {T(1)};
  for (int k = 1; k <= degree; ++k) found[k] = found[k - 1] * T(std::numbers::ln2) / T(k);
  return found;
}

template <typename T>
struct Exponential;  // the lowest degree that can give an error of 1 ulp, |r| <= 1/2

template <>
struct Exponential<float> {
  using Integer = int32_t;
  static constexpr auto kCoefficients = coefficients<float, 6>();
};

template <>
struct Exponential<double> {
  using Integer = int64_t;
  static constexpr auto kCoefficients = coefficients<double, 11>();
};

constexpr int kScores = 256;             // stay in the first cache
constexpr int kBeside = kRegisters / 2;  // multiply-adds to each exponential

// The sum of exp(x - largest) over kScores scores, in each round anew: 2^n 2^r with n + r = t =
// (x - largest) log2(e), n = round(t). These are the fewest operations known; a kernel also has to
// bound n. Multiply-adds stand beside them because those of the polynomial need the same units,
// whereas sums and shifts may find others, and then cost nothing.
template <typename T>
double sum_of_exponentials(const T* x, T largest, long rounds) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef typename Exponential<T>::Integer Bits __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T))));
  constexpr int kLanes = kVectorBytes / sizeof(T);
  constexpr auto kCoefficients = Exponential<T>::kCoefficients;
  constexpr int kFraction = std::numeric_limits<T>::digits - 1;
  constexpr T kShifter = T(3LL << (kFraction - 1)), kSlope = T(std::numbers::log2e);
  const Vector slope = Vector{} + kSlope, start = Vector{} - largest * kSlope;
  Vector sums[kBeside], half = Vector{} + T(0.5), sum = {};
#pragma GCC unroll 16
  for (int i = 0; i < kBeside; ++i) sums[i] = Vector{} + T(2 + i);  // 1 would stay 1
  for (long round = 0; round < rounds; ++round) {
    asm volatile("" ::: "memory");  // as if the scores were others
    for (int j = 0; j < kScores; j += kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kBeside; ++i) sums[i] = sums[i] * half + half;
      const Vector t = *reinterpret_cast<const Unaligned*>(x + j) * slope + start;
      const Vector shifted = t + kShifter, r = t - (shifted - kShifter);
      Vector p = Vector{} + kCoefficients.back();
#pragma GCC unroll 16
      for (int k = kCoefficients.size() - 2; k >= 0; --k) p = p * r + kCoefficients[k];
      sum += (Vector)((Bits)p + ((Bits)shifted << kFraction));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kBeside; ++i) half += sums[i];
  volatile T sink = half[0];
  (void)sink;
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

// How many multiply-adds take as long as what an exponential adds to those beside it; one thread.
template <typename T>
double multiply_adds_per_exponential(long rounds) {
  T x[kScores];
  for (int j = 0; j < kScores; ++j) x[j] = T(-j) / 16;
  constexpr int kVectors = kScores * sizeof(T) / kVectorBytes;
  std::array<double, 31> found;  // the median of pairs stands a clock that changes
  for (double& cost : found) {
    const double with = seconds_of(1, [&](int) {
      volatile double sink = sum_of_exponentials(x, T(0), rounds);
      (void)sink;
    });
    const double without = seconds_of(1, [&](int) {
      volatile double sink;
      multiply_add<T>(rounds * kVectors * kBeside / kSums, &sink);
    });
    cost = (with / without - 1) * kBeside;
  }
  std::nth_element(found.begin(), found.begin() + found.size() / 2, found.end());
  return found[found.size() / 2];
}

using Loop = double (*)(long, volatile double*);

double flop_per_second(Loop loop, int threads, long rounds) {
  std::vector<double> flop(threads);
  const double seconds = seconds_of(threads, [&](int i) {
    volatile double sink;
    flop[i] = loop(rounds, &sink);
  });
  double sum = 0;
  for (double part : flop) sum += part;
  return sum / seconds;
}

}  // namespace

extern "C" {

double float32_flop_per_second(int threads, long rounds) {
  return flop_per_second(multiply_add<float>, threads, rounds);
}

double float64_flop_per_second(int threads, long rounds) {
  return flop_per_second(multiply_add<double>, threads, rounds);
}

#ifdef __AVX512BF16__
double bfloat16_flop_per_second(int threads, long rounds) {
  return flop_per_second(dot_product, threads, rounds);
}
#endif

double float32_multiply_adds_per_exponential(long rounds) {
  return multiply_adds_per_exponential<float>(rounds);
}

double float64_multiply_adds_per_exponential(long rounds) {
  return multiply_adds_per_exponential<double>(rounds);
}

// Of the 256 scores at x, summed up `rounds` times.
double float32_sum_of_exponentials(const float* x, float largest, long rounds) {
  return sum_of_exponentials(x, largest, rounds);
}

double float64_sum_of_exponentials(const double* x, double largest, long rounds) {
  return sum_of_exponentials(x, largest, rounds);
}

// Each thread reads its part of the `bytes` at data, `rounds` times.
double bytes_per_second(const char* data, long bytes, int threads, long rounds) {
  typedef long Vector __attribute__((vector_size(kVectorBytes), aligned(8)));
  constexpr int kAtOnce = 8;
  const long step = kAtOnce * static_cast<long>(sizeof(Vector));
  const long steps = bytes / step / threads;
  const double seconds = seconds_of(threads, [&](int i) {
    Vector sums[kAtOnce] = {};
    for (long round = 0; round < rounds; ++round) {
      const auto* part = reinterpret_cast<const Vector*>(data + i * steps * step);
      asm volatile("" ::: "memory");
      for (long s = 0; s < steps; ++s, part += kAtOnce) {
#pragma GCC unroll 8
        for (int k = 0; k < kAtOnce; ++k) sums[k] ^= part[k];
      }
    }
    for (int k = 1; k < kAtOnce; ++k) sums[0] ^= sums[k];
    volatile long sink = sums[0][0];
    (void)sink;
  });
  return static_cast<double>(rounds * steps * step * threads) / seconds;
}

}  // extern "C"
