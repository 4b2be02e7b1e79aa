// Merges the splits of the keys:  m = max m_s,  l = sum l_s exp(m_s - m),  o = sum o_s exp(m_s - m)
// / l
//
// Task: one row of one head, by a warp; splits are added in their order.
#pragma once

#include "cuda/forward/plan.h"
#include "cuda/tile/fragment.h"
#include "cuda/tile/statistics.h"

namespace torch_ext::cuda {

template <class E>
struct MergeKernel {
  using T = AccumulateOf<E>;
  using Parameters = ForwardParameters;
  static constexpr const char* kName = "attention_forward, merging splits";
  static constexpr int kThreads = 128, kBlocksPerProcessor = 4;
  static constexpr int kWarps = kThreads / kWarpSize;

  static TORCH_EXT_INLINE int64_t tasks(const Parameters& x) {
    return x.problem.query_heads() * x.problem.query_length;
  }
  static TORCH_EXT_INLINE int64_t blocks(const Parameters& x) {
    return (tasks(x) + kWarps - 1) / kWarps;
  }

  static TORCH_EXT_DEVICE void run(const Parameters& x) {
    const int64_t step = block_count() * kWarps;
    for (int64_t row = block_index() * kWarps + warp_index(); row < tasks(x); row += step)
      merge_row(x, row / x.problem.query_length, row % x.problem.query_length);
  }

 private:
  static TORCH_EXT_DEVICE void merge_row(const Parameters& x, int64_t head, int64_t row) {
    const ForwardProblem& p = x.problem;
    T max = -kInfinity<T>;
    for (int64_t split = 0; split < x.splits; ++split)
      max = larger_of(max, SplitResults<T>(x, head, split).max[row]);
    const T shift = max == -kInfinity<T> ? T(0) : max;
    T sum = 0;
    for (int64_t split = 0; split < x.splits; ++split) {
      const SplitResults<T> part(x, head, split);
      sum += part.sum[row] * exponential<E>(part.max[row] - shift);
    }
    if (lane_index() == 0) store_logsumexp(p, head, row, max, sum);

    E* out =
        static_cast<E*>(p.output.data) + head_offset(p, p.output, head) + row * p.output.row_stride;
    for (int64_t column = lane_index(); column < p.value_head_size; column += kWarpSize) {
      T o = 0;
      for (int64_t split = 0; split < x.splits; ++split) {
        const SplitResults<T> part(x, head, split);
        o += part.output[row * p.value_head_size + column] * exponential<E>(part.max[row] - shift);
      }
      out[column * p.output.col_stride] = from_float<E>(sum == 0 ? T(0) : o / sum);
    }
  }
};

}  // namespace torch_ext::cuda
