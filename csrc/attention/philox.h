// The random numbers of dropout: Philox4x32-10, a bijection of 128-bit counters keyed by the seed.
//
// Number n of head h, query i, key j is word j % 4 of philox(counter(h, i, j / 4), seed). It
// depends on nothing else: not on threads, tiles, the rest of the batch or the device. Source:
// Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
#pragma once

#include "attention/problem.h"

namespace torch_ext {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxStep0 = 0x9E3779B9, kPhiloxStep1 = 0xBB67AE85;

template <class Word>
struct PhiloxState {
  Word word[4];
};
using PhiloxWords = PhiloxState<uint32_t>;

// The product of two words, and its halves. The same for vectors of words is in cpu/kernels.
TORCH_EXT_INLINE uint64_t wide_product(uint32_t a, uint32_t b) { return uint64_t{a} * b; }
TORCH_EXT_INLINE uint32_t high_half(uint64_t product) {
  return static_cast<uint32_t>(product >> 32);
}
TORCH_EXT_INLINE uint32_t low_half(uint64_t product) { return static_cast<uint32_t>(product); }

// Rounds on words a, b, c, d, each a scalar or a vector: what only scalars go into stays one, and
// what does not change from one counter to the next is left to the compiler to compute once.
template <int kRounds, class A, class B, class C, class D, class Key>
TORCH_EXT_INLINE auto philox_rounds(A a, B b, C c, D d, Key key0, Key key1) {
  const auto product0 = wide_product(kPhiloxMultiplier0, a);
  const auto product1 = wide_product(kPhiloxMultiplier1, c);
  const auto next_a = high_half(product1) ^ (b ^ key0);
  const auto next_c = high_half(product0) ^ (d ^ key1);
  const auto next_b = low_half(product1);
  const auto next_d = low_half(product0);
  if constexpr (kRounds == 1)
    return PhiloxState<A>{{next_a, next_b, next_c, next_d}};
  else
    return philox_rounds<kRounds - 1>(next_a, next_b, next_c, next_d, key0 + kPhiloxStep0,
                                      key1 + kPhiloxStep1);
}
TORCH_EXT_INLINE PhiloxWords philox(const PhiloxWords& counter, uint32_t key0, uint32_t key1) {
  return philox_rounds<kPhiloxRounds>(counter.word[0], counter.word[1], counter.word[2],
                                      counter.word[3], key0, key1);
}

// The counter shared by keys 4 block … 4 block + 3. Positions beyond 32 bits go to the last word.
TORCH_EXT_INLINE PhiloxWords dropout_counter(int64_t head, int64_t query, int64_t block) {
  return {{static_cast<uint32_t>(query), static_cast<uint32_t>(block), static_cast<uint32_t>(head),
           static_cast<uint32_t>((query >> 32) ^ (block >> 32 << 16))}};
}

// A weight is kept iff its number is at least this. In steps of 2^-32; the largest step keeps one
// weight in 2^32.
TORCH_EXT_INLINE uint32_t dropout_threshold(double p) {
  const double scaled = p * 4294967296.0 + 0.5;
  return scaled >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(scaled);
}

TORCH_EXT_INLINE bool dropout_keeps(uint64_t seed, int64_t head, int64_t query, int64_t key,
                                    uint32_t threshold) {
  const PhiloxWords words = philox(dropout_counter(head, query, key / 4),
                                   static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return words.word[key % 4] >= threshold;
}

}  // namespace torch_ext
