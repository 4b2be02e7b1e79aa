// What is computed over the tiles of scores: one kind of kernel for each result.
#pragma once

#include "cuda/gradients/terms.h"

namespace torch_ext::cuda {

enum class Result {
  kQueryGradient,
  kKeyGradient,
  kValueGradient,
  kOutputTangent,
  kMeans,       // delta and center of every row
  kCovariance,  // mu and epsilon of every row
  kBiasGradient
};

constexpr int kRowSums = 4;  // sums over a row that a kind may collect

// kSecond: of the second order, or of the tangent.
template <Result kResult_, bool kSecond_>
struct Kind {
  static constexpr Result kResult = kResult_;
  static constexpr bool kSecond = kSecond_;
  // A task owns a tile of keys; otherwise one of queries.
  static constexpr bool kOwnsKeys =
      kResult == Result::kKeyGradient || kResult == Result::kValueGradient;
  static constexpr bool kHasMatrix =
      kOwnsKeys || kResult == Result::kQueryGradient || kResult == Result::kOutputTangent;
  static constexpr bool kNeedsDp =
      kResult != Result::kValueGradient && kResult != Result::kOutputTangent;
  static constexpr bool kNeedsDpDot = kSecond && kNeedsDp && kResult != Result::kMeans;
  // How many of the row arrays are there to be read.
  static constexpr int kArrays = kResult == Result::kMeans        ? 0
                                 : kResult == Result::kCovariance ? 2
                                 : kSecond                        ? 4
                                                                  : 1;
  // The result is a x + b x', with these numbers of x and x' (task.h); -1: there is no b.
  static constexpr bool kOfValues =
      kResult == Result::kValueGradient || kResult == Result::kOutputTangent;
  static constexpr int kFactor = kOfValues ? 1 : 0;
  static constexpr int kFactorDot =
      kSecond && kResult != Result::kValueGradient ? (kOfValues ? 3 : 2) : -1;

  // Sets a and b, and adds to the sums of the entry's row.
  template <class T>
  static TORCH_EXT_DEVICE void use(const Terms<T>& x, T& a, T& b, T (&sums)[kRowSums]) {
    if constexpr (kResult == Result::kQueryGradient || kResult == Result::kKeyGradient) {
      a = x.ds0;
      b = x.ds0_dot;
      sums[0] += x.ds * x.distance;
    } else if constexpr (kResult == Result::kValueGradient) {
      a = kSecond ? x.kept * x.apart : x.kept;
    } else if constexpr (kResult == Result::kOutputTangent) {
      a = x.kept * x.apart;
      b = x.kept;
    } else if constexpr (kResult == Result::kMeans) {
      sums[0] += x.p * x.dp;
      sums[1] += x.p * x.s_dot;
    } else if constexpr (kResult == Result::kCovariance) {
      sums[0] += x.p * x.s_dot;
      sums[1] += x.p * x.dp_dot;
      sums[2] += x.p * x.s_dot * x.centred;
      sums[3] += x.p * x.centred;
    } else {
      a = x.ds;
    }
  }
};

}  // namespace torch_ext::cuda
