// Vectors of 32-bit words, with the operations of Philox (attention/philox.h).
#pragma once

#include "cpu/kernels/vec.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

#ifdef __AVX512F__

// Words in the low halves of 64-bit lanes; what the high halves hold is no matter.
struct WordLanes {
  static constexpr int kSize = 8;
  __m512i v;
  static TORCH_EXT_INLINE WordLanes fill(uint32_t x) { return {_mm512_set1_epi64(x)}; }
  // x, x + 1, x + 4, x + 5, x + 8, …
  static TORCH_EXT_INLINE WordLanes count_pairs(uint32_t x) {
    return {_mm512_add_epi64(fill(x).v, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13))};
  }
};
TORCH_EXT_INLINE WordLanes wide_product(uint32_t a, WordLanes b) {
  return {_mm512_mul_epu32(WordLanes::fill(a).v, b.v)};
}
TORCH_EXT_INLINE WordLanes high_half(WordLanes product) {
  return {_mm512_srli_epi64(product.v, 32)};
}
// Bit i: word i is at least `least`. Words 0, 1, 4, 5, … are in `first`, 2, 3, 6, 7, … in `second`.
TORCH_EXT_INLINE __mmask16 at_least(WordLanes first, WordLanes second, uint32_t least) {
  const __m512 words =
      _mm512_shuffle_ps(_mm512_castsi512_ps(first.v), _mm512_castsi512_ps(second.v), 0x88);
  return _mm512_cmpge_epu32_mask(_mm512_castps_si512(words),
                                 _mm512_set1_epi32(static_cast<int>(least)));
}
// out[i] = x there, else 0.
TORCH_EXT_INLINE void store_where_at_least(WordLanes first, WordLanes second, uint32_t least,
                                           float x, float* out) {
  _mm512_storeu_ps(out, _mm512_maskz_mov_ps(at_least(first, second, least), _mm512_set1_ps(x)));
}
TORCH_EXT_INLINE void store_where_at_least(WordLanes first, WordLanes second, uint32_t least,
                                           double x, double* out) {
  const uint32_t keep = at_least(first, second, least);
  const __m512d kept = _mm512_set1_pd(x);
  _mm512_storeu_pd(out, _mm512_maskz_mov_pd(static_cast<__mmask8>(keep), kept));
  _mm512_storeu_pd(out + 8, _mm512_maskz_mov_pd(static_cast<__mmask8>(keep >> 8), kept));
}

#else  // AVX2

// Words in the low halves of 64-bit lanes; what the high halves hold is no matter.
struct WordLanes {
  static constexpr int kSize = 4;
  __m256i v;
  static TORCH_EXT_INLINE WordLanes fill(uint32_t x) { return {_mm256_set1_epi64x(x)}; }
  // x, x + 1, x + 4, x + 5
  static TORCH_EXT_INLINE WordLanes count_pairs(uint32_t x) {
    return {_mm256_add_epi64(fill(x).v, _mm256_setr_epi64x(0, 1, 4, 5))};
  }
};
TORCH_EXT_INLINE WordLanes wide_product(uint32_t a, WordLanes b) {
  return {_mm256_mul_epu32(WordLanes::fill(a).v, b.v)};
}
TORCH_EXT_INLINE WordLanes high_half(WordLanes product) {
  return {_mm256_srli_epi64(product.v, 32)};
}
// All ones where word i is at least `least`, else 0. Words 0, 1, 4, 5 are in `first`, 2, 3, 6, 7 in
// `second`.
TORCH_EXT_INLINE __m256i at_least(WordLanes first, WordLanes second, uint32_t least) {
  const __m256i words = _mm256_castps_si256(
      _mm256_shuffle_ps(_mm256_castsi256_ps(first.v), _mm256_castsi256_ps(second.v), 0x88));
  const __m256i bound = _mm256_set1_epi32(static_cast<int>(least));
  return _mm256_cmpeq_epi32(_mm256_max_epu32(words, bound), words);
}
// out[i] = x there, else 0.
TORCH_EXT_INLINE void store_where_at_least(WordLanes first, WordLanes second, uint32_t least,
                                           float x, float* out) {
  const __m256i keep = at_least(first, second, least);
  _mm256_storeu_ps(out, _mm256_and_ps(_mm256_castsi256_ps(keep), _mm256_set1_ps(x)));
}
TORCH_EXT_INLINE void store_where_at_least(WordLanes first, WordLanes second, uint32_t least,
                                           double x, double* out) {
  const __m256i keep = at_least(first, second, least);
  const auto store = [&](__m128i half, double* to) {
    const __m256d mask = _mm256_castsi256_pd(_mm256_cvtepi32_epi64(half));
    _mm256_storeu_pd(to, _mm256_and_pd(mask, _mm256_set1_pd(x)));
  };
  store(_mm256_castsi256_si128(keep), out);
  store(_mm256_extracti128_si256(keep, 1), out + 4);
}

#endif

TORCH_EXT_INLINE WordLanes low_half(WordLanes product) { return product; }
// a ^ (b ^ c) is two instructions with AVX2, and the compiler must not make it (a ^ b) ^ c where a
// is the one that is waited for: xor_ps hides from it what this is.
TORCH_EXT_INLINE WordLanes operator^(WordLanes a, WordLanes b) {
#ifdef __AVX512F__
  return {a.v ^ b.v};
#else
  return {_mm256_castps_si256(_mm256_xor_ps(_mm256_castsi256_ps(a.v), _mm256_castsi256_ps(b.v)))};
#endif
}
TORCH_EXT_INLINE WordLanes operator^(WordLanes a, uint32_t b) { return a ^ WordLanes::fill(b); }
TORCH_EXT_INLINE WordLanes operator^(uint32_t a, WordLanes b) { return b ^ a; }

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
