// The softmax of the rows that a thread of a consuming warpgroup has, tile by tile.
//
// A thread shares two rows with the three other lanes of its quad: r = 0 is row lane / 4 of the
// warp's 16, r = 1 the one 8 below. Element 4 n + 2 r + c of an accumulator belongs to row r and
// column 8 n + 2 (lane % 4) + c.
#pragma once

#include <cmath>

#include "cuda/hopper/parameters.h"
#include "cuda/hopper/tiles.h"
#include "cuda/primitives/numbers.h"

namespace torch_ext::cuda::hopper {

struct alignas(16) Words {
  uint32_t x[4];
};

constexpr float kNoScore = -__builtin_huge_valf();

// m, the largest score so far, unscaled, and Σ exp(scale (S - m)), each lane's own keys only.
struct SoftmaxRows {
  float max[2] = {kNoScore, kNoScore};
  float sum[2] = {0, 0};
};

// The sum over, or the largest in, the four lanes of a quad.
TORCH_EXT_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
TORCH_EXT_DEVICE float quad_max(float x) {
  x = std::fmax(x, shuffle_xor(x, 1));
  return std::fmax(x, shuffle_xor(x, 2));
}

// S <- -inf where query `query` + 8 r does not see key first_key + column.
template <int kCount>
TORCH_EXT_DEVICE void hide_keys(float (&s)[kCount], const Visibility& visibility, int query,
                                int first_key) {
  const int column = first_key + lane() % 4 * 2;
  TORCH_EXT_UNROLL
  for (int r = 0; r < 2; ++r) {
    const KeyRange keys = visibility.to_any(query + 8 * r, query + 8 * r);
    const int begin = keys.begin - column, end = keys.end - column;
    TORCH_EXT_UNROLL
    for (int i = 2 * r; i < kCount; i += 4) {
      TORCH_EXT_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int at = i / 4 * 8 + c;
        s[i + c] = at >= begin && at < end ? s[i + c] : kNoScore;
      }
    }
  }
}

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

// P in 16 bits, as the left operand of P V: the accumulator of 16 columns is the operand's layout.
template <class E, int kCount>
TORCH_EXT_DEVICE void pack_weights(uint32_t (&weights)[kCount / 8][4], const float (&p)[kCount]) {
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; i += 2) weights[i / 8][i / 2 % 4] = pack<E>(p[i], p[i + 1]);
}

// Words x[k] of the lanes of a quad change places: lane t's become the x[t] of lanes k.
TORCH_EXT_DEVICE void transpose_quad(uint32_t (&x)[4]) {
  TORCH_EXT_UNROLL
  for (int mask = 1; mask <= 2; mask *= 2) {
    const bool is_upper = (lane() & mask) != 0;
    TORCH_EXT_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (i & mask) continue;
      uint32_t &low = x[i], &high = x[i | mask];
      const uint32_t received = shuffle_xor(is_upper ? low : high, mask);
      low = is_upper ? received : low;
      high = is_upper ? high : received;
    }
  }
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
