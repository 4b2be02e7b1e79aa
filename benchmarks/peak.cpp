// What the processor can give at most: multiply-adds from registers, and bytes read from memory.
//
// machine.py compiles this file for the instruction set whose kernels run and calls it from Python;
// the benchmarks' shares are shares of these numbers.

#include <algorithm>
#include <chrono>
#include <latch>
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

// Each thread reads its part of the `bytes` at data once.
double bytes_per_second(const char* data, long bytes, int threads) {
  typedef long Vector __attribute__((vector_size(kVectorBytes), aligned(8)));
  constexpr int kAtOnce = 8;
  const long step = kAtOnce * static_cast<long>(sizeof(Vector));
  const long steps = bytes / step / threads;
  const double seconds = seconds_of(threads, [&](int i) {
    const auto* part = reinterpret_cast<const Vector*>(data + i * steps * step);
    Vector sums[kAtOnce] = {};
    for (long s = 0; s < steps; ++s, part += kAtOnce) {
#pragma GCC unroll 8
      for (int k = 0; k < kAtOnce; ++k) sums[k] ^= part[k];
    }
    for (int k = 1; k < kAtOnce; ++k) sums[0] ^= sums[k];
    volatile long sink = sums[0][0];
    (void)sink;
  });
  return static_cast<double>(steps * step * threads) / seconds;
}

}  // extern "C"
