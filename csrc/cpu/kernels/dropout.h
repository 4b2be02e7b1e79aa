// The keep mask of dropout for a tile, regenerated from seed and position.
#pragma once

#include "attention/philox.h"
#include "cpu/kernels/scores.h"
#include "cpu/kernels/words.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// The random numbers of four keys for two vectors of queries.
class DropoutWords {
  using W = WordLanes;

 public:
  static constexpr int kLanes = 2 * W::kSize;  // queries

  explicit TORCH_EXT_INLINE DropoutWords(uint64_t seed)
      : key0_(static_cast<uint32_t>(seed)), key1_(static_cast<uint32_t>(seed >> 32)) {
    for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
      keys_[round][0] = W::fill(key0_ + round * kPhiloxStep0);
      keys_[round][1] = W::fill(key1_ + round * kPhiloxStep1);
    }
  }

  // Counters begin with `query`, then query + 1, … from lane to lane, as store_where_at_least takes
  // them. The steps of a counter wait for each other, so the two vectors take them in turn.
  TORCH_EXT_INLINE void generate(uint32_t query, uint32_t block, uint32_t head, uint32_t far,
                                 PhiloxState<W> (&x)[2]) const {
    constexpr int kMixed = 3;  // until all four words are vectors
    TORCH_EXT_UNROLL
    for (uint32_t s = 0; s < 2; ++s)
      x[s] = philox_rounds<kMixed>(W::count_pairs(query + 2 * s), block, head, far, key0_, key1_);
    TORCH_EXT_UNROLL
    for (int round = kMixed; round < kPhiloxRounds; ++round) {
      TORCH_EXT_UNROLL
      for (int s = 0; s < 2; ++s)
        x[s] = philox_rounds<1>(x[s].word[0], x[s].word[1], x[s].word[2], x[s].word[3],
                                keys_[round][0], keys_[round][1]);
    }
  }

 private:
  uint32_t key0_, key1_;
  W keys_[kPhiloxRounds][2];
};

// z (keys x width): 1 / (1 - p) where the weight is kept, 0 where it is dropped. t.key is a
// multiple of 4, so that the four words of a counter belong to four rows of the tile.
template <class T>
void dropout_tile(const Problem& p, const TileRange& t, T* z) {
  constexpr int64_t kLanes = DropoutWords::kLanes;
  const DropoutWords words(static_cast<uint64_t>(
      static_cast<const int64_t*>(p.seed.data)[head_offset(p, p.seed, t.head)]));
  const int64_t head = t.head % p.leading_sizes[p.leading_dims - 1];
  const uint32_t threshold = dropout_threshold(p.dropout_p);
  const T kept = static_cast<T>(1 / (1 - p.dropout_p));
  // Copies, because stores to the tile might change what lies in memory.
  const int64_t keys = t.keys, width = t.width;
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t lanes = smaller(kLanes, width - i);
    for (int64_t begin = 0, end; begin < keys; begin = end) {
      // Tiles start at multiples of 16 queries: counters differ in the first word from lane to
      // lane, and up to a multiple of kWrap in the second from key to key.
      constexpr int64_t kWrap = int64_t{4} << 32;
      end = smaller(keys, begin + kWrap - (t.key + begin) % kWrap);
      PhiloxWords first = dropout_counter(head, t.query + i, (t.key + begin) / 4);
      for (int64_t j = begin; j < end; j += 4, ++first.word[1]) {
        PhiloxState<WordLanes> x[2];
        words.generate(first.word[0], first.word[1], first.word[2], first.word[3], x);
        T* const out = z + j * width + i;
        const auto store = [&](T* to, int64_t stride) __attribute__((always_inline)) {
          TORCH_EXT_UNROLL
          for (int k = 0; k < 4; ++k)
            store_where_at_least(x[0].word[k], x[1].word[k], threshold, kept, to + k * stride);
        };
        const int64_t rows = smaller(4, end - j);
        if (rows == 4 && lanes == kLanes) {
          store(out, width);
          continue;
        }
        T part[4 * kLanes];
        store(part, kLanes);
        for (int64_t k = 0; k < rows; ++k)
          for (int64_t lane = 0; lane < lanes; ++lane)
            out[k * width + lane] = part[k * kLanes + lane];
      }
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
