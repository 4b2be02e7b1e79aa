// The two products of few rows with the keys or values of a head, which are read as they lie:
//   A B^T  (scores: lanes along the columns of both, summed at the end)
//   C += W B  (weighted sums: lanes along the columns of B and C)
//
// A has a handful of rows, B many, so B is what has to be read: once, in the order it lies in, with
// several of its rows at a time for every row of A. As in tile_product.h, the bits depend on the
// operands and on the number of rows alone, and no chain of multiply-adds is longer than kChain.
#pragma once

#include "cpu/kernels/tile/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Rows [row, row + rows) of a head of `x`, `cols` wide.
struct StoredRows {
  const Operand& x;
  int64_t offset;  // of the head
  int64_t row, rows, cols;
};

// Rows of A or W at a time, and how many rows of B they weigh at a time: as many as leave registers
// for sums and weights. (AVX-512 broadcasts a weight from memory as it multiplies.)
#ifdef __AVX512F__
constexpr int kMostRows = 4;
constexpr int weighed_keys(int) { return 8; }
#else
constexpr int kMostRows = 2;
constexpr int weighed_keys(int rows) { return rows > 1 ? 6 : 8; }
#endif

// out[0 … 3] = sums of the lanes of a, b, c and d
TORCH_EXT_INLINE void sum_lanes(const Vec<float> (&x)[4], float* out) {
#ifdef __AVX512F__
  const __m512 ab =
      _mm512_add_ps(_mm512_unpacklo_ps(x[0].v, x[1].v), _mm512_unpackhi_ps(x[0].v, x[1].v));
  const __m512 cd =
      _mm512_add_ps(_mm512_unpacklo_ps(x[2].v, x[3].v), _mm512_unpackhi_ps(x[2].v, x[3].v));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
#else
  const __m256 ab =
      _mm256_add_ps(_mm256_unpacklo_ps(x[0].v, x[1].v), _mm256_unpackhi_ps(x[0].v, x[1].v));
  const __m256 cd =
      _mm256_add_ps(_mm256_unpacklo_ps(x[2].v, x[3].v), _mm256_unpackhi_ps(x[2].v, x[3].v));
  const __m256 half =
      _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
#endif
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
TORCH_EXT_INLINE void sum_lanes(const Vec<double> (&x)[4], double* out) {
  TORCH_EXT_UNROLL
  for (int i = 0; i < 4; i += 2) {
#ifdef __AVX512F__
    const __m512d ab = _mm512_add_pd(_mm512_unpacklo_pd(x[i].v, x[i + 1].v),
                                     _mm512_unpackhi_pd(x[i].v, x[i + 1].v));
    const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(ab), _mm512_extractf64x4_pd(ab, 1));
#else
    const __m256d half = _mm256_add_pd(_mm256_unpacklo_pd(x[i].v, x[i + 1].v),
                                       _mm256_unpackhi_pd(x[i].v, x[i + 1].v));
#endif
    _mm_storeu_pd(out + i,
                  _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1)));
  }
}

// Asks for `rows` rows of `cols` elements, kAhead rows behind `from`, before they are needed. Only
// where elements are widened: their loads come too slowly one after the other to keep the memory
// busy. Where they are not, the processor's own prefetching is better.
template <class T, class S>
TORCH_EXT_INLINE void prefetch_rows(Rows<const S> from, int64_t rows, int64_t cols) {
  constexpr int64_t kAhead = 32, kLine = 64 / sizeof(S);
  if constexpr (!__is_same(T, S))
    for (int64_t r = kAhead; r < kAhead + rows; ++r)
      for (int64_t c = 0; c < cols; c += kLine)
        _mm_prefetch(reinterpret_cast<const char*>(from.data + r * from.stride + c), _MM_HINT_T0);
}

// Columns whose products add up in the lanes before these are summed: chains of 8 or 16, so that
// the sum of a long row has the error of a blocked sum.
constexpr int64_t kSpan = 128;

