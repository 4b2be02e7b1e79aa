// A square block in AVX registers, the unit of transposition: 8 x 8 floats or 4 x 4 doubles,
// widened as `widen` does.
#pragma once

#include "cpu/kernels/primitives/numbers.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T>
constexpr int kBlock = 32 / sizeof(T);

TORCH_EXT_INLINE __m256 load_block_row(const float* p, float) { return _mm256_loadu_ps(p); }
TORCH_EXT_INLINE __m256d load_block_row(const double* p, double) { return _mm256_loadu_pd(p); }
TORCH_EXT_INLINE __m256 load_block_row(const BFloat16* p, float) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
TORCH_EXT_INLINE __m256 load_block_row(const Float16* p, float) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TORCH_EXT_INLINE __m256 load_block_row(const bool* p, float) {
  const __m256i bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, _mm256_setzero_si256())),
                       _mm256_set1_ps(-kInfinity<float>));
}
TORCH_EXT_INLINE __m256d load_block_row(const bool* p, double) {
  int32_t bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  const __m256i bits = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
  return _mm256_and_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(bits, _mm256_setzero_si256())),
                       _mm256_set1_pd(-kInfinity<double>));
}

// p[0], p[2], …: elements of a row that lie every second place. Nothing behind the last is read.
TORCH_EXT_INLINE __m256 load_every_second(const float* p, float) {
  const __m256 x = _mm256_shuffle_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 7), 0xd8);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8));
}
TORCH_EXT_INLINE __m256d load_every_second(const double* p, double) {
  const __m256d x = _mm256_shuffle_pd(_mm256_loadu_pd(p), _mm256_loadu_pd(p + 3), 0xa);
  return _mm256_permute4x64_pd(x, 0xd8);
}
TORCH_EXT_INLINE __m256 load_every_second(const BFloat16* p, float) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 7));
  const __m256i x = _mm256_set_m128i(_mm_srli_epi32(high, 16), low);
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
TORCH_EXT_INLINE __m256 load_every_second(const Float16* p, float) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 7));
  return _mm256_cvtph_ps(
      _mm_packus_epi32(_mm_and_si128(low, _mm_set1_epi32(0xffff)), _mm_srli_epi32(high, 16)));
}

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

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
