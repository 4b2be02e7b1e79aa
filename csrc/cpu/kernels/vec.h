// The only file with intrinsics of arithmetic: one vector of float or double at the width of this
// ISA level.
//
// torch's own Vectorized<T> was not used because it has no exponential without Sleef, which the
// torch wheels do not export, and no way to fill a whole register array that GCC keeps in
// registers.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "attention/problem.h"

#define TORCH_EXT_UNROLL _Pragma("GCC unroll 16")

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
struct Vec;

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

#ifdef __AVX512F__

template <>
struct Vec<float> {
  static constexpr int kSize = 16;
  __m512 v;
  static TORCH_EXT_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static TORCH_EXT_INLINE Vec fill(float x) { return {_mm512_set1_ps(x)}; }
  static TORCH_EXT_INLINE Vec iota() {
    return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
  }
  TORCH_EXT_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
};

template <>
struct Vec<double> {
  static constexpr int kSize = 8;
  __m512d v;
  static TORCH_EXT_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static TORCH_EXT_INLINE Vec fill(double x) { return {_mm512_set1_pd(x)}; }
  static TORCH_EXT_INLINE Vec iota() { return {_mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7)}; }
  TORCH_EXT_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
};

TORCH_EXT_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
TORCH_EXT_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
// The larger, the smaller one; b where either is NaN.
TORCH_EXT_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return {_mm512_max_ps(a.v, b.v)}; }
TORCH_EXT_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return {_mm512_max_pd(a.v, b.v)}; }
TORCH_EXT_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return {_mm512_min_ps(a.v, b.v)}; }
TORCH_EXT_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return {_mm512_min_pd(a.v, b.v)}; }
// a == b ? yes : no, lane by lane.
TORCH_EXT_INLINE Vec<float> if_equal(Vec<float> a, Vec<float> b, Vec<float> yes, Vec<float> no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), no.v, yes.v)};
}
TORCH_EXT_INLINE Vec<double> if_equal(Vec<double> a, Vec<double> b, Vec<double> yes,
                                      Vec<double> no) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ), no.v, yes.v)};
}
TORCH_EXT_INLINE Vec<float> if_less(Vec<float> a, Vec<float> b, Vec<float> yes, Vec<float> no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
TORCH_EXT_INLINE Vec<double> if_less(Vec<double> a, Vec<double> b, Vec<double> yes,
                                     Vec<double> no) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
// Bit i: lane i of a equals lane i of b.
TORCH_EXT_INLINE uint32_t equal_lanes(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
TORCH_EXT_INLINE uint32_t equal_lanes(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ);
}
TORCH_EXT_INLINE Vec<float> round(Vec<float> a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
TORCH_EXT_INLINE Vec<double> round(Vec<double> a) {
  return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integer n, rounded once, also into the denormals.
TORCH_EXT_INLINE Vec<float> scale_by_power_of_two(Vec<float> a, Vec<float> n) {
  return {_mm512_scalef_ps(a.v, n.v)};
}
TORCH_EXT_INLINE Vec<double> scale_by_power_of_two(Vec<double> a, Vec<double> n) {
  return {_mm512_scalef_pd(a.v, n.v)};
}

#else  // AVX2 and FMA

template <>
struct Vec<float> {
  static constexpr int kSize = 8;
  __m256 v;
  static TORCH_EXT_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static TORCH_EXT_INLINE Vec fill(float x) { return {_mm256_set1_ps(x)}; }
  static TORCH_EXT_INLINE Vec iota() { return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)}; }
  TORCH_EXT_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
};

template <>
struct Vec<double> {
  static constexpr int kSize = 4;
  __m256d v;
  static TORCH_EXT_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static TORCH_EXT_INLINE Vec fill(double x) { return {_mm256_set1_pd(x)}; }
  static TORCH_EXT_INLINE Vec iota() { return {_mm256_setr_pd(0, 1, 2, 3)}; }
  TORCH_EXT_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
};

TORCH_EXT_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
TORCH_EXT_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
// The larger, the smaller one; b where either is NaN.
TORCH_EXT_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
TORCH_EXT_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return {_mm256_max_pd(a.v, b.v)}; }
TORCH_EXT_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return {_mm256_min_ps(a.v, b.v)}; }
TORCH_EXT_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return {_mm256_min_pd(a.v, b.v)}; }
// a == b ? yes : no, lane by lane.
TORCH_EXT_INLINE Vec<float> if_equal(Vec<float> a, Vec<float> b, Vec<float> yes, Vec<float> no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ))};
}
TORCH_EXT_INLINE Vec<double> if_equal(Vec<double> a, Vec<double> b, Vec<double> yes,
                                      Vec<double> no) {
  return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ))};
}
TORCH_EXT_INLINE Vec<float> if_less(Vec<float> a, Vec<float> b, Vec<float> yes, Vec<float> no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
TORCH_EXT_INLINE Vec<double> if_less(Vec<double> a, Vec<double> b, Vec<double> yes,
                                     Vec<double> no) {
  return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ))};
}
// Bit i: lane i of a equals lane i of b.
TORCH_EXT_INLINE uint32_t equal_lanes(Vec<float> a, Vec<float> b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)));
}
TORCH_EXT_INLINE uint32_t equal_lanes(Vec<double> a, Vec<double> b) {
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)));
}
TORCH_EXT_INLINE Vec<float> round(Vec<float> a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
TORCH_EXT_INLINE Vec<double> round(Vec<double> a) {
  return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integer n within twice the exponent range. Two factors, the first of them exact, so
// that the result is rounded once, also into the denormals.
TORCH_EXT_INLINE Vec<float> scale_by_power_of_two(Vec<float> a, Vec<float> n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return {
      _mm256_mul_ps(_mm256_mul_ps(a.v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))};
}
TORCH_EXT_INLINE Vec<double> scale_by_power_of_two(Vec<double> a, Vec<double> n) {
  const __m128i whole = _mm256_cvtpd_epi32(n.v);
  const __m128i half = _mm_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi64x(1023);
  const __m256i first = _mm256_slli_epi64(_mm256_add_epi64(_mm256_cvtepi32_epi64(half), bias), 52);
  const __m256i second = _mm256_slli_epi64(
      _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm_sub_epi32(whole, half)), bias), 52);
  return {
      _mm256_mul_pd(_mm256_mul_pd(a.v, _mm256_castsi256_pd(first)), _mm256_castsi256_pd(second))};
}

