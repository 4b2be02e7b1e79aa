// What the second order needs of whole rows, and how a sweep over tiles collects it.
#pragma once

#include "cpu/kernels/tile/tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Of each row of all heads: (B * H, 4, N) numbers. The mean of s' is center + mu: in two parts,
// since its rounding error would be that of every s' - mean.
template <class T>
struct RowStatistics {
  T* start = nullptr;
  int64_t rows = 0;  // N

  static constexpr int64_t kNumbers = 4;
  TORCH_EXT_INLINE T* delta(int64_t head) const { return start + head * kNumbers * rows; }
  TORCH_EXT_INLINE T* center(int64_t head) const { return delta(head) + rows; }
  TORCH_EXT_INLINE T* mu(int64_t head) const { return delta(head) + 2 * rows; }
  TORCH_EXT_INLINE T* epsilon(int64_t head) const { return delta(head) + 3 * rows; }
};

// Moments of the keys of a row, or of many rows side by side in a vector: sums of p, p (s' -
// center), p dp and p dp', and sum(p (s' - mean s') (dp - mean dp)). Differences of raw sums would
// cancel where few keys hold all the weight, or s' is large throughout.
template <class T>
struct RowMoments {
  Vec<T> weight, center, s_dot, dp, dp_dot, covariance;

  static TORCH_EXT_INLINE RowMoments zero() {
    const Vec<T> z = Vec<T>::fill(0);
    return {z, z, z, z, z, z};
  }

  // x / weight, or x where there is no weight.
  TORCH_EXT_INLINE Vec<T> mean(Vec<T> x) const { return x / or_one(weight); }

  // Both sets of keys together (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample
  // variance"):  C = C_a + C_b + W_a W_b / (W_a + W_b) (difference of means of s') (… of dp)
  TORCH_EXT_INLINE void add(const RowMoments& b) {
    const Vec<T> total = or_one(weight + b.weight);
    const Vec<T> s_apart = (b.center - center) + (b.mean(b.s_dot) - mean(s_dot));
    const Vec<T> dp_apart = b.mean(b.dp) - mean(dp);
    covariance = covariance + fma(weight * b.weight / total, s_apart * dp_apart, b.covariance);
    const Vec<T> middle = fma(weight, center, b.weight * b.center) / total;
    s_dot = fma(weight, center - middle, s_dot) + fma(b.weight, b.center - middle, b.s_dot);
    center = middle;
    weight = weight + b.weight;
    dp = dp + b.dp;
    dp_dot = dp_dot + b.dp_dot;
  }

  // Every sum divided by that of the weights, which becomes 1 where there are none.
  TORCH_EXT_INLINE void take_means() {
    weight = or_one(weight);
    s_dot = s_dot / weight;
    dp = dp / weight;
    dp_dot = dp_dot / weight;
    covariance = covariance / weight;
  }

 private:
  static TORCH_EXT_INLINE Vec<T> or_one(Vec<T> x) {
    return if_equal(x, Vec<T>::fill(0), Vec<T>::fill(1), x);
  }
};

// The moments of a tile's rows, one array of `width` each.
template <class T>
struct MomentRows {
  T *weight, *center, *s_dot, *dp, *dp_dot, *covariance;

  TORCH_EXT_INLINE MomentRows() = default;
  TORCH_EXT_INLINE MomentRows(Scratch& scratch, int64_t width)
      : weight(scratch.take<T>(width)),
        center(scratch.take<T>(width)),
        s_dot(scratch.take<T>(width)),
        dp(scratch.take<T>(width)),
        dp_dot(scratch.take<T>(width)),
        covariance(scratch.take<T>(width)) {}

  TORCH_EXT_INLINE RowMoments<T> load(int64_t i) const {
    using V = Vec<T>;
    return {V::load(weight + i), V::load(center + i), V::load(s_dot + i),
            V::load(dp + i),     V::load(dp_dot + i), V::load(covariance + i)};
  }
  TORCH_EXT_INLINE void store(int64_t i, const RowMoments<T>& x) const {
    x.weight.store(weight + i);
    x.center.store(center + i);
    x.s_dot.store(s_dot + i);
    x.dp.store(dp + i);
    x.dp_dot.store(dp_dot + i);
    x.covariance.store(covariance + i);
  }
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
