// Rows whose tile products cannot be used, done over, one warp and one row at a time.
//
// A product of tiles multiplies the values of hidden keys by weights of 0, which inf and NaN
// survive. So where a tile hides some of its keys from some of its queries and its values are not
// all finite, the output is computed here, from visible keys only.
#pragma once

#include "cuda/hopper/rows.h"
#include "cuda/hopper/tiles.h"

namespace torch_ext::cuda::hopper {

template <class E>
TORCH_EXT_DEVICE const E* head_data(const Problem& p, const Operand& x, int64_t head,
                                    int64_t group) {
  return static_cast<const E*>(x.data) + head_offset(p, x, head, group);
}

// scale^-1 S(i, j), in every lane; lane l has columns l, l + 32 … of the query.
template <class E, int kColumns>
TORCH_EXT_DEVICE float exact_score(const float (&q)[kColumns], const E* key) {
  float s = 0;
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    s = std::fma(q[c], to_float(key[c * kWarpSize + lane()]), s);
  }
  TORCH_EXT_UNROLL
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) s += shuffle_xor(s, mask);
  return s;
}

// Output, logsumexp and residual of row i: m = max S, then O = Σ exp(scale (S - m)) V / Σ exp(…).
template <class E, int kHeadSize>
TORCH_EXT_DEVICE void store_exact_row(const ForwardParameters& p, int head, int i) {
  constexpr int kColumns = kHeadSize / kWarpSize;
  const ForwardProblem& problem = p.problem;
  const E* const key = head_data<E>(problem, problem.key, head, problem.group);
  const E* const value = head_data<E>(problem, problem.value, head, problem.group);
  const E* const query =
      head_data<E>(problem, problem.query, head, 1) + i * problem.query.row_stride;
  const KeyRange keys = p.visibility.to_any(i, i);

  float q[kColumns], o[kColumns];
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    q[c] = to_float(query[c * kWarpSize + lane()]);
    o[c] = 0;
  }
  float max = kNoScore, sum = 0;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    max = std::fmax(max, exact_score(q, key + j * problem.key.row_stride));
  }
  const float shift = max == kNoScore ? 0 : max * p.scale_log2;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const float s = exact_score(q, key + j * problem.key.row_stride);
    const float weight = exp2_fast(std::fma(s, p.scale_log2, -shift));
    sum += weight;
    const E* const v = value + j * problem.value.row_stride;
    TORCH_EXT_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      o[c] = std::fma(weight, to_float(v[c * kWarpSize + lane()]), o[c]);
    }
  }
  E* const output = static_cast<E*>(problem.output.data) +
                    head_offset(problem, problem.output, head) + i * problem.output.row_stride;
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    output[c * kWarpSize + lane()] = from_float<E>(sum == 0 ? 0 : o[c] / sum);
  }
  if (lane() == 0) store_logsumexp(p, head, i, max, sum);
}

// Whether some of 16-bit elements are inf or NaN: `bytes`, a multiple of 16 * kWarpgroup, read by
// a warpgroup; each thread says so of what it read. Both elements of a word at once: adding the
// lowest bit of the exponent to one that is all ones carries into the sign's place.
template <class E>
TORCH_EXT_DEVICE bool finds_non_finite(const unsigned char* shared, int bytes) {
  constexpr uint32_t kExponents = std::is_same_v<E, BFloat16> ? 0x7f807f80 : 0x7c007c00;
  constexpr uint32_t kLowest = std::is_same_v<E, BFloat16> ? 0x00800080 : 0x04000400;
  uint32_t carry = 0;
  for (int at = reread_thread_index() % kWarpgroup * 16; at < bytes; at += kWarpgroup * 16) {
    const Words words = *reinterpret_cast<const Words*>(shared + at);
    TORCH_EXT_UNROLL
    for (const uint32_t x : words.x) carry |= (x & kExponents) + kLowest;
  }
  return (carry & 0x80008000) != 0;
}

}  // namespace torch_ext::cuda::hopper
