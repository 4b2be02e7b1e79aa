// Numbers of any type in memory as the accumulation type T and back, one at a time and in vectors;
// those of 16 bits are widened and rounded in registers. Also the arithmetic of sizes.
#pragma once

#include "cpu/kernels/primitives/vec.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// ---- sizes ----

TORCH_EXT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TORCH_EXT_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
TORCH_EXT_INLINE constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
TORCH_EXT_INLINE constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return divide_up(n, multiple) * multiple;
}

// A number that is known when compiling, as an argument.
template <int kValue>
struct Int {
  static constexpr int value = kValue;
};
template <bool kValue>
struct Bool {
  static constexpr bool value = kValue;
};

template <class T>
void fill_zero(T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0;
}

// ---- single numbers ----

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

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

// ---- vectors ----

TORCH_EXT_INLINE Vec<float> load_stored(const float* p) { return Vec<float>::load(p); }
TORCH_EXT_INLINE Vec<double> load_stored(const double* p) { return Vec<double>::load(p); }
TORCH_EXT_INLINE void store_rounded(Vec<float> x, float* p) { x.store(p); }
TORCH_EXT_INLINE void store_rounded(Vec<double> x, double* p) { x.store(p); }

#ifdef __AVX512F__

TORCH_EXT_INLINE Vec<float> widen_bfloat16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p) {
  return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

// Rounded as `narrow` does.
TORCH_EXT_INLINE __m256i round_to(Vec<float> x, BFloat16) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7fc0)));
}
TORCH_EXT_INLINE __m256i round_to(Vec<float> x, Float16) {
  return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT);
}
template <class S>
TORCH_EXT_INLINE void store_rounded(Vec<float> x, S* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_to(x, S()));
}

TORCH_EXT_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}

// The first `count` < kSize lanes, the others 0; nothing behind them is read.
TORCH_EXT_INLINE Vec<float> load_stored(const float* p, int64_t count) {
  return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
}
TORCH_EXT_INLINE Vec<double> load_stored(const double* p, int64_t count) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), p)};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p, int64_t count) {
  return widen_bfloat16(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p, int64_t count) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), p))};
}

// The first `count` < kSize lanes; nothing behind them is written.
TORCH_EXT_INLINE void store_rounded(Vec<float> x, float* p, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), x.v);
}
TORCH_EXT_INLINE void store_rounded(Vec<double> x, double* p, int64_t count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(count)), x.v);
}
template <class S>
TORCH_EXT_INLINE void store_rounded(Vec<float> x, S* p, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), round_to(x, S()));
}

#else  // AVX2 and F16C

TORCH_EXT_INLINE Vec<float> widen_bfloat16(__m128i bits) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p) {
  return widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

// Rounded as `narrow` does.
TORCH_EXT_INLINE __m128i round_to(Vec<float> x, BFloat16) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1));
}
TORCH_EXT_INLINE __m128i round_to(Vec<float> x, Float16) {
  return _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT);
}
template <class S>
TORCH_EXT_INLINE void store_rounded(Vec<float> x, S* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_to(x, S()));
}

// `count` < 8 numbers of 16 bits, zeros behind them. AVX2 has no masked load of them: two
// overlapping loads of 8 or of 4 bytes, the second shifted so that it holds what the first lacks.
TORCH_EXT_INLINE __m128i load_bits(const void* p, int64_t count) {
  const char* bytes = static_cast<const char*>(p);
  uint64_t low = 0, high = 0;
  if (count >= 4) {
    __builtin_memcpy(&low, bytes, 8);
    if (count > 4) {
      __builtin_memcpy(&high, bytes + 2 * (count - 4), 8);
      high >>= 16 * (8 - count);
    }
  } else if (count >= 2) {
    uint32_t first, last;
    __builtin_memcpy(&first, bytes, 4);
    __builtin_memcpy(&last, bytes + 2 * (count - 2), 4);
    low = first | static_cast<uint64_t>(last) << (16 * (count - 2));
  } else {
    __builtin_memcpy(&low, bytes, 2);
  }
  return _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
}

// The reverse, by pieces of 8, 4 and 2 bytes.
TORCH_EXT_INLINE void store_bits(__m128i bits, void* p, int64_t count) {
  char* out = static_cast<char*>(p);
  int64_t rest = _mm_cvtsi128_si64(bits);
  if (count & 4) {
    __builtin_memcpy(out, &rest, 8);
    out += 8;
    rest = _mm_extract_epi64(bits, 1);
  }
  if (count & 2) {
    __builtin_memcpy(out, &rest, 4);
    out += 4;
    rest >>= 32;
  }
  if (count & 1) __builtin_memcpy(out, &rest, 2);
}

TORCH_EXT_INLINE __m256i first_lanes(int64_t count, float) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}
TORCH_EXT_INLINE __m256i first_lanes(int64_t count, double) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}

// The first `count` < kSize lanes, of 16-bit numbers 1 at least, the others 0; nothing behind them
// is read.
TORCH_EXT_INLINE Vec<float> load_stored(const float* p, int64_t count) {
  return {_mm256_maskload_ps(p, first_lanes(count, float()))};
}
TORCH_EXT_INLINE Vec<double> load_stored(const double* p, int64_t count) {
  return {_mm256_maskload_pd(p, first_lanes(count, double()))};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p, int64_t count) {
  return widen_bfloat16(load_bits(p, count));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p, int64_t count) {
  return {_mm256_cvtph_ps(load_bits(p, count))};
}

// The first `count` < kSize lanes; nothing behind them is written.
TORCH_EXT_INLINE void store_rounded(Vec<float> x, float* p, int64_t count) {
  _mm256_maskstore_ps(p, first_lanes(count, float()), x.v);
}
TORCH_EXT_INLINE void store_rounded(Vec<double> x, double* p, int64_t count) {
  _mm256_maskstore_pd(p, first_lanes(count, double()), x.v);
}
template <class S>
TORCH_EXT_INLINE void store_rounded(Vec<float> x, S* p, int64_t count) {
  store_bits(round_to(x, S()), p, count);
}

#endif

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
