// The online softmax of the forward: the memory of a tile of queries, and what a tile of scores
// does to it.
#pragma once

#include "cpu/kernels/softmax/logsumexp.h"
#include "cpu/kernels/tile/visible_products.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class E>
struct ForwardScratch {
  using T = SumOf<E>;

  int64_t width;    // queries of a tile, in whole vectors
  int64_t columns;  // E in whole vectors
  int64_t depth;    // D in elements
  // Of one tile of queries, the first of the task; see tile().
  E* q;              // (D, width), transposed; or spare memory, with few keys
  T* o;              // (width, columns), not yet divided by row_sum
  T* row_max;        // (width) of the scores seen so far, but for kSlack
  T* row_sum;        // (width) of exp(s - row_max)
  bool* is_started;  // whether o holds anything yet
  bool* is_written;  // whether the output does
  // Shared by the tiles.
  T* scores;    // (keys, width): s, then p
  T* largest;   // (width) product of a column, where the score is the product times the scale
  T* additive;  // (keys, width)
  T* z;         // (keys, width), with dropout
  E* k;         // (keys, D), where key cannot be read in place
  E* v;         // (keys, columns), likewise
  E* weights;   // (keys, width): p where it is not read from the scores
  T* spare;     // for a tile of scores
  E* spare_v;   // (keys, columns)
  T* rescale;   // (width) what a new maximum does to earlier sums; at last 1 / row_sum
  int64_t bytes;

  ForwardScratch(const Problem& p, const Cut& cut, void* memory) {
    Scratch scratch(memory);
    width = cut.tile_width;
    columns = round_up(p.value_head_size, Vec<T>::kSize);
    depth = elements<E>(p.head_size);
    const int64_t keys = smaller(p.key_length, cut.tile_keys);
    q = scratch.take<E>(cut.task_tiles * round_up(depth, Vec<E>::kSize) * width);
    o = scratch.take<T>(cut.task_tiles * width * columns);
    row_max = scratch.take<T>(cut.task_tiles * width);
    row_sum = scratch.take<T>(cut.task_tiles * width);
    is_started = scratch.take<bool>(cut.task_tiles);
    is_written = scratch.take<bool>(cut.task_tiles);
    scores = scratch.take<T>(keys * width + kRowTail);
    largest = scratch.take<T>(width);
    additive = scratch.take<T>(keys * width);
    z = scratch.take<T>(p.dropout_p > 0 ? keys * width : 0);
    k = scratch.take<E>(keys * elements<E>(round_up(p.head_size, Vec<T>::kSize)));
    v = scratch.take<E>(elements<E>(keys) * columns);
    weights = scratch.take<E>(kTerms<E> > 1 ? elements<E>(keys) * width : 0);
    spare = scratch.take<T>(keys * width);
    spare_v = scratch.take<E>(elements<E>(keys) * columns);
    rescale = scratch.take<T>(width);
    bytes = scratch.used();
  }

  // The memory of one tile of queries of the task; its own `width` may be less.
  ForwardScratch tile(int64_t index, int64_t tile_width) const {
    ForwardScratch x = *this;
    x.q += index * round_up(depth, Vec<E>::kSize) * width;
    x.o += index * width * columns;
    x.row_max += index * width;
    x.row_sum += index * width;
    x.is_started += index;
    x.is_written += index;
    x.width = tile_width;
    return x;
  }
};

// use(j, Int<count>()) for keys j … j + count - 1 of [begin, end), four at a time and the last ones
// alone, so that four chains need not wait for each other: their latency would otherwise limit the
// loop.
template <class Use>
TORCH_EXT_INLINE void for_each_key(int64_t begin, int64_t end, const Use& use) {
  int64_t j = begin;
  for (; j + 4 <= end; j += 4) use(j, Int<4>());
  for (; j < end; ++j) use(j, Int<1>());
}

// How far a score may lie above m. The largest weights are then as exact as with the maximum
// itself: what s - m is rounded by grows with its size.
constexpr int kSlack = 1;

// The largest of the scores of keys [begin, end) of each of a vector of queries:
//   s <- softcap(c s) + b  unless that is c s alone, which is not worth storing.
template <bool kAdditive, bool kCapped, class E>
TORCH_EXT_INLINE Vec<SumOf<E>> largest_score(const ForwardScratch<E>& x, int64_t column,
                                             int64_t begin, int64_t end,
                                             const ScoreRule<SumOf<E>>& rule) {
  using V = Vec<SumOf<E>>;
  V u, largest = V::fill(-kInfinity<SumOf<E>>);
  for_each_key(begin, end, [&](int64_t first, auto count) __attribute__((always_inline)) {
    V score[count.value];
    TORCH_EXT_UNROLL
    for (int i = 0; i < count.value; ++i) {
      const int64_t at = (first + i) * x.width + column;
      const V b = kAdditive ? V::load(x.additive + at) : V::fill(0);
      score[i] = rule.template score<kAdditive, kCapped>(V::load(x.scores + at), b, &u);
      if constexpr (kAdditive || kCapped) score[i].store(x.scores + at);
    }
    if constexpr (count.value == 4)
      largest = max(max(max(score[0], score[1]), max(score[2], score[3])), largest);
    else
      largest = max(score[0], largest);
  });
  return largest;
}

