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

// How many of them it does collect.
constexpr TORCH_EXT_INLINE int sums_of(Result result) {
  return result == Result::kCovariance ? 4 : result == Result::kMeans ? 2 : 1;
}

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
  // The result is a x + b x', with these numbers of x and x' (task.h); -1: there is no b.
  static constexpr bool kOfValues =
      kResult == Result::kValueGradient || kResult == Result::kOutputTangent;
  static constexpr int kFactor = kOfValues ? 1 : 0;
  static constexpr int kFactorDot =
      kSecond && kResult != Result::kValueGradient ? (kOfValues ? 3 : 2) : -1;
};

// How many of the row arrays are there to be read.
constexpr TORCH_EXT_INLINE int arrays_read(Result result, bool is_second) {
  return result == Result::kMeans ? 0 : result == Result::kCovariance ? 2 : is_second ? 4 : 1;
}

// Sets a and b, and adds to the sums of the entry's row.
template <bool kSecond, class T>
TORCH_EXT_DEVICE void use_terms(Result result, const Terms<T>& x, T& a, T& b, T (&sums)[kRowSums]) {
  switch (result) {
    case Result::kQueryGradient:
    case Result::kKeyGradient:
      a = x.ds0;
      b = x.ds0_dot;
      if (x.distance != 0) sums[0] += x.ds * x.distance;  // known to be 0 without slopes
      break;
    case Result::kValueGradient:
      a = kSecond ? x.kept * x.apart : x.kept;
      break;
    case Result::kOutputTangent:
      a = x.kept * x.apart;
      b = x.kept;
      break;
    case Result::kMeans:
      sums[0] += x.p * x.dp;
      sums[1] += x.p * x.s_dot;
      break;
    case Result::kCovariance:
      sums[0] += x.p * x.s_dot;
      sums[1] += x.p * x.dp_dot;
      sums[2] += x.p * x.s_dot * x.centred;
      sums[3] += x.p * x.centred;
      break;
    case Result::kBiasGradient:
      a = x.ds;
  }
}

}  // namespace torch_ext::cuda
