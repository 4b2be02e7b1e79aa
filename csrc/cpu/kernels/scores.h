// What is added to a tile of scores: mask, bias and causal limit as one additive tile, -inf where
// hidden.
//
// Tiles of scores lie transposed, keys down and queries across: element (query i, key j) at [j *
// stride + i]. So the softmax runs down the columns, a whole vector of queries at a time, without
// horizontal operations.
#pragma once

#include "cpu/kernels/pack.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Queries [query, query + queries) against keys [key, key + keys) of one head. `width` is `queries`
// rounded up to whole vectors, and the stride of the tile.
struct TileRange {
  int64_t head;  // query head
  int64_t query, queries, width;
  int64_t key, keys;
};

// One past the last key that queries before `query_end` can see.
TORCH_EXT_INLINE int64_t visible_key_end(const Problem& p, int64_t query_end) {
  return p.is_causal ? smaller(p.key_length, query_end) : p.key_length;
}
enum class Visibility {
  kAll,   // nothing to add, nothing hidden
  kSome,  // add the additive tile
  kNone,  // every entry is hidden: skip the tile
};

template <class T>
void pack_additive(const Operand& x, const Problem& p, const TileRange& t, T* out) {
  const int64_t offset = head_offset(p, x, t.head);
  with_storage<T>(x.dtype, [&](auto storage) {
    using S = decltype(storage);
    transpose_tile<T, S>(at<S>(x, offset, t.query, t.key), t.queries, t.keys, out, t.width);
  });
}

// Fills `additive` (keys x width) unless nothing of the tile needs it. Columns beyond `queries` are
// hidden. `spare` has the size of the tile.
template <class T>
Visibility additive_tile(const Problem& p, const TileRange& t, T* additive, T* spare) {
  using V = Vec<T>;
  const bool on_diagonal = p.is_causal && t.key + t.keys - 1 > t.query;
  if (!p.mask && !p.bias && !on_diagonal) return Visibility::kAll;

  const V hidden = V::fill(-kInfinity<T>);
  const int64_t tile = t.keys * t.width;
  if (p.bias) {
    pack_additive(p.bias, p, t, additive);
  } else if (p.mask) {
    pack_additive(p.mask, p, t, additive);
  } else {
    for (int64_t i = 0; i < tile; i += V::kSize) V::fill(0).store(additive + i);
  }
  if (p.bias && p.mask) {
    pack_additive(p.mask, p, t, spare);
    for (int64_t i = 0; i < tile; i += V::kSize)
      if_equal(V::load(spare + i), hidden, hidden, V::load(additive + i)).store(additive + i);
  }
  bool none = true;
  for (int64_t j = 0; j < t.keys; ++j) {
    T* row = additive + j * t.width;
    for (int64_t i = t.queries; i < t.width; ++i) row[i] = -kInfinity<T>;
    if (on_diagonal) {  // hidden where i < j
      const V limit = V::fill(static_cast<T>(t.key + j - t.query));
      for (int64_t i = 0; i < t.width; i += V::kSize)
        if_less(V::fill(static_cast<T>(i)) + V::iota(), limit, hidden, V::load(row + i))
            .store(row + i);
    }
    for (int64_t i = 0; i < t.width; i += V::kSize)
      none = none && equal_lanes(V::load(row + i), hidden) == (1u << V::kSize) - 1;
  }
  return none ? Visibility::kNone : Visibility::kSome;
}

// s scale + additive; exactly -inf where the additive tile hides, whatever s is (inf and NaN
// included).
template <class T>
TORCH_EXT_INLINE Vec<T> masked_score(Vec<T> s, Vec<T> scale, Vec<T> additive) {
  const Vec<T> hidden = Vec<T>::fill(-kInfinity<T>);
  return if_equal(additive, hidden, hidden, fma(s, scale, additive));
}

// ---- products whose hidden entries may meet inf or NaN ----

// `count` is a whole number of vectors.
template <class T>
bool all_finite(const T* row, int64_t count) {
  using V = Vec<T>;
  V zero = V::fill(0);  // a lane stays 0 unless some x * 0 is NaN
  for (int64_t i = 0; i < count; i += V::kSize) zero = fma(V::load(row + i), V::fill(0), zero);
  return equal_lanes(zero, V::fill(0)) == (1u << V::kSize) - 1;
}

// C += A B, where A is a tile of weights (or its gradient) and `additive` the tile with the same
// layout. A hidden entry is absent: 0 times inf must not reach C. Rows of B that hold inf or NaN
// are therefore left out of the product and added for the visible entries alone. `spare` holds
// depth x columns.
template <class T>
void tile_product_hidden(int64_t rows, int64_t columns, int64_t depth, Broadcast<T> a,
                         const T* additive, Rows<const T> b, Rows<T> c, T* spare) {
  bool finite = true;
  for (int64_t k = 0; k < depth && finite; ++k) finite = all_finite(b.data + k * b.stride, columns);
  if (finite) return tile_product<T, true>(rows, columns, depth, a, b, c);

  for (int64_t k = 0; k < depth; ++k) {
    const T* row = b.data + k * b.stride;
    const bool keep = all_finite(row, columns);
    for (int64_t j = 0; j < columns; ++j) spare[k * columns + j] = keep ? row[j] : T(0);
  }
  tile_product<T, true>(rows, columns, depth, a, {spare, columns}, c);
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = b.data + k * b.stride;
    if (all_finite(row, columns)) continue;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t entry = i * a.row + k * a.depth;
      if (additive[entry] == -kInfinity<T>) continue;
      for (int64_t j = 0; j < columns; ++j) c.data[i * c.stride + j] += a.data[entry] * row[j];
    }
  }
}

// C += A B; the tile's visibility says whether hidden entries need care.
template <class T>
TORCH_EXT_INLINE void weighted_sum(int64_t rows, int64_t columns, int64_t depth, Broadcast<T> a,
                                   Visibility seen, const T* additive, Rows<const T> b, Rows<T> c,
                                   T* spare) {
  if (seen == Visibility::kAll)
    tile_product<T, true>(rows, columns, depth, a, b, c);
  else
    tile_product_hidden<T>(rows, columns, depth, a, additive, b, c, spare);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
