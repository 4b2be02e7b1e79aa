// Operands as kernels are given them, and how their rows are copied.
#pragma once

#include "cuda/hopper/operand.h"
#include "cuda/primitives/hopper_copy.h"

namespace torch_ext::cuda::hopper {

struct OperandView {
  TensorMap map;
  HeadCoordinates heads;
};

// `rows` per tile.
template <class E>
OperandView view_operand(const Problem& p, const Operand& x, int64_t length, int64_t group,
                         int rows) {
  const OperandLayout layout = describe_operand(p, x, length, p.head_size, group).value();
  return {make_tensor_map<E>(layout.tensor, rows), layout.heads};
}

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
