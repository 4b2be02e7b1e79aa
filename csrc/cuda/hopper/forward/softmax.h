// The softmax of the rows that a thread has, tile by tile, and their logsumexp.
#pragma once

#include "cuda/hopper/forward/parameters.h"
#include "cuda/hopper/rows.h"

namespace torch_ext::cuda::hopper {

// m, the largest score so far, unscaled, and Σ exp(scale (S - m)), each lane's own keys only.
struct SoftmaxRows {
  float max[2] = {kNoScore, kNoScore};
  float sum[2] = {0, 0};
};

// S <- P = exp(scale (S - m')) with m' = max(m, max S); sum <- sum alpha + Σ P, and alpha =
// exp(scale (m - m')), by which what was summed before shrinks. A row that has seen nothing yet has
// m' = -inf and all P = 0.
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
    alpha[r] = exp2_fast(std::fma(rows.max[r], scale_log2, -shift));
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

// logsumexp = scale m + log(sum), and what rounding it lost.
TORCH_EXT_DEVICE void store_logsumexp(const ForwardParameters& p, int head, int64_t i, float max,
                                      float sum) {
  const ForwardProblem& problem = p.problem;
  const float score = max * p.scale, log_sum = std::log(sum);
  const float rounded = score + log_sum;
  const float large = std::fabs(score) > std::fabs(log_sum) ? score : log_sum;
  const float small = std::fabs(score) > std::fabs(log_sum) ? log_sum : score;
  const float lost = ((large - rounded) + small) + std::fma(max, p.scale, -score);
  const auto store = [&](const Operand& x, float value) {
    float* const data = static_cast<float*>(x.data);
    data[head_offset(problem, x, head) + i * x.row_stride] = value;
  };
  store(problem.logsumexp, rounded);
  store(problem.logsumexp_residual, std::isfinite(rounded) ? lost : 0);
}

}  // namespace torch_ext::cuda::hopper