#endif

// The compiler's vector types carry + - *. It must not fuse them (-ffp-contract=off): forward and
// backward have to compute the same scores, so a fused multiply-add is always asked for by name.
template <class T>
TORCH_EXT_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return {a.v + b.v};
}
template <class T>
TORCH_EXT_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return {a.v - b.v};
}
template <class T>
TORCH_EXT_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return {a.v * b.v};
}
template <class T>
TORCH_EXT_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return {a.v / b.v};
}
// NaN stays NaN.
template <class T>
TORCH_EXT_INLINE Vec<T> abs(Vec<T> a) {
  return max(Vec<T>::fill(0) - a, a);
}

// a b + c, but c where b is 0, whatever a is (inf and NaN included).
template <class T>
TORCH_EXT_INLINE Vec<T> fma_unless_zero(Vec<T> a, Vec<T> b, Vec<T> c) {
  return if_equal(b, Vec<T>::fill(0), c, fma(a, b, c));
}

// Sum and largest of the lanes, always in the same order.
template <class T>
TORCH_EXT_INLINE T sum_lanes(Vec<T> a) {
  T lanes[Vec<T>::kSize];
  a.store(lanes);
  T sum = 0;
  for (int i = 0; i < Vec<T>::kSize; ++i) sum += lanes[i];
  return sum;
}

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; ln 2 in two parts so that r is exact
// (Cody and Waite). Error at most 1 ulp over the whole range, denormal results included; -inf gives
// 0, NaN gives NaN.
TORCH_EXT_INLINE Vec<float> exp(Vec<float> x) {
  // Polynomial of Cephes' expf. Bounds: below, the result rounds to 0; above, it is infinite.
  x = min(Vec<float>::fill(89.f), max(Vec<float>::fill(-104.f), x));
  const Vec<float> n = round(x * Vec<float>::fill(1.44269504088896341f));
  Vec<float> r = fma(n, Vec<float>::fill(-0.693359375f), x);
  r = fma(n, Vec<float>::fill(2.12194440e-4f), r);
  Vec<float> p = Vec<float>::fill(1.9875691500e-4f);
  p = fma(p, r, Vec<float>::fill(1.3981999507e-3f));
  p = fma(p, r, Vec<float>::fill(8.3334519073e-3f));
  p = fma(p, r, Vec<float>::fill(4.1665795894e-2f));
  p = fma(p, r, Vec<float>::fill(1.6666665459e-1f));
  p = fma(p, r, Vec<float>::fill(5.0000001201e-1f));
  p = fma(p, r * r, r) + Vec<float>::fill(1.f);
  return scale_by_power_of_two(p, n);
}

