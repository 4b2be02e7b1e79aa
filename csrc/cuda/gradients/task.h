// What the kernels of the gradients share: a task that owns a tile of one side and walks over the
// tiles of the other, with the products of each.
//
// Own and other matrices by number, absent ones being zero:
//   queries' side  0 q  1 do  2 q'        keys' side  0 k  1 v  2 k'  3 v'
#pragma once

#include "cuda/gradients/tile.h"

namespace torch_ext::cuda {

template <class E, class K>
class GradientTask {
 protected:
  using T = AccumulateOf<E>;
  static constexpr bool kSecond = K::kSecond;

 public:
  static constexpr int kThreads = 128;
  static constexpr bool kOwnsKeys = K::kOwnsKeys;
  static constexpr int kOwn = kThreads / kWarpSize * 16;
  using Tile = GradientTile<E, kSecond, kOwnsKeys, kOwn>;
  static constexpr int kOther = Tile::kColumns;
  using Chunks = Pipeline<E, kOwn, kOther, kThreads>;

  // Places of the products (Pass).
  enum { kS, kDp, kSDot, kDpDot };

  // Chunks of the matrices that a task owns.
  static TORCH_EXT_INLINE int64_t own_chunks(const SecondOrderProblem& p) {
    const int64_t d = chunks_of<E>(p.head_size), e = chunks_of<E>(p.value_head_size);
    if (K::kOwnsKeys)
      return d + (p.direction.key ? d : 0) + (K::kNeedsDp ? e + (p.direction.value ? e : 0) : 0);
    return d + (p.direction.query ? d : 0) + (K::kNeedsDp && p.grad_output ? e : 0);
  }

  TORCH_EXT_DEVICE GradientTask(const GradientParameters& parameters, unsigned char* memory)
      : x_(parameters), p_(parameters.problem), chunks_(memory, parameters.keeps_own) {}

 protected:
  // The matrices of a task, and a slice of the result's columns that begins with chunk `slice`.
  // `head` is the first query head. By one thread.
  TORCH_EXT_DEVICE void describe(int64_t head, int first_chunk, int chunks) {
    TaskMatrices<E>& task = chunks_.task();
    task = {};
    const Direction& direction = p_.direction;
    const int64_t d = p_.head_size, e = p_.value_head_size;
    Matrix<E>* queries = K::kOwnsKeys ? task.other : task.own;
    Matrix<E>* keys = K::kOwnsKeys ? task.own : task.other;
    queries[0] = query_matrix<E>(p_, p_.query, head, d);
    keys[0] = key_matrix<E>(p_, p_.key, head, d);
    if (K::kNeedsDp || K::kResult == Result::kValueGradient)
      queries[1] = query_matrix<E>(p_, p_.grad_output, head, e);
    if (K::kNeedsDp || K::kResult == Result::kOutputTangent)
      keys[1] = key_matrix<E>(p_, p_.value, head, e);
    if (kSecond) {
      queries[2] = query_matrix<E>(p_, direction.query, head, d);
      keys[2] = key_matrix<E>(p_, direction.key, head, d);
      if (K::kNeedsDpDot || K::kResult == Result::kOutputTangent)
        keys[3] = key_matrix<E>(p_, direction.value, head, e);
    }
    task.add_product(kS, 0, 0);
    if (kSecond) {
      task.add_product(kSDot, 2, 0);
      task.add_product(kSDot, 0, 2);
    }
    if (K::kNeedsDp) task.add_product(kDp, 1, 1);
    if (K::kNeedsDpDot) task.add_product(kDpDot, K::kOwnsKeys ? 3 : 1, K::kOwnsKeys ? 1 : 3);
    if (!K::kHasMatrix) return;
    task.add_factor(0, K::kFactor, first_chunk, chunks);
    if (K::kFactorDot >= 0) task.add_factor(1, K::kFactorDot, first_chunk, chunks);
  }

  // The products of the next tile.
  TORCH_EXT_DEVICE void multiply_tile(typename Tile::Fragments& x) {
    x.clear();
    for (int n = chunks_.task().product_chunks; n > 0; --n) {
      const auto chunk = chunks_.next();
      const auto add_to = [&](Fragment<T, kOther>& out) {
        multiply_transposed<E>(out, chunk.own, warp_row(), chunk.other, chunk.columns);
      };
      if (K::kNeedsDp && chunk.place == kDp)
        add_to(x.dp);
      else if (kSecond && chunk.place == kSDot)
        add_to(x.s_dot);
      else if (K::kNeedsDpDot && chunk.place == kDpDot)
        add_to(x.dp_dot);
      else
        add_to(x.s);
    }
  }

  // The a and b of the kind.
  TORCH_EXT_DEVICE void compute(const typename Tile::Place& place, bool is_exact,
                                typename Tile::Fragments& x, VisibleBits& visible,
                                T (&sums)[2][kRowSums]) {
    if constexpr (K::kResult != Result::kBiasGradient) {  // a bias is an option
      if (!x_.has_options && !is_exact) {
        has_hidden_ |= !Tile(x_, place).template plain<K::kResult>(x, sums);
        return;
      }
    }
    has_hidden_ = true;
    // Copies, so that only they lie in local memory.
    const typename Tile::Place here = place;
    typename Tile::Fragments copy = x;
    VisibleBits bits;
    T row_sums[2][kRowSums];
    copy_sums(sums, row_sums);
    Tile(x_, here).with_options(K::kResult, copy, bits, row_sums);
    copy_sums(row_sums, sums);
    x.s = copy.s;
    x.s_dot = copy.s_dot;
    visible = bits;
  }

  // The numbers of this lane's rows, where it owns queries.
  TORCH_EXT_DEVICE void read_own_rows(typename Tile::Place& place) {
    const RowReader<T> rows(p_, x_.row_arrays<T>(), place.head);
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int64_t row = place.query + warp_row() + fragment_row(half);
      if (row < p_.query_length)
        place.own_rows[half] = rows.read(row, arrays_read(K::kResult, kSecond));
      else
        place.own_rows[half] = {};
    }
  }

  static TORCH_EXT_DEVICE void clear_sums(T (&sums)[2][kRowSums]) {
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) TORCH_EXT_UNROLL
    for (int n = 0; n < kRowSums; ++n) sums[half][n] = 0;
  }
  static TORCH_EXT_DEVICE int warp_row() { return warp_index() * 16; }
  static TORCH_EXT_DEVICE void copy_sums(const T (&from)[2][kRowSums], T (&to)[2][kRowSums]) {
    TORCH_EXT_UNROLL
    for (int half = 0; half < 2; ++half) TORCH_EXT_UNROLL
    for (int n = 0; n < sums_of(K::kResult); ++n) to[half][n] = from[half][n];
  }

  const GradientParameters& x_;
  const SecondOrderProblem& p_;
  Chunks chunks_;
  bool has_hidden_ = false;  // whether some entry of the task may be
};

}  // namespace torch_ext::cuda
