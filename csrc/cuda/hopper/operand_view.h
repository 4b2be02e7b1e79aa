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

// One head of an operand.
struct HeadView {
  const TensorMap& map;
  int at[kHeadDims];
};
TORCH_EXT_DEVICE HeadView view_head(const OperandView& operand, int head) {
  HeadView result{operand.map, {}};
  TORCH_EXT_UNROLL
  for (int c = 0; c < kHeadDims; ++c) {
    result.at[c] = head / operand.heads.divisor[c] % operand.heads.size[c];
  }
  return result;
}

// Starts copying `blocks` blocks of 64 columns of the rows from `row` on, `block_bytes` apart.
TORCH_EXT_DEVICE void copy_rows(unsigned char* shared, const HeadView& head, int row, int blocks,
                                int block_bytes, SharedBarrier& barrier) {
  int at[kTensorDims] = {0, row, head.at[0], head.at[1], head.at[2]};
  arrive_and_expect(barrier, blocks * block_bytes);
  for (int b = 0; b < blocks; ++b) {
    at[0] = b * kBlockColumns;
    copy_tile(shared + b * block_bytes, head.map, at, barrier);
  }
}

}  // namespace torch_ext::cuda::hopper