// sum (kRows x kKeys) of vectors += A B^T in each lane; key k of B is at b[k].
template <class T, int kRows, int kKeys, class S>
TORCH_EXT_INLINE void multiply_lanes(int64_t begin, int64_t end, Rows<const T> a,
                                     const S* const (&b)[kKeys], Vec<T> (&sum)[kRows][kKeys]) {
  const auto step = [&](int64_t d, auto... count) __attribute__((always_inline)) {
    Vec<T> row[kRows];
    TORCH_EXT_UNROLL
    for (int i = 0; i < kRows; ++i) row[i] = Vec<T>::load(a.data + i * a.stride + d);
    TORCH_EXT_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const Vec<T> key = load_stored(b[k] + d, count...);
      TORCH_EXT_UNROLL
      for (int i = 0; i < kRows; ++i) sum[i][k] = fma(row[i], key, sum[i][k]);
    }
  };
  for (; begin + Vec<T>::kSize <= end; begin += Vec<T>::kSize) step(begin);
  if (begin < end) step(begin, end - begin);
}

// out (kRows x kKeys) = A B^T over `depth` columns
template <class T, int kRows, int kKeys, class S>
TORCH_EXT_INLINE void dot_block(int64_t depth, Rows<const T> a, const S* const (&b)[kKeys],
                                Rows<T> out) {
  T total[kRows][kKeys] = {};
  for (int64_t d = 0; d < depth; d += kSpan) {
    Vec<T> sum[kRows][kKeys];
    TORCH_EXT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      TORCH_EXT_UNROLL
      for (int k = 0; k < kKeys; ++k) sum[i][k] = Vec<T>::fill(0);
    }
    multiply_lanes<T>(d, smaller(depth, d + kSpan), a, b, sum);
    TORCH_EXT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      T part[kKeys];
      TORCH_EXT_UNROLL
      for (int k = 0; k < kKeys; k += 4)
        sum_lanes({sum[i][k], sum[i][k + 1], sum[i][k + 2], sum[i][k + 3]}, part + k);
      for (int k = 0; k < kKeys; ++k) total[i][k] += part[k];
    }
  }
  for (int i = 0; i < kRows; ++i)
    __builtin_memcpy(out.data + i * out.stride, total[i], sizeof total[i]);
}

// kRows rows of A against all keys. Keys beyond the last repeat it; what they yield is written to
// `out` up to a multiple of kKeys and means nothing.
template <class T, int kRows, class S>
__attribute__((noinline)) void dot_rows(int64_t depth, Rows<const T> a, Rows<const S> b,
                                        int64_t keys, Rows<T> out) {
  constexpr int kKeys = kRows == 1 ? 8 : 4;
  for (int64_t j = 0; j < keys; j += kKeys) {
    const S* rows[kKeys];
    TORCH_EXT_UNROLL
    for (int k = 0; k < kKeys; ++k) rows[k] = b.data + smaller(j + k, keys - 1) * b.stride;
    prefetch_rows<T, S>({b.data + j * b.stride, b.stride}, kKeys, depth);
    dot_block<T, kRows>(depth, a, rows, {out.data + j, out.stride});
  }
}

// C (kRows) += W B for kKeys rows of B, one chain for each element.
template <class T, int kRows, int kKeys, class S>
TORCH_EXT_INLINE void weigh_block(int64_t cols, Rows<const T> w, Rows<const S> b, Rows<T> c) {
  constexpr int kSize = Vec<T>::kSize;
  Vec<T> weight[kRows][kKeys];
  TORCH_EXT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    TORCH_EXT_UNROLL
    for (int k = 0; k < kKeys; ++k) weight[i][k] = Vec<T>::fill(w.data[i * w.stride + k]);
  }
  const auto step = [&](int64_t e, auto... count) __attribute__((always_inline)) {
    Vec<T> sum[kRows];
    TORCH_EXT_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const Vec<T> value = load_stored(b.data + k * b.stride + e, count...);
      TORCH_EXT_UNROLL
      for (int i = 0; i < kRows; ++i)
        sum[i] = k == 0 ? weight[i][k] * value : fma(weight[i][k], value, sum[i]);
    }
    TORCH_EXT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      T* out = c.data + i * c.stride + e;
      (Vec<T>::load(out) + sum[i]).store(out);
    }
  };
  int64_t e = 0;
  for (; e + kSize <= cols; e += kSize) step(e);
  if (e < cols) step(e, cols - e);
}

template <class T, int kRows, class S>
__attribute__((noinline)) void weigh_rows(int64_t cols, Rows<const T> w, Rows<const S> b,
                                          int64_t keys, Rows<T> c) {
  constexpr int kKeys = weighed_keys(kRows);
  int64_t j = 0;
  const auto block = [&](auto size) __attribute__((always_inline)) {
    weigh_block<T, kRows, decltype(size)::value>(cols, {w.data + j, w.stride},
                                                 Rows<const S>{b.data + j * b.stride, b.stride}, c);
    j += decltype(size)::value;
  };
  while (j + kKeys <= keys) {
    prefetch_rows<T, S>({b.data + j * b.stride, b.stride}, kKeys, cols);
    block(Int<kKeys>());
  }
  while (j < keys) block(Int<1>());
}

