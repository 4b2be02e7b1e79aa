// What the Hopper forward's kernels are given.
#pragma once

#include "attention/problem.h"
#include "cuda/hopper/operand.h"
#include "cuda/hopper/schedule.h"
#include "cuda/primitives/hopper_copy.h"

namespace torch_ext::cuda::hopper {

struct OperandView {
  TensorMap map;
  HeadCoordinates heads;
};

struct ForwardParameters {
  OperandView query, key, value;
  ForwardProblem problem;
  Visibility visibility;
  Schedule schedule;
  float scale;
  float scale_log2;  // scale / ln 2: weights are powers of two
};

// Starts copying `blocks` blocks of 64 columns of the rows from `row` on, `block_bytes` apart.
TORCH_EXT_DEVICE void copy_rows(unsigned char* shared, const OperandView& operand, int head,
                                int row, int blocks, int block_bytes, SharedBarrier& barrier) {
  int at[kTensorDims] = {0, row};
  TORCH_EXT_UNROLL
  for (int c = 0; c < kHeadDims; ++c) {
    at[2 + c] = head / operand.heads.divisor[c] % operand.heads.size[c];
  }
  arrive_and_expect(barrier, blocks * block_bytes);
  for (int b = 0; b < blocks; ++b) {
    at[0] = b * kBlockColumns;
    copy_tile(shared + b * block_bytes, operand.map, at, barrier);
  }
}

}  // namespace torch_ext::cuda::hopper
