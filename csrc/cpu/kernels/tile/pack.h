// Between the tensors as they lie in memory (any dtype, any strides) and tiles of the accumulation
// type T.
//
// A tile is converted once, when it is packed; gradients and outputs are rounded once, when they
// are written. Bool packs as an additive mask: true is 0, false is -inf.
#pragma once

#include "attention/problem.h"
#include "cpu/kernels/primitives/numbers.h"
#include "cpu/kernels/primitives/transpose.h"
#include "cpu/kernels/tile/tile_product.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// A part of one head of a tensor: element (r, c) at data[r * row + c * col].
template <class S>
struct Strided {
  S* data;
  int64_t row;
  int64_t col;
};

// Calls use(first) for blocks of kLanes that together cover [0, count), count >= kLanes. The last
// one may overlap the one before: what is done twice there is done twice to the same numbers.
template <int kLanes, class Use>
TORCH_EXT_INLINE void for_covering_blocks(int64_t count, const Use& use) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) use(i);
  if (i < count) use(count - kLanes);
}

// Where elements of a row lie side by side or every second place, and a row is at least a block
// long: calls use(load), and load(p) is the block of a row that begins at p. Returns whether.
template <class T, class S, class Use>
TORCH_EXT_INLINE bool with_block_loads(Strided<const S> in, int64_t cols, const Use& use) {
  if (cols < kBlock<T>) return false;
  if (in.col == 1)
    use([](const S* from) __attribute__((always_inline)) { return load_block_row(from, T()); });
  if constexpr (!__is_same(S, bool)) {
    if (in.col == 2)
      use([](const S* from)
              __attribute__((always_inline)) { return load_every_second(from, T()); });
    return in.col == 1 || in.col == 2;
  }
  return in.col == 1;
}

// out[r * out_stride + c] = in(r, c)
template <class T, class S>
void copy_tile(Strided<const S> in, int64_t rows, int64_t cols, T* out, int64_t out_stride) {
  const bool is_copied = with_block_loads<T, S>(in, cols, [&](const auto& load) {
    for (int64_t r = 0; r < rows; ++r)
      for_covering_blocks<kBlock<T>>(cols, [&](int64_t c) __attribute__((always_inline)) {
        const auto values = load(in.data + r * in.row + c * in.col);
        __builtin_memcpy(out + r * out_stride + c, &values, sizeof values);
      });
  });
  if (is_copied) return;
  for (int64_t r = 0; r < rows; ++r) {
    const S* from = in.data + r * in.row;
    T* to = out + r * out_stride;
    if (in.col == 0)
      for (int64_t c = 0; c < cols; ++c) to[c] = widen<T>(*from);
    else
      for (int64_t c = 0; c < cols; ++c) to[c] = widen<T>(from[c * in.col]);
  }
}

// out[c * out_stride + r] = in(r, c) of one block; `in` and `out` are at its first element.
template <class T, class S, class Load>
TORCH_EXT_INLINE void transpose_block_at(const S* in, int64_t row, const Load& load, T* out,
                                         int64_t out_stride) {
  constexpr int kLanes = kBlock<T>;
  decltype(load(in)) block[kLanes];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kLanes; ++i) block[i] = load(in + i * row);
  transpose_block(block, out, out_stride);
}

// out[c * out_stride + r] = in(r, c)
template <class T, class S>
void transpose_tile(Strided<const S> in, int64_t rows, int64_t cols, T* out, int64_t out_stride) {
  constexpr int kLanes = kBlock<T>;
  if (in.col != 1 && (in.row == 1 || in.row == 0))  // rows of the result lie in memory as they are
    return copy_tile<T, S>({in.data, in.col, in.row}, cols, rows, out, out_stride);
  const bool is_done =
      rows >= kLanes && with_block_loads<T, S>(in, cols, [&](const auto& load) {
        // Two blocks at a time: whole cache lines of the result.
        for (int64_t r = 0; r < rows; r += 2 * kLanes)
          for_covering_blocks<kLanes>(cols, [&](int64_t c) __attribute__((always_inline)) {
            for (int64_t block = r; block < smaller(rows, r + 2 * kLanes); block += kLanes) {
              const int64_t first = smaller(block, rows - kLanes);  // the last may overlap
              transpose_block_at<T, S>(in.data + first * in.row + c * in.col, in.row, load,
                                       out + c * out_stride + first, out_stride);
            }
          });
      });
  if (is_done) return;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      out[c * out_stride + r] = widen<T>(in.data[r * in.row + c * in.col]);
}

// Calls use(S()) with the storage type S of a dtype that may accompany the accumulation type T.
template <class T, class Use>
TORCH_EXT_INLINE void with_storage(DType dtype, const Use& use) {
  if constexpr (__is_same(T, double)) {
    if (dtype == DType::Bool) return use(bool());
    return use(double());
  } else {
    switch (dtype) {
      case DType::Bool:
        return use(bool());
      case DType::BFloat16:
        return use(BFloat16());
      case DType::Float16:
        return use(Float16());
      default:
        return use(float());
    }
  }
}

// Where a head of an operand starts, as (row, col) of type S.
template <class S>
TORCH_EXT_INLINE Strided<const S> at(const Operand& x, int64_t offset, int64_t row,
                                     int64_t col = 0) {
  return {static_cast<const S*>(x.data) + offset + row * x.row_stride + col * x.col_stride,
          x.row_stride, x.col_stride};
}

