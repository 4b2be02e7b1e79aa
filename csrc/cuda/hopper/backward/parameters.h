// What the kernels of the Hopper backward are given.
#pragma once

#include "attention/problem.h"
#include "cuda/hopper/backward/row_statistics.h"
#include "cuda/hopper/operand_view.h"
#include "cuda/hopper/schedule.h"

namespace torch_ext::cuda::hopper {

// One side of the scores. S is the product of both sides' x, dP that of their y.
struct Side {
  const Operand *x, *y, *dx, *dy;
  int64_t heads, length, group;
};
TORCH_EXT_INLINE Side query_side(const BackwardProblem& p) {
  return {&p.query, &p.grad_output, &p.grad_query, nullptr, p.query_heads(), p.query_length, 1};
}
TORCH_EXT_INLINE Side key_side(const BackwardProblem& p) {
  return {&p.key, &p.value, &p.grad_key, &p.grad_value, p.key_heads(), p.key_length, p.group};
}

struct BackwardParameters {
  OperandView own_x, own_y, other_x, other_y;
  BackwardProblem problem;
  Visibility visibility;            // what the own side sees
  Schedule schedule;                // of the own side's heads
  const RowStatistics* statistics;  // (query heads, statistics_rows / 2)
  int64_t statistics_rows;
  float scale;
  float scale_log2;  // scale / ln 2

  TORCH_EXT_DEVICE const RowStatistics* statistics_of(int64_t head) const {
    return statistics + head * (statistics_rows / 2);
  }
};

}  // namespace torch_ext::cuda::hopper
