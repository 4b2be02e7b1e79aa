// The gradients of keys and values that few queries read:
//   out (keys x cols) = factor W^T B,  W (rows x keys), B (rows x columns)
//
// There are few rows to sum over, so time goes into writing: each element is summed in a register
// and stored where it belongs, with nothing in between.
#pragma once

#include "cpu/kernels/tile/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// A block of sums in registers: a row needs its vectors of B and its weights, 6 loads for 8
// multiply-adds, and AVX2 has registers for it.
constexpr int kSumKeys = 4, kSumVectors = 2;

// Where the rows of a gradient go; `streams`: past the caches, where they are whole aligned
// vectors of the type that is summed.
struct KeyGradient {
  const Operand& x;
  int64_t offset;  // of the head
  int64_t row, rows, cols;
  bool streams;
};

// sum (kKeys x kVectors) = W^T B over rows [begin, end), one chain of multiply-adds.
template <class T, int kKeys, int kVectors>
TORCH_EXT_INLINE void sum_chain(int64_t begin, int64_t end, Rows<const T> w, Rows<const T> b,
                                Vec<T> (&sum)[kKeys][kVectors]) {
  TORCH_EXT_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    TORCH_EXT_UNROLL
    for (int j = 0; j < kVectors; ++j) sum[k][j] = Vec<T>::fill(0);
  }
  for (int64_t i = begin; i < end; ++i) {
    Vec<T> row[kVectors];
    TORCH_EXT_UNROLL
    for (int j = 0; j < kVectors; ++j)
      row[j] = Vec<T>::load(b.data + i * b.stride + j * Vec<T>::kSize);
    TORCH_EXT_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const Vec<T> weight = Vec<T>::fill(w.data[i * w.stride + k]);
      TORCH_EXT_UNROLL
      for (int j = 0; j < kVectors; ++j) sum[k][j] = fma(weight, row[j], sum[k][j]);
    }
  }
}

// Calls store(sum, key, vector) with the sums of a block; chains as in tile_product.h.
template <class T, int kKeys, int kVectors, class Store>
TORCH_EXT_INLINE void sum_block(int64_t rows, Rows<const T> w, Rows<const T> b,
                                const Store& store) {
  Vec<T> sum[kKeys][kVectors];
  sum_chain<T>(0, smaller(rows, kChain), w, b, sum);
  for (int64_t first = kChain; first < rows; first += kChain) {
    Vec<T> chain[kKeys][kVectors];
    sum_chain<T>(first, smaller(rows, first + kChain), w, b, chain);
    TORCH_EXT_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      TORCH_EXT_UNROLL
      for (int j = 0; j < kVectors; ++j) sum[k][j] = sum[k][j] + chain[k][j];
    }
  }
  TORCH_EXT_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    TORCH_EXT_UNROLL
    for (int j = 0; j < kVectors; ++j) store(sum[k][j], k, j);
  }
}

// Calls store(sum, key, column of its first lane) for all of out; lanes of the last vector may be
// summed twice, or lie beyond cols where that is less than a vector.
template <class T, class Store>
TORCH_EXT_INLINE void for_each_sum(int64_t rows, int64_t keys, int64_t cols, Rows<const T> w,
                                   Rows<const T> b, const Store& store) {
  constexpr int kSize = Vec<T>::kSize;
  const auto keys_from = [&](int64_t key, auto at_a_time) __attribute__((always_inline)) {
    const auto columns_from = [&](int64_t c, auto vectors) __attribute__((always_inline)) {
      sum_block<T, decltype(at_a_time)::value, decltype(vectors)::value>(
          rows, {w.data + key, w.stride}, {b.data + c, b.stride},
          [&](Vec<T> sum, int k, int j)
              __attribute__((always_inline)) { store(sum, key + k, c + j * kSize); });
    };
    int64_t c = 0;
    for (; c + kSumVectors * kSize <= cols; c += kSumVectors * kSize)
      columns_from(c, Int<kSumVectors>());
    for (; c < cols; c += kSize) columns_from(larger(0, smaller(c, cols - kSize)), Int<1>());
  };
  int64_t key = 0;
  for (; key + kSumKeys <= keys; key += kSumKeys) keys_from(key, Int<kSumKeys>());
  for (; key < keys; ++key) keys_from(key, Int<1>());
}

// Writes out = factor W^T B, rounded once; false, and nothing done, where the elements of its rows
// are apart. Rows of B are whole vectors.
template <class T>
bool write_key_gradients(int64_t rows, Rows<const T> w, Rows<const T> b, T factor,
                         const KeyGradient& out) {
  constexpr int kSize = Vec<T>::kSize;
  if (out.x.col_stride != 1) return false;
  const Vec<T> by = Vec<T>::fill(factor);
  with_storage<T>(out.x.dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!__is_same(S, bool)) {
      S* const start = static_cast<S*>(out.x.data) + out.offset + out.row * out.x.row_stride;
      const int64_t stride = out.x.row_stride;
      if constexpr (__is_same(S, T))
        if (out.streams && out.cols % kSize == 0 && stride % kSize == 0 &&
            reinterpret_cast<uintptr_t>(start) % sizeof(Vec<T>) == 0)
          return for_each_sum<T>(
              rows, out.rows, out.cols, w, b,
              [&](Vec<T> sum, int64_t key, int64_t c)
                  __attribute__((always_inline)) { (sum * by).stream(start + key * stride + c); });
      if (out.cols < kSize)
        return for_each_sum<T>(rows, out.rows, out.cols, w, b,
                               [&](Vec<T> sum, int64_t key, int64_t)
                                   __attribute__((always_inline)) {
                                     store_rounded(sum * by, start + key * stride, out.cols);
                                   });
      for_each_sum<T>(rows, out.rows, out.cols, w, b,
                      [&](Vec<T> sum, int64_t key, int64_t c) __attribute__((always_inline)) {
                        store_rounded(sum * by, start + key * stride + c);
                      });
    }
  });
  return true;
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
