// The softmax of the rows that a thread has, tile by tile, and their logsumexp.
#pragma once

#include "cuda/hopper/exact_row.h"
#include "cuda/hopper/forward/parameters.h"
#include "cuda/hopper/rows.h"

namespace torch_ext::cuda::hopper {

// m, the largest score so far, unscaled, and Σ exp(scale (S - m)), each lane's own keys only.
struct SoftmaxRows {
  float max[2] = {kNoScore, kNoScore};
  float sum[2] = {0, 0};
};

// S <- P = 2^(c S - c m') with m' = max(m, max S) and c = scale / ln 2; sum <- sum alpha + Σ P, and
// alpha = 2^(c m - c m'), by which what was summed before shrinks. c m' is rounded, once and for
// all of the row, so that weights of different tiles stay comparable. A row that has seen nothing
// yet has m' = -inf and all P = 0.
template <int kCount>
TORCH_EXT_DEVICE void advance_softmax(SoftmaxRows& rows, float (&s)[kCount], float (&alpha)[2],
                                      float scale_log2) {
  TORCH_EXT_UNROLL
  for (int r = 0; r < 2; ++r) {
    float max = rows.max[r];
    TORCH_EXT_UNROLL
    for (int i = 2 * r; i < kCount; i += 4) max = std::fmax(max, std::fmax(s[i], s[i + 1]));
    max = quad_max(max);
    const float shift = max == kNoScore ? 0 : max * scale_log2;
    alpha[r] = exp2_fast(rows.max[r] * scale_log2 - shift);
    rows.max[r] = max;

    float sum = 0;
    TORCH_EXT_UNROLL
    for (int i = 2 * r; i < kCount; i += 4) {
      TORCH_EXT_UNROLL
      for (int c = 0; c < 2; ++c) {
        s[i + c] = exp2_fast(std::fma(s[i + c], scale_log2, -shift));
        sum += s[i + c];
      }
    }
    rows.sum[r] = std::fma(rows.sum[r], alpha[r], sum);
  }
}

// O <- alpha O
template <int kCount>
TORCH_EXT_DEVICE void rescale(float (&o)[kCount], const float (&alpha)[2]) {
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; ++i) o[i] *= alpha[i / 2 % 2];
}

// Where a head's logsumexp and residual go.
class LogsumexpWriter {
 public:
  TORCH_EXT_DEVICE LogsumexpWriter(const ForwardProblem& p, int head)
      : p_(p),
        logsumexp_(head_data<float>(p, p.logsumexp, head, 1)),
        residual_(head_data<float>(p, p.logsumexp_residual, head, 1)) {}

  // (high + low) + log(sum) of row i, and what rounding it lost.
  TORCH_EXT_DEVICE void write(int64_t i, float high, float low, float sum) const {
    const float log_sum = std::log(sum), rounded = high + log_sum;
    const float large = std::fabs(high) > std::fabs(log_sum) ? high : log_sum;
    const float small = std::fabs(high) > std::fabs(log_sum) ? log_sum : high;
    const float lost = ((large - rounded) + small) + low;
    logsumexp_[i * p_.logsumexp.row_stride] = rounded;
    residual_[i * p_.logsumexp_residual.row_stride] = std::isfinite(rounded) ? lost : 0;
  }

 private:
  const ForwardProblem& p_;
  float *const logsumexp_, *const residual_;
};

}  // namespace torch_ext::cuda::hopper
