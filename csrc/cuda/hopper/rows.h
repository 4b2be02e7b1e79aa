// The rows of an accumulator that a thread of a consuming warpgroup has.
//
// A thread shares two rows with the three other lanes of its quad: r = 0 is row lane / 4 of the
// warp's 16, r = 1 the one 8 below. Element 4 n + 2 r + c of an accumulator belongs to row r and
// column 8 n + 2 (lane % 4) + c.
#pragma once

#include <cmath>

#include "cuda/hopper/schedule.h"
#include "cuda/hopper/warpgroup.h"
#include "cuda/primitives/numbers.h"

namespace torch_ext::cuda::hopper {

struct alignas(16) Words {
  uint32_t x[4];
};

constexpr float kNoScore = -__builtin_huge_valf();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f, kLn2Low = -1.904654299957e-9f;  // in two parts

// The sum over, or the largest in, the four lanes of a quad.
TORCH_EXT_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
TORCH_EXT_DEVICE float quad_max(float x) {
  x = std::fmax(x, shuffle_xor(x, 1));
  return std::fmax(x, shuffle_xor(x, 2));
}

// The own rows of a warpgroup in a task, and what all of them see of the other side.
struct WarpgroupRows {
  int first = 0;
  Range seen_by_all{};

  TORCH_EXT_DEVICE void begin(const Visibility& visibility, int first_row) {
    first = first_row;
    const int last = first + kWarpgroupRows - 1, length = visibility.own_length;
    seen_by_all = visibility.to_all(first, last < length ? last : length - 1);
  }
  // The first of this thread's two; the other is 8 below.
  TORCH_EXT_DEVICE int of_thread() const { return of_warp() + lane() / 4; }
  TORCH_EXT_DEVICE int of_warp() const { return first + warp() * 16; }
  // Whether all see positions begin … end - 1, which exist.
  TORCH_EXT_DEVICE bool see_all(int begin, int end) const {
    return begin >= seen_by_all.begin && end <= seen_by_all.end;
  }
};

// S <- -inf where row `row` + 8 r does not see first + column.
template <int kCount>
TORCH_EXT_DEVICE void hide(float (&s)[kCount], const Visibility& visibility, int row, int first) {
  const int column = first + lane() % 4 * 2;
  TORCH_EXT_UNROLL
  for (int r = 0; r < 2; ++r) {
    const Range seen = visibility.to_any(row + 8 * r, row + 8 * r);
    const int begin = seen.begin - column, end = seen.end - column;
    TORCH_EXT_UNROLL
    for (int i = 2 * r; i < kCount; i += 4) {
      TORCH_EXT_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int at = i / 4 * 8 + c;
        s[i + c] = at >= begin && at < end ? s[i + c] : kNoScore;
      }
    }
  }
}

// X in 16 bits, as the left operand of a product: the accumulator of 16 columns has its layout.
template <class E, int kCount>
TORCH_EXT_DEVICE void pack_all(uint32_t (&packed)[kCount / 8][4], const float (&x)[kCount]) {
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; i += 2) packed[i / 8][i / 2 % 4] = pack<E>(x[i], x[i + 1]);
}

// From here on a score in powers of two is rounded too coarsely for its weight, were it subtracted
// after rounding. Rows that have such scores are computed one by one (exact_row.h).
constexpr float kLargestScore = 8192;

// Whether the warp's rows are finite. Products of tiles multiply what is hidden by 0, which inf and
// NaN survive; rows that are not finite are computed anew without it (exact_row.h).
template <int kCount>
TORCH_EXT_DEVICE bool warp_finite(const float (&x)[kCount]) {
  float zero = 0;
  TORCH_EXT_UNROLL
  for (int i = 0; i < kCount; ++i) zero = std::fma(x[i], 0.0f, zero);
  return !warp_any(zero != 0);
}

// Words x[k] of the lanes of a quad change places: lane t's become the x[t] of lanes k.
TORCH_EXT_DEVICE void transpose_quad(uint32_t (&x)[4]) {
  TORCH_EXT_UNROLL
  for (int mask = 1; mask <= 2; mask *= 2) {
    const bool is_upper = (lane() & mask) != 0;
    TORCH_EXT_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (i & mask) continue;
      uint32_t &low = x[i], &high = x[i | mask];
      const uint32_t received = shuffle_xor(is_upper ? low : high, mask);
      low = is_upper ? received : low;
      high = is_upper ? high : received;
    }
  }
}

// Stores `factor` times row r of X at `row` unless it is null, 8 columns at once: those of
// 8 n … 8 n + 7 are made the lane n % 4's.
template <class E, int kCount>
TORCH_EXT_DEVICE void store_row(E* row, const float (&x)[kCount], int r, float factor) {
  TORCH_EXT_UNROLL
  for (int column = 0; column < 2 * kCount; column += 32) {
    Words words;
    TORCH_EXT_UNROLL
    for (int n = 0; n < 4; ++n) {
      const float* const pair = x + column / 2 + 4 * n + 2 * r;
      words.x[n] = pack<E>(pair[0] * factor, pair[1] * factor);
    }
    transpose_quad(words.x);
    if (row != nullptr) *reinterpret_cast<Words*>(row + column + lane() % 4 * 8) = words;
  }
}

}  // namespace torch_ext::cuda::hopper