// One step of the online softmax on a vector of queries, for `keys` scores each, of which the first
// `plain` have nothing added:
//   m' = max(m, max_j s),  p = exp(s - m'),  l <- l exp(m - m') + sum_j p
// m' = m where that is at most kSlack more: what was summed up then stays as it is. `has_largest`:
// whether the largest products are known already.
template <bool kCapped, class E>
TORCH_EXT_INLINE void softmax_column(const ForwardScratch<E>& x, int64_t column, int64_t plain,
                                     int64_t keys, const ScoreRule<SumOf<E>>& shared_rule,
                                     bool has_largest) {
  using T = SumOf<E>;
  using V = Vec<T>;
  // Copies, because stores to a tile might change what lies in memory.
  const ScoreRule<T> rule = shared_rule;
  const int64_t width = x.width;
  T* s = x.scores + column;
  const V old_max = V::load(x.row_max + column), zero = V::fill(0);
  const V largest = has_largest ? V::load(x.largest + column) * rule.scale
                                : max(largest_score<false, kCapped>(x, column, 0, plain, rule),
                                      largest_score<true, kCapped>(x, column, plain, keys, rule));
  V new_max = max(largest, old_max);
  new_max = if_less(old_max + V::fill(kSlack), new_max, new_max, old_max);
  // A row that has seen nothing yet keeps its maximum at -inf; 0 instead makes every exp(-inf - 0)
  // a 0.
  const V finite_max = if_equal(new_max, V::fill(-kInfinity<T>), zero, new_max);
  const V factor = exp(old_max - finite_max);
  V sum[4] = {zero, zero, zero, zero};
  const auto weigh = [&](int64_t begin, int64_t end, auto is_score) __attribute__((always_inline)) {
    for_each_key(begin, end, [&](int64_t first, auto count) __attribute__((always_inline)) {
      V p[count.value];
      TORCH_EXT_UNROLL
      for (int i = 0; i < count.value; ++i) {
        const V stored = V::load(s + (first + i) * width);
        p[i] = (is_score.value ? stored : stored * rule.scale) - finite_max;
      }
      exp_without_overflow(p);
      TORCH_EXT_UNROLL
      for (int i = 0; i < count.value; ++i) {
        p[i].store(s + (first + i) * width);
        sum[i] = sum[i] + p[i];
      }
    });
  };
  weigh(0, plain, Bool<kCapped>());
  weigh(plain, keys, Bool<true>());
  const V tile_sum = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  new_max.store(x.row_max + column);
  fma(V::load(x.row_sum + column), factor, tile_sum).store(x.row_sum + column);
  factor.store(x.rescale + column);
}

// o <- o exp(m - m'), row by row where the maximum has changed.
template <class E>
void rescale_output(const ForwardScratch<E>& x, int64_t queries) {
  using T = SumOf<E>;
  using V = Vec<T>;
  for (int64_t i = 0; i < queries; ++i) {
    if (x.rescale[i] == T(1)) continue;
    const V factor = V::fill(x.rescale[i]);
    T* row = x.o + i * x.columns;
    for (int64_t e = 0; e < x.columns; e += V::kSize) (V::load(row + e) * factor).store(row + e);
  }
}

// 1 / l, or 0 where l is 0.
template <class E>
void invert_sums(const ForwardScratch<E>& x) {
  using V = Vec<SumOf<E>>;
  const V zero = V::fill(0), one = V::fill(1);
  for (int64_t i = 0; i < x.width; i += V::kSize) {
    const V sum = V::load(x.row_sum + i);
    if_equal(sum, zero, zero, one / sum).store(x.rescale + i);
  }
}

// Where l is 0 so is o, though weights of 0 may have met inf or NaN.
template <class E>
void clear_unweighted(const ForwardScratch<E>& x, const TileRange& t, Rows<SumOf<E>> o) {
  for (int64_t i = 0; i < t.queries; ++i)
    if (x.row_sum[i] == 0) fill_zero(o.data + i * o.stride, x.columns);
}

// o / l
template <class E>
void finish_output(const ForwardProblem& p, const ForwardScratch<E>& x, const TileRange& t) {
  using T = SumOf<E>;
  if (!*x.is_started) fill_zero(x.o, t.queries * x.columns);
  clear_unweighted<E>(x, t, {x.o, x.columns});
  invert_sums(x);
  write_scaled_rows<T>(
      x.o, x.columns, t.queries, p.value_head_size, [&](int64_t i) { return x.rescale[i]; },
      p.output, head_offset(p, p.output, t.head), t.query);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
