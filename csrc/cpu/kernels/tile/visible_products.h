// The products of a tile that may be partly hidden.
//
// What a causal limit hides from whole steps of queries is left out of every product: of the
// scores, whose entries there stay as they were, and of the sums over keys or queries, where their
// weights would be 0. The terms that are left keep their order, so the bits are those of the whole
// product. Where nothing but such a limit changes scores, a step sees all of its first keys, and
// only at the edge, between those and the last that it sees, something is added to its scores.
#pragma once

#include "cpu/kernels/tile/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// ---- what a right limit of the window leaves of a tile ----

// Queries that such a limit is applied to together: a vector, or two.
constexpr int64_t kStep = 16;

// How many of the first keys of a tile queries [i, i + kStep) of it see, in whole steps.
TORCH_EXT_INLINE int64_t keys_seen(const Problem& p, const TileRange& t, int64_t i) {
  const int64_t last = t.query + smaller(i + kStep, t.queries) - 1;
  return smaller(t.keys, round_up(larger(0, last + p.offset + p.right + 1 - t.key), kStep));
}

// How many of the first keys, in whole steps, have nothing added to their scores with queries
// [i, i + kStep).
TORCH_EXT_INLINE int64_t plain_keys(const Problem& p, const TileRange& t, Visibility seen,
                                    int64_t i) {
  if (seen != Visibility::kEdge) return seen == Visibility::kAll ? t.keys : 0;
  const int64_t first = larger(0, t.query + i + p.offset + p.right + 1 - t.key);
  return smaller(t.keys, first / kStep * kStep);
}

// use(i, plain, end) for each vector of queries of a tile: [plain, end) are the keys that its step
// sees and has something added to.
template <class T, class Use>
TORCH_EXT_INLINE void for_each_column(const Problem& p, const TileRange& t, Visibility seen,
                                      const Use& use) {
  for (int64_t i = 0; i < t.width; i += Vec<T>::kSize) {
    const int64_t step = i / kStep * kStep;
    use(i, plain_keys(p, t, seen, step), keys_seen(p, t, step));
  }
}

// As additive_tile; but where a right limit alone hides, only the edge is written: keys [plain,
// end) of for_each_column.
template <class T>
Visibility additive_edge(const Problem& p, const TileRange& t, T* additive, T* spare) {
  if (!is_window_alone(p) || !is_inside_left(p, t) || is_inside_window(p, t))
    return additive_tile<T>(p, t, additive, spare);
  using V = Vec<T>;
  const V hidden = V::fill(-kInfinity<T>), zero = V::fill(0), one = V::fill(1);
  for_each_column<T>(p, t, Visibility::kEdge, [&](int64_t i, int64_t j, int64_t end) {
    const V query = V::fill(static_cast<T>(i)) + V::iota();
    V first = V::fill(static_cast<T>(t.key + j - t.query - p.offset - p.right));  // that sees key j
    for (; j < end; ++j, first = first + one)
      if_less(query, first, hidden, zero).store(additive + j * t.width + i);
  });
  return Visibility::kEdge;
}

// use(i, width, keys) for queries [i, i + width) of a tile that see its first `keys`.
template <class Use>
TORCH_EXT_INLINE void for_each_step_of_queries(const Problem& p, const TileRange& t,
                                               const Use& use) {
  for (int64_t i = 0, end; i < t.width; i = end) {
    const int64_t keys = keys_seen(p, t, i);
    for (end = i + kStep; end < t.width && keys_seen(p, t, end) == keys;) end += kStep;
    use(i, smaller(end, t.width) - i, keys);
  }
}

// use(j, keys, i) for keys [j, j + keys) of a tile that queries from i on see, t.width if none
// does.
template <class Use>
TORCH_EXT_INLINE void for_each_step_of_keys(const Problem& p, const TileRange& t, const Use& use) {
  int64_t i = 0;
  for (int64_t j = 0, end; j < t.keys; j = end) {
    while (i < t.width && keys_seen(p, t, i) <= j) i += kStep;
    end = i < t.width ? keys_seen(p, t, i) : t.keys;
    use(j, end - j, i);
  }
}

