// The intrinsics of arithmetic: one vector of float or double at the width of this
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

// `stream` stores past the caches, to an aligned address; finish_streams() orders it before what
// other threads see next.
template <class T>
struct Vec;

TORCH_EXT_INLINE void finish_streams() { _mm_sfence(); }

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
  TORCH_EXT_INLINE void stream(float* p) const { _mm512_stream_ps(p, v); }
};

template <>
struct Vec<double> {
  static constexpr int kSize = 8;
  __m512d v;
  static TORCH_EXT_INLINE Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static TORCH_EXT_INLINE Vec fill(double x) { return {_mm512_set1_pd(x)}; }
  static TORCH_EXT_INLINE Vec iota() { return {_mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7)}; }
  TORCH_EXT_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  TORCH_EXT_INLINE void stream(double* p) const { _mm512_stream_pd(p, v); }
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
// 2^n, where n is the integer in the last bits of `shifted` (see kShifter); 0 for the exponent of
// subnormal numbers, -127 or -1023.
TORCH_EXT_INLINE Vec<float> power_of_two(Vec<float> shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)))};
}
TORCH_EXT_INLINE Vec<double> power_of_two(Vec<double> shifted) {
  const __m512i exponent = _mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52);
  return {_mm512_castsi512_pd(_mm512_add_epi64(exponent, _mm512_set1_epi64(INT64_C(1023) << 52)))};
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
  TORCH_EXT_INLINE void stream(float* p) const { _mm256_stream_ps(p, v); }
};

template <>
struct Vec<double> {
  static constexpr int kSize = 4;
  __m256d v;
  static TORCH_EXT_INLINE Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static TORCH_EXT_INLINE Vec fill(double x) { return {_mm256_set1_pd(x)}; }
  static TORCH_EXT_INLINE Vec iota() { return {_mm256_setr_pd(0, 1, 2, 3)}; }
  TORCH_EXT_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  TORCH_EXT_INLINE void stream(double* p) const { _mm256_stream_pd(p, v); }
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
// 2^n, where n is the integer in the last bits of `shifted` (see kShifter); 0 for the exponent of
// subnormal numbers, -127 or -1023.
TORCH_EXT_INLINE Vec<float> power_of_two(Vec<float> shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)))};
}
TORCH_EXT_INLINE Vec<double> power_of_two(Vec<double> shifted) {
  const __m256i exponent = _mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52);
  return {_mm256_castsi256_pd(_mm256_add_epi64(exponent, _mm256_set1_epi64x(INT64_C(1023) << 52)))};
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

// Always in the same order.
template <class T>
TORCH_EXT_INLINE T sum_lanes(Vec<T> a) {
  T lanes[Vec<T>::kSize];
  a.store(lanes);
  T sum = 0;
  for (int i = 0; i < Vec<T>::kSize; ++i) sum += lanes[i];
  return sum;
}

// A number to which |x| < 2^21 is added to round it: the nearest integer is then in the last bits
// of the sum.
template <class T>
constexpr T kShifter = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  // ln 2 in two parts: n ln2_high is exact.
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kSmallest = -88;       // rounds to 2^-127
  static constexpr float kLargest = 88.72283f;  // exp of more is beyond the largest number
  // exp(r) = 1 + r + c_2 r^2 + ..., c_n first: minimax for the relative error, 3.1e-9.
  static constexpr float kCoefficients[] = {1.3814598646664034e-3f, 8.3687168797281399e-3f,
                                            4.1668388045313997e-2f, 1.6666520631709497e-1f,
                                            4.9999993447796487e-1f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLn2High = 6.93147180369123816490e-1,
                          kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kSmallest = -709, kLargest = 709.782712893384;
  // The same to degree 11: 3.7e-18.
  static constexpr double kCoefficients[] = {2.5000061602835666699e-8, 2.7630248379211443975e-7,
                                             2.7557586373840163694e-6, 2.4801493098906550659e-5,
                                             1.9841269506578687653e-4, 1.3888888943630112946e-3,
                                             8.3333333334944616641e-3, 4.1666666666530159858e-2,
                                             1.6666666666666412523e-1, 5.0000000000000106271e-1};
};

// exp(x) = 2^n p, n = round(x / ln 2) in the last bits of `shifted`, p = exp(r), |r| <= ln(2) / 2
// (Cody and Waite). Several vectors step by step: the steps of one wait for each other, those of
// the others do not.
template <class T, int kCount>
TORCH_EXT_INLINE void exp_parts(const Vec<T> (&x)[kCount], Vec<T> (&shifted)[kCount],
                                Vec<T> (&p)[kCount]) {
  using V = Vec<T>;
  using C = ExpConstants<T>;
  V r[kCount];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const V bounded = max(V::fill(C::kSmallest), x[i]);
    shifted[i] = fma(bounded, V::fill(T(1.4426950408889634074)), V::fill(kShifter<T>));
    const V n = shifted[i] - V::fill(kShifter<T>);
    r[i] = fma(n, V::fill(-C::kLn2Low), fma(n, V::fill(-C::kLn2High), bounded));
    p[i] = V::fill(C::kCoefficients[0]);
  }
  const auto horner = [&](T coefficient) __attribute__((always_inline)) {
    TORCH_EXT_UNROLL
    for (int i = 0; i < kCount; ++i) p[i] = fma(p[i], r[i], V::fill(coefficient));
  };
  TORCH_EXT_UNROLL
  for (int k = 1; k < int(sizeof(C::kCoefficients) / sizeof(T)); ++k) horner(C::kCoefficients[k]);
  horner(1);
  horner(1);
}

// exp(x) for x <= 88 or, for double, 709. Error at most 1 ulp wherever the result is a normal
// number; less may be 0. NaN gives NaN.
template <class T, int kCount>
TORCH_EXT_INLINE void exp_without_overflow(Vec<T> (&x)[kCount]) {
  Vec<T> shifted[kCount], p[kCount];
  exp_parts(x, shifted, p);
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; ++i) x[i] = p[i] * power_of_two(shifted[i]);
}
template <class T>
TORCH_EXT_INLINE Vec<T> exp_without_overflow(Vec<T> x) {
  Vec<T> one[1] = {x};
  exp_without_overflow(one);
  return one[0];
}

// The same for any x; more than the largest number is that.
template <class T>
TORCH_EXT_INLINE Vec<T> exp(Vec<T> x) {
  using V = Vec<T>;
  const V bounded[1] = {min(V::fill(ExpConstants<T>::kLargest), x)};
  V shifted[1], p[1];
  exp_parts(bounded, shifted, p);
  // 2^128, which is no number, as twice 2^127; for double likewise.
  const V last = V::fill(kShifter<T> + std::numeric_limits<T>::max_exponent - 1);
  return if_less(last, shifted[0], p[0] + p[0], p[0]) * power_of_two(min(last, shifted[0]));
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

// Error at most 2 ulp. Large x gives 1: 2 / exp(2 x) is below half an ulp.
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