// Rows [row, row + rows) of a head as a tile with `stride` columns, zero beyond `cols`.
template <class T>
void pack_rows(const Operand& x, int64_t offset, int64_t row, int64_t rows, int64_t cols, T* out,
               int64_t stride) {
  with_storage<T>(x.dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!__is_same(S, bool)) {
      const auto in = at<S>(x, offset, row);
      if (in.col != 1 && in.row == 1)
        transpose_tile<T, S>({in.data, in.col, in.row}, cols, rows, out, stride);
      else
        copy_tile<T, S>(in, rows, cols, out, stride);
    }
  });
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = cols; c < stride; ++c) out[r * stride + c] = 0;
}

// The transpose of rows [row, row + rows): `cols` rows of `stride` elements, zero beyond `rows`.
template <class T>
void pack_transposed(const Operand& x, int64_t offset, int64_t row, int64_t rows, int64_t cols,
                     T* out, int64_t stride) {
  with_storage<T>(x.dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!__is_same(S, bool))
      transpose_tile<T, S>(at<S>(x, offset, row), rows, cols, out, stride);
  });
  for (int64_t c = 0; c < cols; ++c)
    for (int64_t r = rows; r < stride; ++r) out[c * stride + r] = 0;
}

// Whether rows can be read in place; `whole_vectors`: they must be readable as rows of whole
// vectors, so `cols` itself must be a number of them.
template <class T>
TORCH_EXT_INLINE bool is_readable_in_place(const Operand& x, int64_t cols, bool whole_vectors) {
  const bool same_type = x.dtype == (sizeof(T) == 8 ? DType::Float64 : DType::Float32);
  return same_type && x.col_stride == 1 && (!whole_vectors || cols % Vec<T>::kSize == 0);
}

// The same rows without a copy where they can be read in place.
template <class T>
TORCH_EXT_INLINE Rows<const T> rows_in_place_or_packed(const Operand& x, int64_t offset,
                                                       int64_t row, int64_t rows, int64_t cols,
                                                       bool whole_vectors, T* buffer) {
  if (is_readable_in_place<T>(x, cols, whole_vectors))
    return {at<T>(x, offset, row).data, x.row_stride};
  const int64_t stride = round_up(cols, Vec<T>::kSize);
  pack_rows<T>(x, offset, row, rows, cols, buffer, stride);
  return {buffer, stride};
}

// Rows [row, row + rows) of a head as a left factor (rows x cols), in place where that can be.
template <class E>
TORCH_EXT_INLINE Broadcast<E> pack_left(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                                        int64_t cols, E* buffer) {
  const Rows<const E> in = rows_in_place_or_packed<E>(x, offset, row, rows, cols, false, buffer);
  return {in.data, in.stride, 1};
}

// The same rows as a right factor (rows x cols), in place where that can be: the rows are the terms
// of its sums.
template <class E>
TORCH_EXT_INLINE Rows<const E> pack_right(const Operand& x, int64_t offset, int64_t row,
                                          int64_t rows, int64_t cols, E* buffer) {
  return rows_in_place_or_packed<E>(x, offset, row, rows, cols, true, buffer);
}

// A tile of weights (keys x width) as the left factor of sums over its keys, (queries x keys), and
// over its queries, (keys x queries). `buffer` has the size of the tile.
template <class E>
TORCH_EXT_INLINE Broadcast<E> factor_over_keys(const SumOf<E>* tile, int64_t, int64_t width, E*) {
  return {tile, 1, width};
}
template <class E>
TORCH_EXT_INLINE Broadcast<E> factor_over_queries(const SumOf<E>* tile, int64_t, int64_t,
                                                  int64_t width, E*) {
  return {tile, width, 1};
}

// x(r, c) = tile[r * stride + c] * factor(r), rounded once.
template <class T, class Factor>
TORCH_EXT_INLINE void write_scaled_rows(const T* tile, int64_t stride, int64_t rows, int64_t cols,
                                        const Factor& factor, const Operand& x, int64_t offset,
                                        int64_t row) {
  constexpr int kSize = Vec<T>::kSize;
  with_storage<T>(x.dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!__is_same(S, bool)) {
      S* out = static_cast<S*>(x.data) + offset + row * x.row_stride;
      for (int64_t r = 0; r < rows; ++r, out += x.row_stride) {
        const T* in = tile + r * stride;
        const T by = factor(r);
        if (x.col_stride != 1)
          for (int64_t c = 0; c < cols; ++c) narrow(in[c] * by, out + c * x.col_stride);
        else if (cols < kSize)
          store_rounded(load_stored(in, cols) * Vec<T>::fill(by), out, cols);
        else
          for_covering_blocks<kSize>(cols, [&](int64_t c) __attribute__((always_inline)) {
            store_rounded(Vec<T>::load(in + c) * Vec<T>::fill(by), out + c);
          });
      }
    }
  });
}
template <class T>
void write_rows(const T* tile, int64_t stride, int64_t rows, int64_t cols, T factor,
                const Operand& x, int64_t offset, int64_t row) {
  write_scaled_rows<T>(tile, stride, rows, cols, [&](int64_t) { return factor; }, x, offset, row);
}

// Element `row` of a per-row vector (logsumexp and its kin): T for the 64-bit and 32-bit types,
// float for 16-bit.
template <class T>
TORCH_EXT_INLINE T& row_value(const Operand& x, int64_t offset, int64_t row) {
  return static_cast<T*>(x.data)[offset + row * x.row_stride];
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
