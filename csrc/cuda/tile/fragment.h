// A warp's part of a tile of scores or of an output, spread over the registers of its lanes.
//
// It has 16 rows. As in the accumulators of mma.m16n8, lane l holds, of every 8 columns, rows l / 4
// and l / 4 + 8 and columns 2 (l % 4) and the next: four numbers, row by row. So the four lanes of
// a quad share their rows, and scores become the left factor of the next product without leaving
// their registers.
#pragma once

#include <cmath>

#include "cuda/tile/element.h"

namespace torch_ext::cuda {

template <class T, int kColumns>
struct Fragment {
  static constexpr int kEights = kColumns / 8;
  T x[kEights][4];

  TORCH_EXT_DEVICE void clear() {
    TORCH_EXT_UNROLL
    for (int n = 0; n < kEights; ++n) TORCH_EXT_UNROLL
    for (int c = 0; c < 4; ++c) x[n][c] = 0;
  }
};

// The two rows of a lane, `half` 0 or 1, counted from the first row of the warp.
TORCH_EXT_DEVICE int fragment_row(int half) { return 8 * half + lane_index() / 4; }

// Columns of a lane in a fragment of scores: two of every eight, `pair` 0 or 1.
TORCH_EXT_DEVICE int score_column(int n, int pair) { return 8 * n + 2 * (lane_index() % 4) + pair; }

// Columns of a lane in a fragment of an output. In float32 a lane holds four neighbours of every
// 16, so that it reads 16 bytes at a time.
template <class E>
TORCH_EXT_DEVICE int output_column(int n, int pair) {
  if constexpr (sizeof(E) == 4) return 16 * (n / 2) + 4 * (lane_index() % 4) + 2 * (n % 2) + pair;
  return score_column(n, pair);
}

// use(entry) for the entries of a lane, and for those in one of its rows.
template <class T, int kColumns, class Use>
TORCH_EXT_DEVICE void for_each_of_row(Fragment<T, kColumns>& x, int half, const Use& use) {
  TORCH_EXT_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) TORCH_EXT_UNROLL
  for (int pair = 0; pair < 2; ++pair) use(x.x[n][2 * half + pair]);
}
template <class T, int kColumns, class Use>
TORCH_EXT_DEVICE void for_each_entry(Fragment<T, kColumns>& x, const Use& use) {
  TORCH_EXT_UNROLL
  for (int half = 0; half < 2; ++half) for_each_of_row(x, half, use);
}

// use(n, c) for the entries of a lane, in a loop that stays one: what it indexes lies in local
// memory.
template <int kColumns, class Use>
TORCH_EXT_DEVICE void for_each_entry_rolled(const Use& use) {
  TORCH_EXT_KEEP_LOOP
  for (int i = 0; i < kColumns / 2; ++i) use(i / 4, i % 4);
}

// Which entries of a fragment of scores are visible.
struct VisibleBits {
  uint32_t x = 0;  // bit 4 n + c

  TORCH_EXT_DEVICE bool get(int n, int c) const { return x >> (4 * n + c) & 1; }
  TORCH_EXT_DEVICE void set(int n, int c, bool is_visible) {
    if (is_visible) x |= 1u << (4 * n + c);
  }
};

// Whether no entry of this lane is inf or NaN.
template <class T, int kColumns>
TORCH_EXT_DEVICE bool all_finite(const Fragment<T, kColumns>& x) {
  bool finite = true;
  TORCH_EXT_UNROLL
  for (int n = 0; n < kColumns / 8; ++n) TORCH_EXT_UNROLL
  for (int c = 0; c < 4; ++c) finite &= std::isfinite(x.x[n][c]);
  return finite;
}

// The sum, or the largest, of what the four lanes of a quad hold.
template <class T>
TORCH_EXT_DEVICE T quad_sum(T x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
template <class T>
TORCH_EXT_DEVICE T larger_of(T a, T b) {  // of a number and NaN: the number
  return b > a || a != a ? b : a;
}
template <class T>
TORCH_EXT_DEVICE T quad_max(T x) {
  x = larger_of(x, shuffle_xor(x, 1));
  return larger_of(x, shuffle_xor(x, 2));
}

}  // namespace torch_ext::cuda
