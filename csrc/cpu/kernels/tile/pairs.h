// Pairs of bfloat16, the elements that VDPBF16PS multiplies and adds: a factor of the tile product
// with two terms of every sum side by side. Products of bfloat16 are exact in float; the two of a
// pair are added one after the other, each sum rounded once. Denormal numbers count as 0.
#pragma once

#include "cpu/kernels/tile/pack.h"

#ifdef __AVX512BF16__

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

struct Pair {
  uint32_t bits;  // the first term in the lower half
};

template <>
constexpr int kTerms<Pair> = 2;

template <>
struct SumType<Pair> {
  using Type = float;
};

template <>
struct Vec<Pair> {
  static constexpr int kSize = 16;
  __m512i v;
  static TORCH_EXT_INLINE Vec load(const Pair* p) { return {_mm512_loadu_si512(p)}; }
  static TORCH_EXT_INLINE Vec fill(Pair x) {
    return {_mm512_set1_epi32(static_cast<int32_t>(x.bits))};
  }
  TORCH_EXT_INLINE void store(Pair* p) const { _mm512_storeu_si512(p, v); }
};

TORCH_EXT_INLINE Vec<float> fma(Vec<Pair> a, Vec<Pair> b, Vec<float> c) {
  return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
}
TORCH_EXT_INLINE Vec<float> fma_unless_zero(Vec<Pair> a, Vec<Pair> b, Vec<float> c) {
  const __mmask16 used = _mm512_test_epi32_mask(b.v, _mm512_set1_epi32(0x7fff7fff));
  return {_mm512_mask_dpbf16_ps(c.v, used, (__m512bh)a.v, (__m512bh)b.v)};
}

TORCH_EXT_INLINE float term_of(Pair x, int64_t part) {
  return bits_to_float(part == 0 ? x.bits << 16 : x.bits & 0xffff0000);
}

TORCH_EXT_INLINE Pair without_term(Pair x, int64_t part) {
  return {part == 0 ? x.bits & 0xffff0000 : x.bits & 0xffff};
}

TORCH_EXT_INLINE bool all_finite(const Pair* row, int64_t count) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 found = 0;
  for (int64_t i = 0; i < count; i += Vec<Pair>::kSize)
    found |=
        _mm512_cmpeq_epi16_mask(_mm512_and_si512(Vec<Pair>::load(row + i).v, exponent), exponent);
  return found == 0;
}

// ---- bfloat16 in memory ----

// 16 elements that lie every second place, each in the low half of 32 bits, 0 above.
TORCH_EXT_INLINE __m512i load_words_of_every_second(const BFloat16* p) {
  constexpr __mmask32 kUpToTheLast = 0x7fffffff;
  return _mm512_and_si512(_mm512_maskz_loadu_epi16(kUpToTheLast, p), _mm512_set1_epi32(0xffff));
}

