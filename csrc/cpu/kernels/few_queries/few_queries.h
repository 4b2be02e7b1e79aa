// Attention of few queries, as in decoding: time goes into reading keys and values once, so lanes
// lie along their columns and nothing is packed (row_products.h). With a query in each lane, as in
// the tiles of many queries, most lanes would be empty.
//
// How the keys of a head are cut into tasks, whose partial sums are merged in their order, says
// choices.h. Rows are the queries of the heads that share a key head. A tile of scores lies (rows,
// keys), keys along the lanes.
#pragma once

#include "cpu/kernels/few_queries/row_products.h"
#include "cpu/kernels/tile/dropout.h"
#include "cpu/kernels/tile/visible_products.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

TORCH_EXT_INLINE bool has_few_queries(const Problem& p) {
  const bool is_double = p.query.dtype == DType::Float64;
  return cpu::has_few_queries(is_double ? sizes_of<double>(p) : sizes_of<float>(p), choices());
}

// The same scores with queries and keys in each other's place: tiles of it lie (queries, keys).
TORCH_EXT_INLINE Problem transposed(const Problem& p) {
  Problem t = p;
  t.query_length = p.key_length;
  t.key_length = p.query_length;
  t.left = p.right;
  t.right = p.left;
  t.offset = -p.offset;
  t.mask.row_stride = p.mask.col_stride;
  t.mask.col_stride = p.mask.row_stride;
  t.bias.row_stride = p.bias.col_stride;
  t.bias.col_stride = p.bias.row_stride;
  return t;
}

// Keys in whole vectors and in whole blocks of row_products.
TORCH_EXT_INLINE constexpr int64_t row_width(int64_t keys) { return round_up(keys, 16); }

// A tile of rows: all queries of query heads [head, head + heads), which read the same keys.
struct RowTile {
  int64_t head, heads;
  int64_t key, keys;
  int64_t width;  // row_width(keys): the stride of the tile
};

// What is added to the scores of a tile (rows, width); see additive_tile.
template <class T>
Visibility additive_rows(const Problem& transposed, const RowTile& t, T* additive, T* spare) {
  const int64_t queries = transposed.key_length;
  bool all = true, none = true;
  for (int64_t h = 0; h < t.heads; ++h) {
    const TileRange tile{t.head + h, t.key, t.keys, t.width, 0, queries};
    const Visibility seen =
        additive_tile<T>(transposed, tile, additive + h * queries * t.width, spare);
    all = all && seen == Visibility::kAll;
    none = none && seen == Visibility::kNone;
  }
  return all ? Visibility::kAll : none ? Visibility::kNone : Visibility::kSome;
}

// Calls use(Bool<kAdditive>(), Bool<kCapped>()) for the tile at hand.
template <class Use>
TORCH_EXT_INLINE void with_score_kind(Visibility seen, bool is_capped, const Use& use) {
  with_cap(is_capped, [&](auto capped) {
    seen == Visibility::kAll ? use(Bool<false>(), capped) : use(Bool<true>(), capped);
  });
}

// The keep mask z of a tile (rows, width), as in dropout.h.
template <class T>
void dropout_rows(const Problem& p, const RowTile& t, T* z) {
  for (int64_t h = 0; h < t.heads; ++h) {
    const HeadDropout<T> head(p, t.head + h);
    for (int64_t i = 0; i < p.query_length; ++i)
      dropout_row(head, i, t.key, t.width, z + (h * p.query_length + i) * t.width);
  }
}

// C (rows x b.cols) = W B of a tile: W and `additive` have the stride t.width. `buffer` and `spare`
// hold a copy of B each.
template <class T>
void weigh_tile(int64_t rows, const RowTile& t, const T* w, Visibility seen, const T* additive,
                const StoredRows& b, Rows<T> c, T* buffer, T* spare) {
  fill_zero(c.data, rows * c.stride);
  weighted_rows<T>(rows, {w, t.width}, b, c, buffer);
  if (seen == Visibility::kAll || all_finite(c.data, rows * c.stride)) return;
  // Perhaps a hidden entry met inf or NaN: once more, with care, in the same order.
  fill_zero(c.data, rows * c.stride);
  pack_rows<T>(b.x, b.offset, b.row, b.rows, b.cols, buffer, c.stride);
  product_of_visible<T>(rows, c.stride, b.rows, {w, t.width, 1}, {additive, t.width, 1},
                        {buffer, c.stride}, c, spare, [&](Rows<const T> finite) {
                          weighted_rows<T>(rows, c.stride, b.rows, {w, t.width}, finite, c);
                        });
}

// A row of q and one of scores.
template <class T>
TORCH_EXT_INLINE int64_t score_spare(const Problem& p, int64_t keys) {
  return round_up(p.head_size, Vec<T>::kSize) + row_width(keys);
}

// s^T = k q^T of a tile of scores (keys, width), q being transposed: (D, width). Where the forward
// took few queries or few keys apart, rounded as it did: weights are exp(s - lse) with its lse.
// `spare` holds score_spare numbers.
template <class T>
void score_tile(const Problem& p, const Cut& cut, const TileRange& t, Rows<const T> k, const T* q,
                T* out, T* spare, Ahead* ahead = nullptr) {
  if (!cut.few_queries && !cut.few_keys)
    return product_of_seen<T, false>(p, t, p.head_size, {k.data, k.stride, 1}, q, out, ahead);
  T *const row = spare, *const scores = spare + round_up(p.head_size, Vec<T>::kSize);
  fill_zero(row, scores - row);
  fill_zero(out, t.keys * t.width);
  for (int64_t i = 0; i < t.queries; ++i) {
    for (int64_t d = 0; d < p.head_size; ++d) row[d] = q[d * t.width + i];
    dot_rows<T, 1>(p.head_size, {row, 0}, k, t.keys, {scores, 0});
    for (int64_t j = 0; j < t.keys; ++j) out[j * t.width + i] = scores[j];
  }
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