TORCH_EXT_INLINE Vec<double> exp(Vec<double> x) {
  // Taylor polynomial of degree 13: the remainder is below 5e-18 for |r| <= ln(2) / 2.
  x = min(Vec<double>::fill(710.), max(Vec<double>::fill(-746.), x));
  const Vec<double> n = round(x * Vec<double>::fill(1.4426950408889634074));
  Vec<double> r = fma(n, Vec<double>::fill(-6.93147180369123816490e-1), x);
  r = fma(n, Vec<double>::fill(-1.90821492927058770002e-10), r);
  Vec<double> p = Vec<double>::fill(1. / 6227020800);
  p = fma(p, r, Vec<double>::fill(1. / 479001600));
  p = fma(p, r, Vec<double>::fill(1. / 39916800));
  p = fma(p, r, Vec<double>::fill(1. / 3628800));
  p = fma(p, r, Vec<double>::fill(1. / 362880));
  p = fma(p, r, Vec<double>::fill(1. / 40320));
  p = fma(p, r, Vec<double>::fill(1. / 5040));
  p = fma(p, r, Vec<double>::fill(1. / 720));
  p = fma(p, r, Vec<double>::fill(1. / 120));
  p = fma(p, r, Vec<double>::fill(1. / 24));
  p = fma(p, r, Vec<double>::fill(1. / 6));
  p = fma(p, r, Vec<double>::fill(1. / 2));
  p = fma(p, r * r, r) + Vec<double>::fill(1.);
  return scale_by_power_of_two(p, n);
}

// tanh(x) - x where |x| < 0.625; with coefficients of Cephes' tanhf and tanh.
TORCH_EXT_INLINE Vec<float> tanh_tail(Vec<float> x) {
  const Vec<float> z = x * x;
  Vec<float> p = Vec<float>::fill(-5.70498872745e-3f);
  p = fma(p, z, Vec<float>::fill(2.06390887954e-2f));
  p = fma(p, z, Vec<float>::fill(-5.37397155531e-2f));
  p = fma(p, z, Vec<float>::fill(1.33314422036e-1f));
  p = fma(p, z, Vec<float>::fill(-3.33332819422e-1f));
  return p * z * x;
}
TORCH_EXT_INLINE Vec<double> tanh_tail(Vec<double> x) {
  const Vec<double> z = x * x;
  Vec<double> p = Vec<double>::fill(-9.64399179425052238628e-1);
  p = fma(p, z, Vec<double>::fill(-9.92877231001918586564e1));
  p = fma(p, z, Vec<double>::fill(-1.61468768441708447952e3));
  Vec<double> q = z + Vec<double>::fill(1.12811678491632931402e2);
  q = fma(q, z, Vec<double>::fill(2.23548839060100448583e3));
  q = fma(q, z, Vec<double>::fill(4.84406305325125486048e3));
  return p / q * z * x;
}

// Error at most 2 ulp. Large x gives 1: exp is infinite there.
template <class T>
TORCH_EXT_INLINE Vec<T> tanh(Vec<T> x) {
  using V = Vec<T>;
  const V size = abs(x), one = V::fill(1);
  const V large = one - V::fill(2) / (exp(size + size) + one);
  return if_less(size, V::fill(T(0.625)), x + tanh_tail(x),
                 if_less(x, V::fill(0), V::fill(0) - large, large));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