// out[r / 2][c] = (in(r, c), in(r + 1, c)); 0 beyond the last row and beyond `cols`.
inline void pair_rows(Strided<const BFloat16> in, int64_t rows, int64_t cols, Pair* out,
                      int64_t stride) {
  constexpr int kRows = 16, kCols = 8;  // of a block that is transposed as 8 x 8 pairs
  const auto scalar = [&](int64_t r, int64_t begin, int64_t end) {
    const BFloat16* first = in.data + r * in.row;
    for (int64_t c = begin; c < end; ++c) {
      const uint32_t high = r + 1 < rows ? first[c * in.col + in.row].bits : 0;
      out[r / 2 * stride + c].bits = first[c * in.col].bits | high << 16;
    }
    if (end == cols)
      for (int64_t c = cols; c < stride; ++c) out[r / 2 * stride + c].bits = 0;
  };
  int64_t r = 0;
  // The terms of a pair lie side by side already, or with one element between them.
  if ((in.row == 1 || in.row == 2) && in.col != 1) {
    const auto load = [&](const BFloat16* p) __attribute__((always_inline)) {
      return in.row == 1 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                         : _mm512_cvtepi32_epi16(load_words_of_every_second(p));
    };
    const int64_t whole = cols / kCols * kCols;
    for (; r + kRows <= rows; r += kRows) {
      for (int64_t c = 0; c < whole; c += kCols) {
        __m256 block[kCols];
        TORCH_EXT_UNROLL
        for (int i = 0; i < kCols; ++i)
          block[i] = _mm256_castsi256_ps(load(in.data + (c + i) * in.col + r * in.row));
        transpose_block(block, reinterpret_cast<float*>(out + r / 2 * stride + c), stride);
      }
      for (int64_t tail = r; tail < r + kRows; tail += 2) scalar(tail, whole, cols);
    }
  }
  for (; r < rows; r += 2) {
    int64_t c = 0;
    if ((in.col == 1 || in.col == 2) && r + 1 < rows)
      for (; c + Vec<Pair>::kSize <= cols; c += Vec<Pair>::kSize) {
        const BFloat16* from = in.data + r * in.row + c * in.col;
        const auto wide = [&](const BFloat16* p) __attribute__((always_inline)) {
          return in.col == 1 ? _mm512_cvtepu16_epi32(
                                   _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
                             : load_words_of_every_second(p);
        };
        const __m512i high = _mm512_slli_epi32(wide(from + in.row), 16);
        Vec<Pair>{_mm512_or_si512(wide(from), high)}.store(out + r / 2 * stride + c);
      }
    scalar(r, c, cols);
  }
}

template <>
inline Broadcast<Pair> pack_left<Pair>(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                                       int64_t cols, Pair* buffer) {
  const auto in = at<BFloat16>(x, offset, row);
  const bool aligned = reinterpret_cast<uintptr_t>(in.data) % sizeof(Pair) == 0;
  if (in.col == 1 && in.row % 2 == 0 && cols % 2 == 0 && aligned)
    return {reinterpret_cast<const Pair*>(in.data), in.row / 2, 1};
  pair_rows({in.data, in.col, in.row}, cols, rows, buffer, rows);
  return {buffer, 1, rows};
}

template <>
inline Rows<const Pair> pack_right<Pair>(const Operand& x, int64_t offset, int64_t row,
                                         int64_t rows, int64_t cols, Pair* buffer) {
  const int64_t stride = round_up(cols, Vec<Pair>::kSize);
  pair_rows(at<BFloat16>(x, offset, row), rows, cols, buffer, stride);
  return {buffer, stride};
}

template <>
inline void pack_transposed<Pair>(const Operand& x, int64_t offset, int64_t row, int64_t rows,
                                  int64_t cols, Pair* out, int64_t stride) {
  const auto in = at<BFloat16>(x, offset, row);
  pair_rows({in.data, in.col, in.row}, cols, rows, out, stride);
}

// ---- tiles of weights, rounded to bfloat16 ----

template <>
inline Broadcast<Pair> factor_over_keys<Pair>(const float* tile, int64_t keys, int64_t width,
                                              Pair* buffer) {
  using V = Vec<float>;
  constexpr int kSize = V::kSize;
  alignas(64) static constexpr int16_t kInterleaved[2 * kSize] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kInterleaved);
  for (int64_t j = 0; j < keys; j += 2)
    for (int64_t i = 0; i < width; i += kSize) {
      const V first = V::load(tile + j * width + i);
      const V second = j + 1 < keys ? V::load(tile + (j + 1) * width + i) : V::fill(0);
      const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);
      Vec<Pair>{_mm512_permutexvar_epi16(order, rounded)}.store(buffer + j / 2 * width + i);
    }
  return {buffer, 1, width};
}

template <>
inline Broadcast<Pair> factor_over_queries<Pair>(const float* tile, int64_t keys, int64_t queries,
                                                 int64_t width, Pair* buffer) {
  using V = Vec<float>;
  const int64_t stride = width / 2;
  for (int64_t j = 0; j < keys; ++j) {
    Pair* row = buffer + j * stride;
    for (int64_t i = 0; i < width; i += V::kSize)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i / 2),
                          (__m256i)_mm512_cvtneps_pbh(V::load(tile + j * width + i).v));
    // What lies beyond the queries may be NaN, where 0 multiplies it.
    if (queries % 2 != 0) row[queries / 2].bits &= 0xffff;
  }
  return {buffer, stride, 1};
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE

#endif
