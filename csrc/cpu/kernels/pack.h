// Between the tensors as they lie in memory (any dtype, any strides) and tiles of the accumulation
// type T.
//
// A tile is converted once, when it is packed; gradients and outputs are rounded once, when they
// are written. Bool packs as an additive mask: true is 0, false is -inf.
#pragma once

#include "attention/problem.h"
#include "cpu/kernels/tile_product.h"
#include "cpu/kernels/vec.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

TORCH_EXT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TORCH_EXT_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
TORCH_EXT_INLINE int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
TORCH_EXT_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return divide_up(n, multiple) * multiple;
}

// ---- one element ----

TORCH_EXT_INLINE float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
TORCH_EXT_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <class T>
TORCH_EXT_INLINE T widen(float x) {
  return static_cast<T>(x);
}
template <class T>
TORCH_EXT_INLINE T widen(double x) {
  return static_cast<T>(x);
}
template <class T>
TORCH_EXT_INLINE T widen(BFloat16 x) {
  return static_cast<T>(bits_to_float(static_cast<uint32_t>(x.bits) << 16));
}
template <class T>
TORCH_EXT_INLINE T widen(Float16 x) {
  return static_cast<T>(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.bits))));
}
template <class T>
TORCH_EXT_INLINE T widen(bool x) {
  return x ? T(0) : -kInfinity<T>;
}

// Round to nearest, ties to even; NaN stays NaN.
template <class T>
TORCH_EXT_INLINE void narrow(T x, T* out) {
  *out = x;
}
TORCH_EXT_INLINE void narrow(float x, BFloat16* out) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}
TORCH_EXT_INLINE void narrow(float x, Float16* out) {
  const __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
  out->bits = static_cast<uint16_t>(_mm_extract_epi16(half, 0));
}

// ---- a square block, the unit of transposition: 8 floats or 4 doubles a row, in AVX registers
// ----

