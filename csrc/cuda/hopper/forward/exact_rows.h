// A row of the forward by one warp, from visible keys only (exact_row.h).
#pragma once

#include "cuda/hopper/exact_row.h"
#include "cuda/hopper/forward/softmax.h"

namespace torch_ext::cuda::hopper {

// Output, logsumexp and residual of row i: m = max S, then O = Σ exp(scale (S - m)) V / Σ exp(…).
template <class E, int kHeadSize>
TORCH_EXT_DEVICE void store_exact_row(const ForwardParameters& p, int head, int i) {
  constexpr int kColumns = kHeadSize / kWarpSize;
  const ForwardProblem& problem = p.problem;
  const E* const keys = head_data<E>(problem, problem.key, head, problem.group);
  const E* const values = head_data<E>(problem, problem.value, head, problem.group);
  const Range seen = p.visibility.to_any(i, i);

  float q[kColumns], x[kColumns], o[kColumns] = {};
  read_row(q, head_data<E>(problem, problem.query, head, 1) + i * problem.query.row_stride);
  const auto score = [&](int64_t j) {
    read_row(x, keys + j * problem.key.row_stride);
    return row_product(q, x);
  };
  float max = kNoScore, sum = 0;
  for (int64_t j = seen.begin; j < seen.end; ++j) max = std::fmax(max, score(j));
  const float shift = max == kNoScore ? 0 : max;
  for (int64_t j = seen.begin; j < seen.end && !std::isnan(sum); ++j) {
    const float weight = exp2_fast((score(j) - shift) * p.scale_log2);
    sum += weight;
    read_row(x, values + j * problem.value.row_stride);
    add_row(o, weight, x);
  }
  // Weights of 0 may have met inf or NaN.
  TORCH_EXT_UNROLL
  for (int c = 0; c < kColumns; ++c) o[c] = sum == 0 ? 0 : o[c];
  write_row(head_data<E>(problem, problem.output, head, 1) + i * problem.output.row_stride, o,
            sum == 0 ? 0 : 1 / sum);
  const float high = max * p.scale, low = std::fma(max, p.scale, -high);
  if (lane() == 0) LogsumexpWriter(problem, head).write(i, high, low, sum);
}

}  // namespace torch_ext::cuda::hopper
