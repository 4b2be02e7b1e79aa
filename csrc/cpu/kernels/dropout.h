// The keep mask of dropout for a tile, regenerated from seed and position.
#pragma once

#include "attention/philox.h"
#include "cpu/kernels/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// z (keys x width): 1 / (1 - p) where the weight is kept, 0 where it is dropped. t.key is a
// multiple of 4, so that the four words of a counter belong to four rows of the tile.
template <class T>
void dropout_tile(const Problem& p, const TileRange& t, T* z) {
  using W = WordLanes;
  constexpr int kLanes = 2 * W::kSize;
  const auto seed = static_cast<uint64_t>(
      static_cast<const int64_t*>(p.seed.data)[head_offset(p, p.seed, t.head)]);
  const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  const int64_t head = t.head % p.leading_sizes[p.leading_dims - 1];
  const uint32_t threshold = dropout_threshold(p.dropout_p);
  const T kept = static_cast<T>(1 / (1 - p.dropout_p));
  for (int64_t j = 0; j < t.keys; j += 4) {
    const int64_t rows = smaller(4, t.keys - j);
    for (int64_t i = 0; i < t.width; i += kLanes) {
      // Counters of even and of odd queries. They differ in the first word alone: tiles start at
      // multiples of 16.
      const PhiloxWords first = dropout_counter(head, t.query + i, (t.key + j) / 4);
      const auto random = [&](uint32_t query) __attribute__((always_inline)) {
        return philox(
            PhiloxState<W>{{W::count_by_two(first.word[0] + query), W::fill(first.word[1]),
                            W::fill(first.word[2]), W::fill(first.word[3])}},
            key0, key1);
      };
      const PhiloxState<W> even = random(0), odd = random(1);
      uint32_t words[4][kLanes];
      TORCH_EXT_UNROLL
      for (int k = 0; k < 4; ++k) store_in_turn(even.word[k], odd.word[k], words[k]);
      const int64_t lanes = smaller(kLanes, t.width - i);
      for (int64_t k = 0; k < rows; ++k)
        for (int64_t lane = 0; lane < lanes; ++lane)
          z[(j + k) * t.width + i + lane] = words[k][lane] >= threshold ? kept : T(0);
    }
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