TORCH_EXT_INLINE __m256 load_block_row(const float* p) { return _mm256_loadu_ps(p); }
TORCH_EXT_INLINE __m256d load_block_row(const double* p) { return _mm256_loadu_pd(p); }
TORCH_EXT_INLINE __m256 load_block_row(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
TORCH_EXT_INLINE __m256 load_block_row(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

template <class T>
constexpr int kBlock = 32 / sizeof(T);

// out[c * out_stride + r] = rows[r][c]
TORCH_EXT_INLINE void transpose_block(const __m256 (&rows)[8], float* out, int64_t out_stride) {
  __m256 pair[8], quad[8];
  TORCH_EXT_UNROLL
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  TORCH_EXT_UNROLL
  for (int i = 0; i < 8; i += 4) {
    quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
  TORCH_EXT_UNROLL
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_stride,
                     _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
  }
}
TORCH_EXT_INLINE void transpose_block(const __m256d (&rows)[4], double* out, int64_t out_stride) {
  const __m256d low01 = _mm256_unpacklo_pd(rows[0], rows[1]);
  const __m256d high01 = _mm256_unpackhi_pd(rows[0], rows[1]);
  const __m256d low23 = _mm256_unpacklo_pd(rows[2], rows[3]);
  const __m256d high23 = _mm256_unpackhi_pd(rows[2], rows[3]);
  _mm256_storeu_pd(out, _mm256_permute2f128_pd(low01, low23, 0x20));
  _mm256_storeu_pd(out + out_stride, _mm256_permute2f128_pd(high01, high23, 0x20));
  _mm256_storeu_pd(out + 2 * out_stride, _mm256_permute2f128_pd(low01, low23, 0x31));
  _mm256_storeu_pd(out + 3 * out_stride, _mm256_permute2f128_pd(high01, high23, 0x31));
}

// ---- tiles ----

// A part of one head of a tensor: element (r, c) at data[r * row + c * col].
template <class S>
struct Strided {
  S* data;
  int64_t row;
  int64_t col;
};

// out[r * out_stride + c] = in(r, c)
template <class T, class S>
void copy_tile(Strided<const S> in, int64_t rows, int64_t cols, T* out, int64_t out_stride) {
  constexpr int kLanes = kBlock<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const S* from = in.data + r * in.row;
    T* to = out + r * out_stride;
    int64_t c = 0;
    if constexpr (!__is_same(S, bool)) {
      if (in.col == 1)
        for (; c + kLanes <= cols; c += kLanes) {
          const auto values = load_block_row(from + c);
          __builtin_memcpy(to + c, &values, sizeof values);
        }
    }
    for (; c < cols; ++c) to[c] = widen<T>(from[c * in.col]);
  }
}

// out[c * out_stride + r] = in(r, c)
template <class T, class S>
void transpose_tile(Strided<const S> in, int64_t rows, int64_t cols, T* out, int64_t out_stride) {
  constexpr int kLanes = kBlock<T>;
  if (in.col != 1 && (in.row == 1 || in.row == 0))  // rows of the result lie in memory as they are
    return copy_tile<T, S>({in.data, in.col, in.row}, cols, rows, out, out_stride);
  int64_t r = 0;
  if (in.col == 1)
    for (; r + kLanes <= rows; r += kLanes) {
      int64_t c = 0;
      for (; c + kLanes <= cols; c += kLanes) {
        decltype(load_block_row(static_cast<const T*>(nullptr))) block[kLanes];
        TORCH_EXT_UNROLL
        for (int i = 0; i < kLanes; ++i) {
          const S* from = in.data + (r + i) * in.row + c;
          if constexpr (__is_same(S, bool)) {
            T lanes[kLanes];
            for (int j = 0; j < kLanes; ++j) lanes[j] = widen<T>(from[j]);
            block[i] = load_block_row(lanes);
          } else {
            block[i] = load_block_row(from);
          }
        }
        transpose_block(block, out + c * out_stride + r, out_stride);
      }
      for (; c < cols; ++c)
        for (int i = 0; i < kLanes; ++i)
          out[c * out_stride + r + i] = widen<T>(in.data[(r + i) * in.row + c]);
    }
  for (; r < rows; ++r)
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

// The same rows without a copy where they can be read in place; `whole_vectors`: they must be
// readable as rows of whole vectors, so `cols` itself must be a number of them.
template <class T>
TORCH_EXT_INLINE Rows<const T> rows_in_place_or_packed(const Operand& x, int64_t offset,
                                                       int64_t row, int64_t rows, int64_t cols,
                                                       bool whole_vectors, T* buffer) {
  const bool same_type = x.dtype == (sizeof(T) == 8 ? DType::Float64 : DType::Float32);
  if (same_type && x.col_stride == 1 && (!whole_vectors || cols % Vec<T>::kSize == 0))
    return {at<T>(x, offset, row).data, x.row_stride};
  const int64_t stride = round_up(cols, Vec<T>::kSize);
  pack_rows<T>(x, offset, row, rows, cols, buffer, stride);
  return {buffer, stride};
}

// x(r, c) = tile[r * stride + c] * factor, rounded once.
template <class T>
void write_rows(const T* tile, int64_t stride, int64_t rows, int64_t cols, T factor,
                const Operand& x, int64_t offset, int64_t row) {
  with_storage<T>(x.dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (!__is_same(S, bool)) {
      S* out = static_cast<S*>(x.data) + offset + row * x.row_stride;
      for (int64_t r = 0; r < rows; ++r, out += x.row_stride) {
        const T* in = tile + r * stride;
        if (x.col_stride == 1)
          for (int64_t c = 0; c < cols; ++c) narrow(in[c] * factor, out + c);
        else
          for (int64_t c = 0; c < cols; ++c) narrow(in[c] * factor, out + c * x.col_stride);
      }
    }
  });
}

// Element `row` of a per-row vector (logsumexp and its kin): T for the 64-bit and 32-bit types,
// float for 16-bit.
template <class T>
TORCH_EXT_INLINE T& row_value(const Operand& x, int64_t offset, int64_t row) {
  return static_cast<T*>(x.data)[offset + row * x.row_stride];
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
