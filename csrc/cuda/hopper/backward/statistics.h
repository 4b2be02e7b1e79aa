// The statistics of every row of scores, and of some rows after the last one.
//
// Task: kStatisticsRows rows of one head; a thread has 8 columns of a row.
#pragma once

#include "cuda/hopper/backward/parameters.h"
#include "cuda/hopper/exact_row.h"
#include "cuda/hopper/rows.h"

namespace torch_ext::cuda::hopper {

struct StatisticsParameters {
  BackwardProblem problem;
  RowStatistics* statistics;  // (query heads, rows / 2)
  int64_t rows;
};

template <class E, int kHeadSize>
class StatisticsKernel {
 public:
  using Parameters = StatisticsParameters;
  static constexpr const char* kName = "hopper backward, delta";
  static constexpr int kThreads = 128, kBlocksPerProcessor = 4;

  static TORCH_EXT_INLINE int64_t tasks(const Parameters& p) {
    return p.problem.query_heads() * (p.rows / kStatisticsRows);
  }
  static TORCH_EXT_DEVICE void run(const Parameters& p) {
    for (int64_t task = block_index(); task < tasks(p); task += block_count()) {
      write_rows(p, task / (p.rows / kStatisticsRows),
                 task % (p.rows / kStatisticsRows) * kStatisticsRows);
    }
  }

 private:
  static constexpr int kLanes = kHeadSize / 8;  // of a row
  static constexpr int kRows = kThreads / kLanes;
  static_assert(kStatisticsRows % kRows == 0);

  static TORCH_EXT_DEVICE void write_rows(const Parameters& parameters, int64_t head,
                                          int64_t first_row) {
    const BackwardProblem& p = parameters.problem;
    const E* const d_o = head_data<E>(p, p.grad_output, head, 1);
    const E* const o = head_data<E>(p, p.output, head, 1);
    const int thread = thread_index() % kLanes;
    for (int64_t row = first_row + thread_index() / kLanes; row < first_row + kStatisticsRows;
         row += kRows) {
      const bool is_inside = row < p.query_length;
      float delta = is_inside ? partial_product(d_o + row * p.grad_output.row_stride + 8 * thread,
                                                o + row * p.output.row_stride + 8 * thread)
                              : 0;
      for (int mask = kLanes / 2; mask > 0; mask /= 2) delta += shuffle_xor(delta, mask);
      if (thread > 0) continue;
      float lse = -kNoScore;
      if (is_inside) {
        lse = base_2(number(p, p.logsumexp, head, row), number(p, p.logsumexp_residual, head, row));
        if (p.grad_logsumexp) delta -= number(p, p.grad_logsumexp, head, row);
      }
      RowStatistics& result = parameters.statistics[(head * parameters.rows + row) / 2];
      result.lse.of[row % 2] = lse;
      result.delta.of[row % 2] = delta;
    }
  }

  static TORCH_EXT_DEVICE float number(const BackwardProblem& p, const Operand& x, int64_t head,
                                       int64_t row) {
    return head_data<float>(p, x, head, 1)[row * x.row_stride];
  }

  static TORCH_EXT_DEVICE float base_2(float logsumexp, float residual) {
    if (logsumexp == kNoScore) return -kNoScore;
    const float lse = std::fma(residual, kLog2E, logsumexp * kLog2E);
    return std::fabs(lse) < kLargestScore ? lse : __builtin_nanf("");
  }

  // Σ do o over 8 columns.
  static TORCH_EXT_DEVICE float partial_product(const E* d_o, const E* o) {
    const Words x = *reinterpret_cast<const Words*>(d_o), y = *reinterpret_cast<const Words*>(o);
    float sum = 0;
    TORCH_EXT_UNROLL
    for (int i = 0; i < 4; ++i) {
      TORCH_EXT_UNROLL
      for (int shift = 0; shift <= 16; shift += 16) {
        sum = std::fma(to_float(E{static_cast<uint16_t>(x.x[i] >> shift)}),
                       to_float(E{static_cast<uint16_t>(y.x[i] >> shift)}), sum);
      }
    }
    return sum;
  }
};

}  // namespace torch_ext::cuda::hopper
