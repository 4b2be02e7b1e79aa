// Matrices in global memory, and their chunks in shared memory.
//
// A chunk is 128 bytes of every row of a tile. Its 16-byte units are swizzled: unit u of row r lies
// at u ^ (r % 8), so that eight rows of one column lie in different banks.
#pragma once

#include "cuda/primitives/async_copy.h"
#include "cuda/tile/element.h"

namespace torch_ext::cuda {

// One head of an operand.
template <class E>
struct Matrix {
  const E* data = nullptr;  // null: absent
  int64_t row_stride = 0, col_stride = 0;
  int64_t head_stride = 0;  // to the next head of a group
  int64_t rows = 0, columns = 0;
  bool is_aligned = false;  // every row begins on 16 bytes and is contiguous

  TORCH_EXT_DEVICE explicit operator bool() const { return data != nullptr; }
};

// `head` counts query heads; `group` as in head_offset.
template <class E>
TORCH_EXT_DEVICE Matrix<E> matrix_of(const Problem& p, const Operand& x, int64_t head,
                                     int64_t group, int64_t rows, int64_t columns) {
  if (!x) return {};
  constexpr int64_t kUnit = kUnitBytes / sizeof(E);
  const E* data = static_cast<const E*>(x.data) + head_offset(p, x, head, group);
  const int64_t head_stride = group == 1 ? x.leading_strides[p.leading_dims - 1] : 0;
  const bool is_aligned = x.col_stride == 1 && x.row_stride % kUnit == 0 &&
                          head_stride % kUnit == 0 &&
                          reinterpret_cast<uintptr_t>(data) % kUnitBytes == 0;
  return {data, x.row_stride, x.col_stride, head_stride, rows, columns, is_aligned};
}

template <class E>
TORCH_EXT_DEVICE Matrix<E> query_matrix(const Problem& p, const Operand& x, int64_t head,
                                        int64_t columns) {
  return matrix_of<E>(p, x, head, 1, p.query_length, columns);
}
template <class E>
TORCH_EXT_DEVICE Matrix<E> key_matrix(const Problem& p, const Operand& x, int64_t head,
                                      int64_t columns) {
  return matrix_of<E>(p, x, head, p.group, p.key_length, columns);
}

TORCH_EXT_DEVICE unsigned char* unit_of(unsigned char* chunk, int row, int unit) {
  return chunk + row * kChunkBytes + (unit ^ (row & 7)) * kUnitBytes;
}
TORCH_EXT_DEVICE const unsigned char* unit_of(const unsigned char* chunk, int row, int unit) {
  return chunk + row * kChunkBytes + (unit ^ (row & 7)) * kUnitBytes;
}

// Of a matrix whose rows cannot be copied by units: element by element.
template <class E, int kRows, int kThreads>
TORCH_EXT_DEVICE_FUNCTION void copy_elements(unsigned char* chunk, const Matrix<E>& x, int head,
                                             int64_t row, int index) {
  constexpr int kCount = kUnitBytes / sizeof(E);
  const E* from = x.data + head * x.head_stride;
  const int first = index * kChunkColumns<E>;
  TORCH_EXT_KEEP_LOOP
  for (int i = thread_index(); i < kRows * kChunkColumns<E>; i += kThreads) {
    const int r = i / kChunkColumns<E>, c = i % kChunkColumns<E>;
    const bool exists = row + r < x.rows && first + c < x.columns;
    E* to = reinterpret_cast<E*>(unit_of(chunk, r, c / kCount)) + c % kCount;
    *to = exists ? from[(row + r) * x.row_stride + (first + c) * x.col_stride] : E{};
  }
}

// Starts copying rows [row, row + kRows) of chunk number `index`; all threads of the block take
// part. What lies beyond the matrix becomes 0. `head` counts heads of the group.
template <class E, int kRows, int kThreads>
TORCH_EXT_DEVICE void copy_chunk(unsigned char* chunk, const Matrix<E>& x, int head, int64_t row,
                                 int index) {
  constexpr int kCount = kUnitBytes / sizeof(E);
  static_assert(kRows * kUnits % kThreads == 0);
  if (!x.is_aligned) {
    copy_elements<E, kRows, kThreads>(chunk, x, head, row, index);
    return;
  }
  const E* from = x.data + head * x.head_stride;
  const int first = index * kChunkColumns<E>;
  TORCH_EXT_KEEP_LOOP
  for (int n = 0; n < kRows * kUnits / kThreads; ++n) {
    const int i = thread_index() + n * kThreads, r = i / kUnits, unit = i % kUnits;
    const int64_t column = first + unit * kCount;
    const int64_t left = row + r < x.rows ? x.columns - column : 0;
    const int count = left > kCount ? kCount : left > 0 ? static_cast<int>(left) : 0;
    copy_async(unit_of(chunk, r, unit), count > 0 ? from + (row + r) * x.row_stride + column : from,
               count * static_cast<int>(sizeof(E)));
  }
}

}  // namespace torch_ext::cuda
