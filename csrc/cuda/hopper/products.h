// Products of tiles in shared memory, each a group that a warpgroup starts and later waits for.
//
// A tile has rows of kHeadSize elements, in blocks of 64 columns that are `block_bytes` apart
// (hopper_descriptor.h).
#pragma once

#include "cuda/primitives/hopper_matrix.h"

namespace torch_ext::cuda::hopper {

struct TileInShared {
  const unsigned char* data;
  int block_bytes;
};

// C = A Bᵀ: 64 rows of A, all rows of B.
template <class E, int kHeadSize, int kCount>
TORCH_EXT_DEVICE void start_row_product(float (&c)[kCount], TileInShared a, TileInShared b) {
  const MatrixDescriptor left = describe_matrix(shared_address(a.data), 0);
  const MatrixDescriptor right = describe_matrix(shared_address(b.data), 0);
  begin_products();
  TORCH_EXT_UNROLL
  for (int d = 0; d < kHeadSize; d += 16) {
    const int block = d / kBlockColumns, within = d % kBlockColumns * 2;
    multiply_add<E>(c, left + (block * a.block_bytes + within),
                    right + (block * b.block_bytes + within), d > 0);
  }
  commit_products();
}

// C += W B, with W (64 x 16 kSteps) in registers.
template <class E, int kSteps, int kCount>
TORCH_EXT_DEVICE void start_column_product(float (&c)[kCount], const uint32_t (&w)[kSteps][4],
                                           TileInShared b) {
  const MatrixDescriptor right = describe_matrix(shared_address(b.data), b.block_bytes);
  begin_products();
  TORCH_EXT_UNROLL
  for (int j = 0; j < kSteps; ++j) {
    multiply_add<E>(c, w[j], right + j * 16 * kBlockRowBytes, true);
  }
  commit_products();
}

}  // namespace torch_ext::cuda::hopper
