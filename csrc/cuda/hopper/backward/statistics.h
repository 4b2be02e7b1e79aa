// The statistics of every row of scores, and of rows after the last one, to which nothing counts.
//
// Task: as many rows as a block has threads for, each thread 8 columns.
#pragma once

#include "cuda/hopper/backward/parameters.h"
#include "cuda/hopper/exact_row.h"
#include "cuda/hopper/rows.h"

namespace torch_ext::cuda::hopper {

struct StatisticsParameters {
  BackwardProblem problem;
  RowStatistics* statistics;  // (query heads, rows)
  int64_t rows;
};

template <class E, int kHeadSize>
struct StatisticsKernel {
  using Parameters = StatisticsParameters;
  static constexpr const char* kName = "hopper backward, delta";
  static constexpr int kThreads = 128, kBlocksPerProcessor = 4;
  static constexpr int kLanes = kHeadSize / 8;  // of a row
  static constexpr int kRows = kThreads / kLanes;
  static_assert(16 % kRows == 0);

  static TORCH_EXT_INLINE int64_t tasks(const Parameters& p) {
    return p.problem.query_heads() * p.rows / kRows;
  }
  static TORCH_EXT_DEVICE void run(const Parameters& p) {
    for (int64_t task = block_index(); task < tasks(p); task += block_count()) {
      const int64_t index = task * kRows + thread_index() / kLanes;
      const RowStatistics x = statistics_of(p.problem, index / p.rows, index % p.rows);
      if (thread_index() % kLanes == 0) p.statistics[index] = x;
    }
  }

 private:
  static TORCH_EXT_DEVICE RowStatistics statistics_of(const BackwardProblem& p, int64_t head,
                                                      int64_t row) {
    const bool is_inside = row < p.query_length;
    float delta = is_inside ? partial_product(p, head, row) : 0;
    for (int mask = kLanes / 2; mask > 0; mask /= 2) delta += shuffle_xor(delta, mask);
    if (!is_inside) return {-kNoScore, 0};
    const auto number = [&](const Operand& x) {
      return head_data<float>(p, x, head, 1)[row * x.row_stride];
    };
    if (p.grad_logsumexp) delta -= number(p.grad_logsumexp);
    const float lse = number(p.logsumexp);
    constexpr float kLog2E = 1.4426950408889634f;
    return {
        lse == kNoScore ? -kNoScore : std::fma(number(p.logsumexp_residual), kLog2E, lse * kLog2E),
        delta};
  }

  // Σ do o over this thread's columns.
  static TORCH_EXT_DEVICE float partial_product(const BackwardProblem& p, int64_t head,
                                                int64_t row) {
    const auto words = [&](const Operand& x) {
      return *reinterpret_cast<const Words*>(head_data<E>(p, x, head, 1) + row * x.row_stride +
                                             thread_index() % kLanes * 8);
    };
    const Words d_o = words(p.grad_output), o = words(p.output);
    float sum = 0;
    TORCH_EXT_UNROLL
    for (int i = 0; i < 4; ++i) {
      TORCH_EXT_UNROLL
      for (int shift = 0; shift <= 16; shift += 16) {
        sum = std::fma(to_float(E{static_cast<uint16_t>(d_o.x[i] >> shift)}),
                       to_float(E{static_cast<uint16_t>(o.x[i] >> shift)}), sum);
      }
    }
    return sum;
  }
};

}  // namespace torch_ext::cuda::hopper
