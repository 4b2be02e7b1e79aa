// exp and tanh of vectors, with their error bounds.
#pragma once

#include "cpu/kernels/primitives/vec.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

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
