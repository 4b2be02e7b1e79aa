// Sizes, and single numbers between their type in memory and the accumulation type T.
#pragma once

#include "cpu/kernels/vec.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

TORCH_EXT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TORCH_EXT_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
TORCH_EXT_INLINE int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
TORCH_EXT_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return divide_up(n, multiple) * multiple;
}

// A number that is known when compiling, as an argument.
template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

template <class T>
void fill_zero(T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0;
}

TORCH_EXT_INLINE float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
TORCH_EXT_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <class T>
TORCH_EXT_INLINE T widen(float x) {
  return static_cast<T>(x);
}
template <class T>
TORCH_EXT_INLINE T widen(double x) {
  return static_cast<T>(x);
}
template <class T>
TORCH_EXT_INLINE T widen(BFloat16 x) {
  return static_cast<T>(bits_to_float(static_cast<uint32_t>(x.bits) << 16));
}
template <class T>
TORCH_EXT_INLINE T widen(Float16 x) {
  return static_cast<T>(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.bits))));
}
template <class T>
TORCH_EXT_INLINE T widen(bool x) {
  return x ? T(0) : -kInfinity<T>;
}

// Round to nearest, ties to even; NaN stays NaN.
template <class T>
TORCH_EXT_INLINE void narrow(T x, T* out) {
  *out = x;
}
TORCH_EXT_INLINE void narrow(float x, BFloat16* out) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}
TORCH_EXT_INLINE void narrow(float x, Float16* out) {
  const __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
  out->bits = static_cast<uint16_t>(_mm_extract_epi16(half, 0));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
