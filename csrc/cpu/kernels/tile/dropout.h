// The keep mask of dropout for a tile or a row, regenerated from seed and position: the words of
// Philox (attention/philox.h) for many entries at a time.
#pragma once

#include "attention/philox.h"
#include "cpu/kernels/tile/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// ---- vectors of 32-bit words, with the operations of Philox ----

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

// ---- the mask ----

// Which weights of a head are kept: random numbers of two vectors of counters at a time.
template <class T>
class HeadDropout {
  using W = WordLanes;

 public:
  static constexpr int kLanes = 2 * W::kSize;  // counters

  TORCH_EXT_INLINE HeadDropout(const Problem& p, int64_t head)
      : head_(head % p.leading_sizes[p.leading_dims - 1]),
        threshold_(dropout_threshold(p.dropout_p)),
        kept_(static_cast<T>(1 / (1 - p.dropout_p))) {
    const uint64_t seed = static_cast<uint64_t>(
        static_cast<const int64_t*>(p.seed.data)[head_offset(p, p.seed, head)]);
    key0_ = static_cast<uint32_t>(seed);
    key1_ = static_cast<uint32_t>(seed >> 32);
    for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
      keys_[round][0] = W::fill(key0_ + round * kPhiloxStep0);
      keys_[round][1] = W::fill(key1_ + round * kPhiloxStep1);
    }
  }

  TORCH_EXT_INLINE PhiloxWords counter(int64_t query, int64_t key) const {
    return dropout_counter(head_, query, key / 4);
  }

  // z of four keys, `stride` apart, for the queries of `first` and those that follow it.
  TORCH_EXT_INLINE void store_queries(const PhiloxWords& first, T* z, int64_t stride) const {
    const W queries[2] = {W::count_pairs(first.word[0]), W::count_pairs(first.word[0] + 2)};
    const uint32_t blocks[2] = {first.word[1], first.word[1]};
    store<3>(queries, blocks, first, z, stride);
  }

  // z of a query for the keys of `first` and of the blocks of four that follow it: those with the
  // same place in their block lie side by side, kLanes of them.
  TORCH_EXT_INLINE void store_blocks(const PhiloxWords& first, T* z) const {
    const uint32_t queries[2] = {first.word[0], first.word[0]};
    const W blocks[2] = {W::count_pairs(first.word[1]), W::count_pairs(first.word[1] + 2)};
    store<4>(queries, blocks, first, z, kLanes);
  }

 private:
  // All four words are vectors after kMixed rounds. The steps of a counter wait for each other, so
  // the two vectors take them in turn.
  template <int kMixed, class A, class B>
  TORCH_EXT_INLINE void store(const A (&queries)[2], const B (&blocks)[2], const PhiloxWords& first,
                              T* z, int64_t stride) const {
    PhiloxState<W> x[2];
    TORCH_EXT_UNROLL
    for (int s = 0; s < 2; ++s)
      x[s] =
          philox_rounds<kMixed>(queries[s], blocks[s], first.word[2], first.word[3], key0_, key1_);
    TORCH_EXT_UNROLL
    for (int round = kMixed; round < kPhiloxRounds; ++round) {
      TORCH_EXT_UNROLL
      for (int s = 0; s < 2; ++s)
        x[s] = philox_rounds<1>(x[s].word[0], x[s].word[1], x[s].word[2], x[s].word[3],
                                keys_[round][0], keys_[round][1]);
    }
    TORCH_EXT_UNROLL
    for (int k = 0; k < 4; ++k)
      store_where_at_least(x[0].word[k], x[1].word[k], threshold_, kept_, z + k * stride);
  }

  int64_t head_;
  uint32_t threshold_, key0_, key1_;
  T kept_;
  W keys_[kPhiloxRounds][2];
};

// Calls use(begin, end) for parts of `count` keys from `key` on, which is a multiple of 4: within
// one, counters of a query differ in the second word alone.
template <class Use>
TORCH_EXT_INLINE void for_each_wrap(int64_t key, int64_t count, const Use& use) {
  constexpr int64_t kWrap = int64_t{4} << 32;
  for (int64_t begin = 0, end; begin < count; begin = end) {
    end = smaller(count, begin + kWrap - (key + begin) % kWrap);
    use(begin, end);
  }
}

// z (keys x width): 1 / (1 - p) where the weight is kept, 0 where it is dropped. t.key is a
// multiple of 4, so that the four words of a counter belong to four rows of the tile, and t.query
// of 16, so that counters differ in the first word alone from lane to lane.
template <class T>
void dropout_tile(const Problem& p, const TileRange& t, T* z) {
  constexpr int64_t kLanes = HeadDropout<T>::kLanes;
  const HeadDropout<T> head(p, t.head);
  // Copies, because stores to the tile might change what lies in memory.
  const int64_t width = t.width;
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t lanes = smaller(kLanes, width - i);
    for_each_wrap(t.key, t.keys, [&](int64_t begin, int64_t end) {
      PhiloxWords first = head.counter(t.query + i, t.key + begin);
      for (int64_t j = begin; j < end; j += 4, ++first.word[1]) {
        T* const out = z + j * width + i;
        const int64_t rows = smaller(4, end - j);
        const bool is_whole = rows == 4 && lanes == kLanes;
        T part[4 * kLanes];
        head.store_queries(first, is_whole ? out : part, is_whole ? width : kLanes);
        for (int64_t k = 0; !is_whole && k < rows; ++k)
          for (int64_t lane = 0; lane < lanes; ++lane)
            out[k * width + lane] = part[k * kLanes + lane];
      }
    });
  }
}

// z (keys) of one query from `key` on, which is a multiple of 4.
template <class T>
void dropout_row(const HeadDropout<T>& head, int64_t query, int64_t key, int64_t keys, T* z) {
  constexpr int64_t kLanes = HeadDropout<T>::kLanes;
  for_each_wrap(key, keys, [&](int64_t begin, int64_t end) {
    PhiloxWords first = head.counter(query, key + begin);
    for (int64_t j = begin; j < end; j += 4 * kLanes, first.word[1] += kLanes) {
      T blocks[4 * kLanes];
      head.store_blocks(first, blocks);
      T* const out = z + j;
      const auto place = [&](int64_t count) __attribute__((always_inline)) {
        for (int64_t i = 0; i < count; ++i) out[i] = blocks[i % 4 * kLanes + i / 4];
      };
      end - j >= 4 * kLanes ? place(4 * kLanes) : place(end - j);
    }
  });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