// out (keys x width) = or += A (keys x depth) B (depth x width), A of the keys, B of the queries.
// `largest`: that of Epilogue.
template <class E, bool kAccumulate>
void product_of_seen(const Problem& p, const TileRange& t, int64_t depth, Broadcast<E> a,
                     const E* b, SumOf<E>* out, Ahead* ahead, SumOf<E>* largest = nullptr) {
  for_each_step_of_queries(p, t, [&](int64_t i, int64_t width, int64_t keys) {
    tile_product<E, kAccumulate>(keys, width, depth, a, {b + i, t.width}, {out + i, t.width}, ahead,
                                 {nullptr, largest ? largest + i : nullptr});
  });
}

// ---- where hidden entries may meet inf or NaN ----

// `columns` is a whole number of vectors.
template <class E>
bool all_finite(Rows<const E> x, int64_t rows, int64_t columns) {
  if constexpr (kTerms<E> > 1) {
    bool finite = true;
    for (int64_t r = 0; r < rows && finite; ++r)
      finite = all_finite(x.data + r * x.stride, columns);
    return finite;
  } else {
    using V = Vec<E>;
    constexpr int kChains = 8;  // that do not wait for each other
    // A lane stays 0 unless some x * 0 is NaN.
    V zero[kChains];
    for (V& chain : zero) chain = V::fill(0);
    const auto add_rows = [&](int64_t r, auto count) __attribute__((always_inline)) {
      for (int64_t i = 0; i < columns; i += V::kSize) {
        TORCH_EXT_UNROLL
        for (int c = 0; c < count.value; ++c)
          zero[c] = fma(V::load(x.data + (r + c) * x.stride + i), V::fill(0), zero[c]);
      }
    };
    int64_t r = 0;
    for (; r + kChains <= rows; r += kChains) add_rows(r, Int<kChains>());
    for (; r < rows; ++r) add_rows(r, Int<1>());
    for (int c = 1; c < kChains; ++c) zero[0] = zero[0] + zero[c];
    return equal_lanes(zero[0], V::fill(0)) == (1u << V::kSize) - 1;
  }
}
template <class T>
bool all_finite(const T* row, int64_t count) {
  return all_finite<T>({row, Vec<T>::kSize}, count / Vec<T>::kSize, Vec<T>::kSize);
}

// C = or += A B by product(B), where A is a tile of weights (or its gradient) and `additive` the
// tile at the same entries, `terms` to a row. A hidden entry is absent: 0 times inf must not reach
// C. Rows of B that hold inf or NaN are therefore 0 in the product and added for the visible
// entries alone, each term of an element for itself: no other sum changes. `spare` holds depth x
// columns.
template <class E, class Product>
void product_of_visible(int64_t rows, int64_t columns, int64_t terms, Broadcast<E> a,
                        Broadcast<SumOf<E>> additive, Rows<const E> b, Rows<SumOf<E>> c, E* spare,
                        const Product& product) {
  using T = SumOf<E>;
  const int64_t depth = elements<E>(terms);
  if (all_finite(b, depth, columns)) return product(b);

  const auto is_finite = [&](int64_t term) {
    const E* row = b.data + term / kTerms<E> * b.stride;
    bool finite = true;
    for (int64_t j = 0; j < columns; ++j) {
      const T x = term_of(row[j], term % kTerms<E>);
      finite = finite && x - x == 0;
    }
    return finite;
  };
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = 0; j < columns; ++j) spare[k * columns + j] = b.data[k * b.stride + j];
  for (int64_t term = 0; term < terms; ++term) {
    E* row = spare + term / kTerms<E> * columns;
    if (is_finite(term)) continue;
    for (int64_t j = 0; j < columns; ++j) row[j] = without_term(row[j], term % kTerms<E>);
  }
  product(Rows<const E>{spare, columns});
  for (int64_t term = 0; term < terms; ++term) {
    const int64_t k = term / kTerms<E>, part = term % kTerms<E>;
    const E* row = b.data + k * b.stride;
    if (is_finite(term)) continue;
    for (int64_t i = 0; i < rows; ++i) {
      if (additive.data[i * additive.row + term * additive.depth] == -kInfinity<T>) continue;
      const T weight = term_of(a.data[i * a.row + k * a.depth], part);
      for (int64_t j = 0; j < columns; ++j)
        c.data[i * c.stride + j] += weight * term_of(row[j], part);
    }
  }
}

