// One tile of scores in the gradients: its products, and from them the terms of a kind.
#pragma once

#include "cuda/gradients/kinds.h"
#include "cuda/tile/dropout.h"
#include "cuda/tile/pipeline.h"
#include "cuda/tile/product.h"

namespace torch_ext::cuda {

struct GradientParameters {
  SecondOrderProblem problem;  // the first order has no direction
  void* rows;                  // RowArrays
  int64_t arrays;              // of a head in them
  void* slope_sums;            // (B H, N): sums of ds |distance|, where the slopes want a gradient
  int64_t tiles, slices;       // of the own side; of the result's columns
  bool has_options;            // has_score_options, or dropout
  bool keeps_own;              // pipeline.h

  template <class T>
  TORCH_EXT_INLINE RowArrays<T> row_arrays() const {
    return {static_cast<T*>(rows), problem.query_length, arrays};
  }
};

// Products of a tile: own rows down, the other side's across. A kind's a and b replace s and s_dot.
template <class T, int kColumns>
struct GradientFragments {
  Fragment<T, kColumns> s, dp, s_dot, dp_dot;

  TORCH_EXT_DEVICE void clear() {
    s.clear();
    dp.clear();
    s_dot.clear();
    dp_dot.clear();
  }
};

// What the direction adds to the tangent of a score:  b' - slope' |distance|
template <class T>
class DirectionTile {
 public:
  TORCH_EXT_DEVICE DirectionTile(const SecondOrderProblem& p, int64_t head, int64_t query,
                                 int64_t key)
      : bias_(p.direction.bias) {
    if (bias_)
      offset_ = head_offset(p, bias_, head) + query * bias_.row_stride + key * bias_.col_stride;
    const Operand& slopes = p.direction.slopes;
    if (slopes) slope_ = load<T>(slopes, head_offset(p, slopes, head));
  }
  TORCH_EXT_DEVICE T operator()(int row, int column, T distance) const {
    const T bias =
        bias_ ? load<T>(bias_, offset_ + row * bias_.row_stride + column * bias_.col_stride) : T(0);
    return slope_ == 0 ? bias : bias - slope_ * distance;
  }

 private:
  const Operand& bias_;
  int64_t offset_ = 0;
  T slope_ = 0;
};

// Where a tile lies, and the numbers of its rows of scores.
template <class T>
struct TilePlace {
  int64_t head, query, key;   // query head, first query and first key
  int first_row;              // the warp's, of the own side
  RowNumbers<T> own_rows[2];  // of a lane, where the own side is queries
};

// Products become the a and b of a kind, entry by entry; its sums grow.
template <class E, bool kSecond, bool kOwnsKeys, int kOwn>
class GradientTile {
  using T = AccumulateOf<E>;

 public:
  static constexpr int kColumns = kSecond ? kNarrowTile<E> : kTile<E>;
  using Fragments = GradientFragments<T, kColumns>;
  using Place = TilePlace<T>;

  TORCH_EXT_DEVICE GradientTile(const GradientParameters& x, const Place& place)
      : p_(x.problem),
        place_(place),
        scores_(p_, place.head, place.query, kOwnsKeys ? kColumns : kOwn, place.key,
                kOwnsKeys ? kOwn : kColumns),
        rows_(p_, x.row_arrays<T>(), place.head) {}

  // Without options: in registers. Returns whether every entry counts.
  template <Result kResult>
  TORCH_EXT_DEVICE bool plain(Fragments& x, T (&sums)[2][kRowSums]) const {
    const bool is_inside = scores_.is_inside();
    bool all_count = true;
    const T scale = static_cast<T>(p_.scale);
    TORCH_EXT_UNROLL
    for (int n = 0; n < kColumns / 8; ++n) TORCH_EXT_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      const int across = score_column(n, pair);
      RowNumbers<T> numbers;
      if (kOwnsKeys && (is_inside || place_.query + across < p_.query_length))
        numbers = rows_.read(place_.query + across, arrays_read(kResult, kSecond));
      TORCH_EXT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int down = place_.first_row + fragment_row(half);
        Score<T> score;
        score.is_visible =
            is_inside || scores_.is_in_window(kOwnsKeys ? across : down, kOwnsKeys ? down : across);
        score.value = scale * x.s.x[n][2 * half + pair];
        if (!kOwnsKeys) numbers = place_.own_rows[half];
        score.is_visible &= numbers.lse != kInfinity<T>;
        all_count &= score.is_visible;
        use(kResult, score, 1, 0, numbers, x, n, 2 * half + pair, sums[half]);
      }
    }
    return all_count;
  }

  // With every option, and which entries are visible. Rolled, on copies in local memory, and one
  // for all results: it takes the compiler long.
  TORCH_EXT_DEVICE_FUNCTION void with_options(Result result, Fragments& x, VisibleBits& visible,
                                              T (&sums)[2][kRowSums]) const {
    const Dropout<T> dropout(p_, place_.head);
    const DirectionTile<T> direction(p_, place_.head, place_.query, place_.key);
    visible = {};
    for_each_entry_rolled<kColumns>([&](int n, int c) {
      const int down = place_.first_row + fragment_row(c / 2), across = score_column(n, c % 2);
      const int row = kOwnsKeys ? across : down, column = kOwnsKeys ? down : across;
      Score<T> score = scores_.score(row, column, x.s.x[n][c]);
      RowNumbers<T> numbers;
      if (score.is_visible) {
        if (kOwnsKeys)
          numbers = rows_.read(place_.query + row, arrays_read(result, kSecond));
        else
          numbers = place_.own_rows[c / 2];
        score.is_visible = numbers.lse != kInfinity<T>;
      }
      const T z = score.is_visible ? dropout(place_.query + row, place_.key + column) : T(0);
      const T extra = kSecond && score.is_visible ? direction(row, column, score.distance) : T(0);
      visible.set(n, c, score.is_visible);
      use(result, score, z, extra, numbers, x, n, c, sums[c / 2]);
    });
  }

 private:
  TORCH_EXT_DEVICE void use(Result result, const Score<T>& score, T z, T extra,
                            const RowNumbers<T>& numbers, Fragments& x, int n, int c,
                            T (&sums)[kRowSums]) const {
    Products<T> products{x.s.x[n][c], x.dp.x[n][c], x.s_dot.x[n][c], x.dp_dot.x[n][c]};
    T &a = x.s.x[n][c], &b = x.s_dot.x[n][c];
    if (score.is_visible)
      use_terms<kSecond>(result, terms_of<E, kSecond>(p_, score, z, extra, products, numbers), a, b,
                         sums);
    else
      a = b = 0;
  }

  const SecondOrderProblem& p_;
  const Place& place_;
  ScoreTile<T> scores_;
  RowReader<T> rows_;
};

}  // namespace torch_ext::cuda
