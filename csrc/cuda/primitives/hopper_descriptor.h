// How Hopper's matrix instructions and its copy engine lay out 16-bit matrices in shared memory.
//
// A matrix consists of blocks of 64 columns, each row of which is 128 bytes long, with the rows one
// after another. In every 1024-byte piece (8 rows) the 16-byte chunk c of row r lies at chunk
// c ^ r: the 128-byte swizzle, which is a function of the address alone. Blocks begin at multiples
// of 1024 bytes.
#pragma once

#include "cuda/primitives/thread.h"

namespace torch_ext::cuda {

constexpr int kBlockColumns = 64;
constexpr int kBlockRowBytes = 128;
constexpr int kSwizzleBytes = 1024;

// What a matrix instruction is told of an operand in shared memory. The sum runs along rows of a
// row-major operand (a "K-major" one: the scores' Q and K) or along columns of a transposed one
// (V in P V).
//   bits 0-13:  address / 16              bits 32-45: bytes from 8 rows to the next 8 / 16
//   bits 16-29: bytes from 64 columns to the next 64 / 16, of a transposed operand
//   bits 62-63: 1, the 128-byte swizzle
struct MatrixDescriptor {
  uint64_t bits;

  // The same operand `bytes`, a multiple of 16, further on.
  TORCH_EXT_DEVICE MatrixDescriptor operator+(int bytes) const {
    return {bits + static_cast<uint64_t>(bytes / 16)};
  }
};

// `address` in shared memory; `block_bytes` as above.
TORCH_EXT_DEVICE MatrixDescriptor describe_matrix(uint32_t address, int block_bytes) {
  return {static_cast<uint64_t>(address / 16) | static_cast<uint64_t>(block_bytes / 16) << 16 |
          static_cast<uint64_t>(kSwizzleBytes / 16) << 32 | uint64_t{1} << 62};
}

}  // namespace torch_ext::cuda