template <class E, bool kAccumulate>
void tile_product_hidden(int64_t rows, int64_t columns, int64_t terms, Broadcast<E> a,
                         Broadcast<SumOf<E>> additive, Rows<const E> b, Rows<SumOf<E>> c, E* spare,
                         Ahead* ahead) {
  product_of_visible<E>(rows, columns, terms, a, additive, b, c, spare, [&](Rows<const E> finite) {
    tile_product<E, kAccumulate>(rows, columns, elements<E>(terms), a, finite, c, ahead);
  });
}

// C = or += A B; the tile's visibility says whether hidden entries need care.
template <class E, bool kAccumulate>
TORCH_EXT_INLINE void weighted_sum(int64_t rows, int64_t columns, int64_t terms, Broadcast<E> a,
                                   Visibility seen, Broadcast<SumOf<E>> additive, Rows<const E> b,
                                   Rows<SumOf<E>> c, E* spare, Ahead* ahead = nullptr) {
  if (seen == Visibility::kAll)
    tile_product<E, kAccumulate>(rows, columns, elements<E>(terms), a, b, c, ahead);
  else
    tile_product_hidden<E, kAccumulate>(rows, columns, terms, a, additive, b, c, spare, ahead);
}

// ---- sums over the keys and over the queries of a tile of weights ----

template <class T>
struct Hidden {
  Visibility seen;
  T* additive;  // (keys, width), where some entries are hidden; of it the edge alone with kEdge
};

// Whether products with all rows of B, (terms, columns), need care. For that an edge becomes a
// whole additive tile.
template <class E>
TORCH_EXT_INLINE Visibility seen_by(const Problem& p, const TileRange& t, Hidden<SumOf<E>> hidden,
                                    Rows<const E> b, int64_t terms, int64_t columns) {
  if (hidden.seen == Visibility::kAll || all_finite(b, elements<E>(terms), columns))
    return Visibility::kAll;
  if (hidden.seen == Visibility::kEdge)
    return additive_tile<SumOf<E>>(p, t, hidden.additive, nullptr);
  return hidden.seen;
}

// C (queries x c.stride) = or += A (queries x keys) B (keys x c.stride)
template <class E, bool kAccumulate>
void sum_over_keys(const Problem& p, const TileRange& t, Broadcast<E> a, Hidden<SumOf<E>> hidden,
                   Rows<const E> b, Rows<SumOf<E>> c, E* spare, Ahead* ahead) {
  const Visibility seen = seen_by<E>(p, t, hidden, b, t.keys, c.stride);
  for_each_step_of_queries(p, t, [&](int64_t i, int64_t width, int64_t keys) {
    const int64_t queries = smaller(width, t.queries - i);
    SumOf<E>* out = c.data + i * c.stride;
    if (keys > 0)
      weighted_sum<E, kAccumulate>(queries, c.stride, keys, {a.data + i * a.row, a.row, a.depth},
                                   seen, {hidden.additive + i, 1, t.width}, b, {out, c.stride},
                                   spare, ahead);
    else if (!kAccumulate)
      fill_zero(out, queries * c.stride);
  });
}

// C (keys x c.stride) = or += A (keys x queries) B (queries x c.stride)
template <class E, bool kAccumulate>
void sum_over_queries(const Problem& p, const TileRange& t, Broadcast<E> a, Hidden<SumOf<E>> hidden,
                      Rows<const E> b, Rows<SumOf<E>> c, E* spare, Ahead* ahead) {
  const Visibility seen = seen_by<E>(p, t, hidden, b, t.queries, c.stride);
  for_each_step_of_keys(p, t, [&](int64_t j, int64_t keys, int64_t i) {
    const int64_t first = i / kTerms<E>;
    SumOf<E>* out = c.data + j * c.stride;
    if (i < t.queries)
      weighted_sum<E, kAccumulate>(
          keys, c.stride, t.queries - i, {a.data + j * a.row + first * a.depth, a.row, a.depth},
          seen, {hidden.additive + j * t.width + i, t.width, 1},
          {b.data + first * b.stride, b.stride}, {out, c.stride}, spare, ahead);
    else if (!kAccumulate)
      fill_zero(out, keys * c.stride);
  });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
