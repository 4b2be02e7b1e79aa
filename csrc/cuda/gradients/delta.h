// delta = rowsum(do o) - dlse of every row.
//
// Task: one row of one head, by a warp.
#pragma once

#include "cuda/gradients/tile.h"
#include "cuda/tile/statistics.h"

namespace torch_ext::cuda {

template <class E>
struct DeltaKernel {
  using T = AccumulateOf<E>;
  using Parameters = GradientParameters;
  static constexpr const char* kName = "attention_backward, delta";
  static constexpr int kThreads = 128, kBlocksPerProcessor = 4;
  static constexpr int kWarps = kThreads / kWarpSize;

  static TORCH_EXT_INLINE int64_t tasks(const Parameters& x) {
    return x.problem.query_heads() * x.problem.query_length;
  }
  static TORCH_EXT_INLINE int64_t blocks(const Parameters& x) {
    return (tasks(x) + kWarps - 1) / kWarps;
  }

  static TORCH_EXT_DEVICE void run(const Parameters& x) {
    const SecondOrderProblem& p = x.problem;
    const int64_t step = block_count() * kWarps;
    for (int64_t task = block_index() * kWarps + warp_index(); task < tasks(x); task += step) {
      const int64_t head = task / p.query_length, row = task % p.query_length;
      T sum = p.grad_output ? row_product(p, head, row) : T(0);
      if (p.grad_logsumexp)
        sum -= row_value<T>(p.grad_logsumexp, head_offset(p, p.grad_logsumexp, head), row);
      if (lane_index() == 0) x.row_arrays<T>().of(head, RowArray::kDelta)[row] = sum;
    }
  }

 private:
  static TORCH_EXT_DEVICE T row_product(const SecondOrderProblem& p, int64_t head, int64_t row) {
    const Matrix<E> d_o = query_matrix<E>(p, p.grad_output, head, p.value_head_size);
    const Matrix<E> o = query_matrix<E>(p, p.output, head, p.value_head_size);
    T sum = 0;
    for (int64_t e = lane_index(); e < p.value_head_size; e += kWarpSize)
      sum += to_float(d_o.data[row * d_o.row_stride + e * d_o.col_stride]) *
             to_float(o.data[row * o.row_stride + e * o.col_stride]);
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    return sum;
  }
};

}  // namespace torch_ext::cuda
