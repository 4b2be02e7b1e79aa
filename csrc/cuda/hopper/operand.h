// Query, key and value as the copy engine sees them: (head size, length, up to three dimensions of
// heads), each with the operand's own stride, so that nothing is copied beforehand.
#pragma once

#include <optional>

#include "attention/problem.h"
#include "cuda/primitives/hopper_tensor.h"

namespace torch_ext::cuda::hopper {

// Of queries and of keys: positions and their sums stay within 32 bits.
constexpr int64_t kMaxLength = (int64_t{1} << 30) - 1024;
// Of tasks, each with a tile of this many rows or more: so that their numbers have 32 bits, in
// which divisions are fast.
constexpr int64_t kMaxTasks = (int64_t{1} << 31) - 1, kSmallestTile = 64;

constexpr int kHeadDims = kTensorDims - 2;
constexpr int64_t kAlignment = 16;  // bytes, of rows and of what lies between heads
constexpr int64_t kAlignedElements = kAlignment / 2;

// Where query head h lies: at coordinate h / divisor[c] % size[c] of head dimension c.
struct HeadCoordinates {
  int divisor[kHeadDims] = {1, 1, 1};
  int size[kHeadDims] = {1, 1, 1};
};

struct OperandLayout {
  TensorLayout tensor;
  HeadCoordinates heads;
};

inline bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % kAlignment == 0;
}

// `length` rows of `columns` elements per head; `group` query heads share one (1: each has its
// own). Dimensions without a stride vanish, and neighbours that lie as one are one. Nothing if the
// copy engine cannot be told.
inline std::optional<OperandLayout> describe_operand(const Problem& p, const Operand& x,
                                                     int64_t length, int64_t columns,
                                                     int64_t group) {
  const auto fits = [](int64_t stride) {
    return stride > 0 && stride % kAlignedElements == 0 && stride <= kMaxTensorStride / 2;
  };
  const int64_t row_stride = length == 1 ? columns : x.row_stride;
  if (x.col_stride != 1 || !is_aligned(x.data) || !fits(row_stride) || row_stride < columns)
    return {};
  if (length < 1 || length > kMaxTensorSize) return {};

  OperandLayout result{
      {x.data, {columns, length, 1, 1, 1}, {1, row_stride, columns, columns, columns}}, {}};
  HeadCoordinates& heads = result.heads;
  int64_t* const sizes = result.tensor.sizes + 2;
  int64_t* const strides = result.tensor.strides + 2;
  int count = 0;
  int64_t divisor = group;
  for (int d = p.leading_dims - 1; d >= 0; --d) {
    const int64_t size = d == p.leading_dims - 1 ? p.leading_sizes[d] / group : p.leading_sizes[d];
    const int64_t stride = x.leading_strides[d];
    const int last = count - 1;
    if (size == 1 || stride == 0) {
      // Nothing to step over.
    } else if (count > 0 && divisor == heads.divisor[last] * sizes[last] &&
               stride == strides[last] * sizes[last]) {
      sizes[last] *= size;
    } else {
      if (count == kHeadDims || !fits(stride)) return {};
      heads.divisor[count] = static_cast<int>(divisor);
      sizes[count] = size;
      strides[count] = stride;
      ++count;
    }
    divisor *= size;
    if (divisor > kMaxTensorSize) return {};
  }
  for (int c = 0; c < count; ++c) heads.size[c] = static_cast<int>(sizes[c]);
  return result;
}

}  // namespace torch_ext::cuda::hopper
