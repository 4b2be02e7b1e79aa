// Vectors of the accumulation type T, straight from and to memory of any dtype: 16-bit numbers are
// widened and rounded in registers.
#pragma once

#include "cpu/kernels/numbers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

TORCH_EXT_INLINE Vec<float> load_stored(const float* p) { return Vec<float>::load(p); }
TORCH_EXT_INLINE Vec<double> load_stored(const double* p) { return Vec<double>::load(p); }
TORCH_EXT_INLINE void store_rounded(Vec<float> x, float* p) { x.store(p); }
TORCH_EXT_INLINE void store_rounded(Vec<double> x, double* p) { x.store(p); }

#ifdef __AVX512F__

TORCH_EXT_INLINE Vec<float> widen_bfloat16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p) {
  return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

// Rounded as `narrow` does.
TORCH_EXT_INLINE void store_rounded(Vec<float> x, BFloat16* p) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(
                                                         nan, rounded, _mm512_set1_epi32(0x7fc0))));
}
TORCH_EXT_INLINE void store_rounded(Vec<float> x, Float16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

// The first `count` < kSize lanes, the others 0; nothing behind them is read.
TORCH_EXT_INLINE Vec<float> load_stored(const float* p, int64_t count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p)};
}
TORCH_EXT_INLINE Vec<double> load_stored(const double* p, int64_t count) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p)};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p, int64_t count) {
  return widen_bfloat16(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p, int64_t count) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p))};
}

#else  // AVX2 and F16C

TORCH_EXT_INLINE Vec<float> widen_bfloat16(__m128i bits) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p) {
  return widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

// Rounded as `narrow` does.
TORCH_EXT_INLINE void store_rounded(Vec<float> x, BFloat16* p) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256(chosen, 1)));
}
TORCH_EXT_INLINE void store_rounded(Vec<float> x, Float16* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

// `count` < 8 numbers of 16 bits, zeros behind them. AVX2 has no masked load of them: two
// overlapping loads of 8 or of 4 bytes, the second shifted so that it holds what the first lacks.
TORCH_EXT_INLINE __m128i load_bits(const void* p, int64_t count) {
  const char* bytes = static_cast<const char*>(p);
  uint64_t low = 0, high = 0;
  if (count >= 4) {
    __builtin_memcpy(&low, bytes, 8);
    if (count > 4) {
      __builtin_memcpy(&high, bytes + 2 * (count - 4), 8);
      high >>= 16 * (8 - count);
    }
  } else if (count >= 2) {
    uint32_t first, last;
    __builtin_memcpy(&first, bytes, 4);
    __builtin_memcpy(&last, bytes + 2 * (count - 2), 4);
    low = first | static_cast<uint64_t>(last) << (16 * (count - 2));
  } else {
    __builtin_memcpy(&low, bytes, 2);
  }
  return _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
}

// The first `count` of 1 … kSize - 1 lanes, the others 0; nothing behind them is read.
TORCH_EXT_INLINE Vec<float> load_stored(const float* p, int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {
      _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane))};
}
TORCH_EXT_INLINE Vec<double> load_stored(const double* p, int64_t count) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return {_mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane))};
}
TORCH_EXT_INLINE Vec<float> load_stored(const BFloat16* p, int64_t count) {
  return widen_bfloat16(load_bits(p, count));
}
TORCH_EXT_INLINE Vec<float> load_stored(const Float16* p, int64_t count) {
  return {_mm256_cvtph_ps(load_bits(p, count))};
}

#endif

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
