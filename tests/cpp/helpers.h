// Shared by all GoogleTests: random numbers, number formats and memory that notices misuse.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "cpu/choices.h"

namespace torch_ext::test {

// The largest tiles that there are by default.
constexpr int64_t kTileQueries = cpu::Choices().tile_queries, kTileKeys = cpu::Choices().tile_keys;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// SplitMix64: the same numbers with every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
  }
  double normal() {  // near enough: variance 1
    return uniform(-1.5, 1.5) + uniform(-1.5, 1.5) + uniform(-1, 1) + uniform(-1, 1) * 0.9;
  }

 private:
  uint64_t state_;
};

// 2^n, a normal number; std::ldexp would take most of the time of decode16.
inline double power_of_two(int n) { return std::bit_cast<double>(int64_t{n + 1023} << 52); }

// The two 16-bit formats, decoded from their definition.
inline double decode16(uint16_t bits, int exponent_bits) {
  const int fraction_bits = 15 - exponent_bits;
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const double fraction = (bits & ((1 << fraction_bits) - 1)) * power_of_two(-fraction_bits);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double x = exponent == 0 ? fraction * power_of_two(1 - bias)
                           : (1 + fraction) * power_of_two(exponent - bias);
  if (exponent == (1 << exponent_bits) - 1) x = fraction == 0 ? kInf : kNan;
  return bits & 0x8000 ? -x : x;
}
inline double decode_bfloat16(uint16_t bits) { return decode16(bits, 8); }
inline double decode_float16(uint16_t bits) { return decode16(bits, 5); }

// The nearest code of a 16-bit format, ties to even. Codes of one sign are ordered as their values
// are.
inline uint16_t encode16(double x, int exponent_bits) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const auto infinity = static_cast<uint16_t>(((1 << exponent_bits) - 1) << (15 - exponent_bits));
  if (std::isnan(x)) return static_cast<uint16_t>(infinity + 1);
  x = std::fabs(x);
  uint16_t low = 0, high = infinity;  // low <= x <= high
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (decode16(middle, exponent_bits) <= x ? low : high) = middle;
  }
  const double below = decode16(low, exponent_bits);
  // Infinity stands for the power of two after the largest number.
  const double above = high == infinity
                           ? 2 * decode16(high - (1 << (15 - exponent_bits)), exponent_bits)
                           : decode16(high, exponent_bits);
  const bool up = x - below > above - x || (x - below == above - x && low % 2 == 1);
  return static_cast<uint16_t>(sign | (std::isinf(x) || up ? high : low));
}

// Equal, or both NaN.
inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// `bytes` of memory that end where a page begins that nobody may touch: reading or writing one
// element too far ends the test. Filled with 0xff, which is NaN in every floating-point type; where
// it is sparse, with nothing: of what is never touched there is no memory.
class FencedMemory {
 public:
  explicit FencedMemory(int64_t bytes, bool is_sparse = false)
      : bytes_(static_cast<size_t>(bytes)) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes_ + page - 1) / page * page + page;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (is_sparse ? MAP_NORESERVE : 0);
    void* map = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<unsigned char*>(map);
    fence_ = map_ + mapped_ - page;
    mprotect(fence_, page, PROT_NONE);
    if (!is_sparse) poison();
  }
  FencedMemory(const FencedMemory&) = delete;
  FencedMemory& operator=(const FencedMemory&) = delete;
  ~FencedMemory() { munmap(map_, mapped_); }

  void poison() { std::memset(map_, 0xff, static_cast<size_t>(fence_ - map_)); }
  template <class S>
  S* last(int64_t count) const {  // the last `count` elements before the fence
    return reinterpret_cast<S*>(fence_) - count;
  }
  unsigned char* begin() const { return fence_ - bytes_; }
  size_t size() const { return bytes_; }

  // Whether everything is as poison() left it, from the first page to the fence, but for what
  // `may_change` marks.
  bool untouched_except(const std::vector<bool>& may_change) const {
    for (const unsigned char* p = map_; p < begin(); ++p)
      if (*p != 0xff) return false;
    for (size_t i = 0; i < bytes_; ++i)
      if (!may_change[i] && begin()[i] != 0xff) return false;
    return true;
  }

 private:
  size_t bytes_, mapped_;
  unsigned char *map_, *fence_;
};

}  // namespace torch_ext::test
