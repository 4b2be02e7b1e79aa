// The intrinsics of arithmetic: one vector of float or double at the width of this
// ISA level.
//
// torch's own Vectorized<T> was not used because it has no exponential without Sleef, which the
// torch wheels do not export, and no way to fill a whole register array that GCC keeps in
// registers.
#pragma once

#include <immintrin.h>

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

// A number to which |x| < 2^21 is added to round it: the nearest integer is then in the last bits
// of the sum.
template <class T>
constexpr T kShifter = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);

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
// 2^n, where n is the integer in the last bits of `shifted` (see kShifter); 0 for the exponent
// of subnormal numbers, -127 or -1023.
TORCH_EXT_INLINE Vec<float> power_of_two(Vec<float> shifted) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)))};
}
TORCH_EXT_INLINE Vec<double> power_of_two(Vec<double> shifted) {
  const __m512i exponent = _mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52);
  return {_mm512_castsi512_pd(_mm512_add_epi64(exponent, _mm512_set1_epi64(INT64_C(1023) << 52)))};
}

// Pair by pair, the lower half with the upper half. The largest of lanes that are not NaN.
TORCH_EXT_INLINE float sum_lanes(Vec<float> a) { return _mm512_reduce_add_ps(a.v); }
TORCH_EXT_INLINE double sum_lanes(Vec<double> a) { return _mm512_reduce_add_pd(a.v); }
TORCH_EXT_INLINE float max_lanes(Vec<float> a) { return _mm512_reduce_max_ps(a.v); }
TORCH_EXT_INLINE double max_lanes(Vec<double> a) { return _mm512_reduce_max_pd(a.v); }

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
// 2^n, where n is the integer in the last bits of `shifted` (see kShifter); 0 for the exponent
// of subnormal numbers, -127 or -1023.
TORCH_EXT_INLINE Vec<float> power_of_two(Vec<float> shifted) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)))};
}
TORCH_EXT_INLINE Vec<double> power_of_two(Vec<double> shifted) {
  const __m256i exponent = _mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52);
  return {_mm256_castsi256_pd(_mm256_add_epi64(exponent, _mm256_set1_epi64x(INT64_C(1023) << 52)))};
}

// Lanes joined pair by pair, the lower half with the upper half.
template <class Join>
TORCH_EXT_INLINE float join_lanes(Vec<float> a, const Join& join) {
  const __m128 x = join(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 y = join(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(join(y, _mm_movehdup_ps(y)));
}
template <class Join>
TORCH_EXT_INLINE double join_lanes(Vec<double> a, const Join& join) {
  const __m128d x = join(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(join(x, _mm_unpackhi_pd(x, x)));
}
template <class T>
TORCH_EXT_INLINE T sum_lanes(Vec<T> a) {
  return join_lanes(a, [](auto x, auto y) { return x + y; });
}
// The largest of lanes that are not NaN.
TORCH_EXT_INLINE float max_lanes(Vec<float> a) {
  return join_lanes(a, [](__m128 x, __m128 y) { return _mm_max_ps(x, y); });
}
TORCH_EXT_INLINE double max_lanes(Vec<double> a) {
  return join_lanes(a, [](__m128d x, __m128d y) { return _mm_max_pd(x, y); });
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

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