// Calls use(Int<rows at a time>(), first row) for blocks of rows.
template <class Use>
TORCH_EXT_INLINE void for_row_blocks(int64_t rows, const Use& use) {
  int64_t i = 0;
  for (; i + kMostRows <= rows; i += kMostRows) use(Int<kMostRows>(), i);
  if constexpr (kMostRows > 2)
    for (; i + 2 <= rows; i += 2) use(Int<2>(), i);
  for (; i < rows; ++i) use(Int<1>(), i);
}

// Calls use(Rows<const S>) with the rows as they lie, or, where the elements of a row are apart,
// with a copy in `buffer` (rows x cols in whole vectors).
template <class T, class Use>
TORCH_EXT_INLINE void with_stored_rows(const StoredRows& b, T* buffer, const Use& use) {
  if (b.x.col_stride != 1) {
    const int64_t stride = round_up(b.cols, Vec<T>::kSize);
    pack_rows<T>(b.x, b.offset, b.row, b.rows, b.cols, buffer, stride);
    return use(Rows<const T>{buffer, stride});
  }
  with_storage<T>(b.x.dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!__is_same(S, bool))
      use(Rows<const S>{at<S>(b.x, b.offset, b.row).data, b.x.row_stride});
  });
}

// out (rows x b.rows) = A B^T. Rows of A are zero beyond b.cols up to whole vectors; those of `out`
// may be written up to a multiple of 8.
template <class T>
void row_products(int64_t rows, Rows<const T> a, const StoredRows& b, Rows<T> out, T* buffer) {
  with_stored_rows(b, buffer, [&](auto stored) {
    for_row_blocks(rows, [&](auto at_a_time, int64_t i) {
      dot_rows<T, decltype(at_a_time)::value>(b.cols, {a.data + i * a.stride, a.stride}, stored,
                                              b.rows, {out.data + i * out.stride, out.stride});
    });
  });
}

// out[i] = a_i b_i, each rounded as row_products does. `a` is zero beyond `cols` up to whole
// vectors; `out` may be written up to a multiple of 4.
template <class T>
void products_of_pairs(Rows<const T> a, const StoredRows& b, T* out, T* buffer) {
  with_stored_rows(b, buffer, [&](auto stored) {
    for (int64_t i = 0; i < b.rows; i += 4) {
      T total[4] = {};
      for (int64_t d = 0; d < b.cols; d += kSpan) {
        Vec<T> sum[4][1][1];
        T part[4];
        TORCH_EXT_UNROLL
        for (int r = 0; r < 4; ++r) {
          const int64_t row = smaller(i + r, b.rows - 1);
          const decltype(stored.data) other[1] = {stored.data + row * stored.stride};
          sum[r][0][0] = Vec<T>::fill(0);
          multiply_lanes<T>(d, smaller(b.cols, d + kSpan), {a.data + row * a.stride, 0}, other,
                            sum[r]);
        }
        sum_lanes({sum[0][0][0], sum[1][0][0], sum[2][0][0], sum[3][0][0]}, part);
        for (int r = 0; r < 4; ++r) total[r] += part[r];
      }
      __builtin_memcpy(out + i, total, sizeof total);
    }
  });
}

// Numbers that a tile of such products may be written beyond its end.
constexpr int64_t kRowTail = 8;

// C (rows x cols) += W (rows x keys) B
template <class T, class S>
void weighted_rows(int64_t rows, int64_t cols, int64_t keys, Rows<const T> w, Rows<const S> b,
                   Rows<T> c) {
  for_row_blocks(rows, [&](auto at_a_time, int64_t i) {
    weigh_rows<T, decltype(at_a_time)::value>(cols, {w.data + i * w.stride, w.stride}, b, keys,
                                              {c.data + i * c.stride, c.stride});
  });
}
template <class T>
void weighted_rows(int64_t rows, Rows<const T> w, const StoredRows& b, Rows<T> c, T* buffer) {
  with_stored_rows(b, buffer,
                   [&](auto stored) { weighted_rows<T>(rows, b.cols, b.rows, w, stored, c); });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
