// From products of queries and keys to scores and weights, and what a tile adds to them: mask,
// bias, slopes and window as one additive tile, -inf where hidden.
//
// Tiles of scores lie transposed, keys down and queries across: element (query i, key j) at [j *
// stride + i]. So the softmax runs down the columns, a whole vector of queries at a time, without
// horizontal operations.
#pragma once

#include <cmath>

#include "cpu/kernels/primitives/exponential.h"
#include "cpu/kernels/tile/tiles.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// The keys that the window shows to some query of [query, query + queries); {0, 0} if none.
struct KeyRange {
  int64_t begin, end;
};

TORCH_EXT_INLINE KeyRange visible_keys(const Problem& p, int64_t query, int64_t queries) {
  const int64_t begin = larger(0, query + p.offset - p.left);
  const int64_t end = smaller(p.key_length, query + queries + p.offset + p.right);
  return begin < end ? KeyRange{begin, end} : KeyRange{0, 0};
}

// Whether the left limit of the window, whether both limits show every key of the tile to every
// query.
TORCH_EXT_INLINE bool is_inside_left(const Problem& p, const TileRange& t) {
  return t.key - (t.query + t.queries - 1) - p.offset >= -p.left;
}
TORCH_EXT_INLINE bool is_inside_window(const Problem& p, const TileRange& t) {
  return is_inside_left(p, t) && t.key + t.keys - 1 - t.query - p.offset <= p.right;
}

// Whether nothing but the window changes scores.
TORCH_EXT_INLINE bool is_window_alone(const Problem& p) { return !p.mask && !p.bias && !p.slopes; }

enum class Visibility {
  kAll,   // nothing to add but 0, nothing hidden
  kSome,  // add the additive tile
  kNone,  // every entry is hidden: skip the tile
  kEdge,  // kSome, but of the additive tile the edge alone is there (visible_products.h)
};

template <class T>
void pack_additive(const Operand& x, const Problem& p, const TileRange& t, T* out) {
  const int64_t offset = head_offset(p, x, t.head);
  read_ahead(x, offset + t.key * x.col_stride, t.query, t.queries, t.keys);
  with_storage<T>(x.dtype, [&](auto storage) {
    using S = decltype(storage);
    transpose_tile<T, S>(at<S>(x, offset, t.query, t.key), t.queries, t.keys, out, t.width);
  });
}

// What pack_additive will read of a tile.
TORCH_EXT_INLINE void will_read_additive(const Problem& p, const TileRange& t, Ahead& ahead) {
  const auto will_read = [&](const Operand& x) {
    if (x)
      ahead.will_read(x, head_offset(p, x, t.head) + t.key * x.col_stride, t.query, t.queries,
                      t.keys);
  };
  will_read(p.bias);
  will_read(p.mask);
}

// The number of one head: a slope, a sink; 0 where absent.
template <class T>
T head_value(const Problem& p, const Operand& x, int64_t head) {
  T value = 0;
  if (x) pack_rows<T>(x, head_offset(p, x, head), 0, 1, 1, &value, 1);
  return value;
}

// m and l before any key: the sink is one that every row has seen, with value 0; without it, -inf
// and nothing. A sink of +inf or NaN makes its rows NaN.
template <class T>
struct SoftmaxStart {
  T max, sum;
};
template <class T>
SoftmaxStart<T> softmax_start(const ForwardProblem& p, int64_t head) {
  const T sink = p.sink ? head_value<T>(p, p.sink, head) : -kInfinity<T>;
  return {sink, sink == -kInfinity<T> ? 0 : 1 + (sink - sink)};
}

// Distances j - i - offset of key j of the tile from its queries i, i + 1, …
template <class T>
TORCH_EXT_INLINE Vec<T> distances(const Problem& p, const TileRange& t, int64_t j, int64_t i) {
  return Vec<T>::fill(static_cast<T>(t.key + j - t.query - p.offset)) -
         (Vec<T>::fill(static_cast<T>(i)) + Vec<T>::iota());
}

// tile -= slope |distance| or, with `fresh`, = -slope |distance|; what is -inf stays so, whatever
// the slope (inf and NaN included).
template <class T>
void subtract_slope(const Problem& p, const TileRange& t, T slope, bool fresh, T* tile) {
  using V = Vec<T>;
  const V factor = V::fill(-slope), hidden = V::fill(-kInfinity<T>);
  for (int64_t j = 0; j < t.keys; ++j)
    for (int64_t i = 0; i < t.width; i += V::kSize) {
      T* out = tile + j * t.width + i;
      const V x = fresh ? V::fill(0) : V::load(out);
      if_equal(x, hidden, hidden, fma(factor, abs(distances<T>(p, t, j, i)), x)).store(out);
    }
}

// One row of the additive tile: what lies outside the window is hidden; the rest stays as it is or,
// with `fresh`, becomes 0.
template <class T>
TORCH_EXT_INLINE void hide_outside_window(const Problem& p, const TileRange& t, int64_t j,
                                          bool fresh, T* row) {
  using V = Vec<T>;
  const V hidden = V::fill(-kInfinity<T>);
  // Hidden where i < first or last < i, with i counted from t.query.
  const int64_t diagonal = t.key + j - t.query - p.offset;
  const V first = V::fill(static_cast<T>(diagonal - p.right)),
          last = V::fill(static_cast<T>(diagonal + p.left));
  for (int64_t i = 0; i < t.width; i += V::kSize) {
    const V query = V::fill(static_cast<T>(i)) + V::iota();
    V x = if_less(query, first, hidden, fresh ? V::fill(0) : V::load(row + i));
    if (p.left < kUnlimited) x = if_less(last, query, hidden, x);
    x.store(row + i);
  }
}

// Fills `additive` (keys x width) unless no option needs it. Columns beyond `queries` are hidden.
// `spare` has the size of the tile.
template <class T>
Visibility additive_tile(const Problem& p, const TileRange& t, T* additive, T* spare) {
  using V = Vec<T>;
  const bool is_inside = is_inside_window(p, t);
  const bool is_fresh = is_window_alone(p);
  if (is_fresh && is_inside) return Visibility::kAll;

  const V hidden = V::fill(-kInfinity<T>);
  const int64_t tile = t.keys * t.width;
  if (p.bias) {
    pack_additive(p.bias, p, t, additive);
  } else if (p.mask) {
    pack_additive(p.mask, p, t, additive);
  }
  if (p.bias && p.mask) {
    pack_additive(p.mask, p, t, spare);
    for (int64_t i = 0; i < tile; i += V::kSize)
      if_equal(V::load(spare + i), hidden, hidden, V::load(additive + i)).store(additive + i);
  }
  if (p.slopes)
    subtract_slope(p, t, head_value<T>(p, p.slopes, t.head), !p.bias && !p.mask, additive);
  constexpr uint32_t kLanes = (1u << V::kSize) - 1;
  bool none = true, only_zeros = true;
  for (int64_t j = 0; j < t.keys; ++j) {
    T* row = additive + j * t.width;
    if (!is_inside) hide_outside_window(p, t, j, is_fresh, row);
    for (int64_t i = t.queries; i < t.width; ++i) row[i] = -kInfinity<T>;
    for (int64_t i = 0; (none || only_zeros) && i < t.width; i += V::kSize) {
      const uint32_t queries = (1u << smaller(V::kSize, larger(0, t.queries - i))) - 1;
      none = none && equal_lanes(V::load(row + i), hidden) == kLanes;
      only_zeros = only_zeros && (equal_lanes(V::load(row + i), V::fill(0)) & queries) == queries;
    }
  }
  if (none) return Visibility::kNone;
  return only_zeros ? Visibility::kAll : Visibility::kSome;
}

// How scores come from products of queries and keys.
template <class T>
struct ScoreRule {
  Vec<T> scale, cap, scale_by_cap, minus_two_by_cap;
  bool is_capped;

  explicit TORCH_EXT_INLINE ScoreRule(const Problem& p)
      : scale(Vec<T>::fill(static_cast<T>(p.scale))),
        cap(Vec<T>::fill(static_cast<T>(p.softcap))),
        scale_by_cap(Vec<T>::fill(finite(p.scale / p.softcap))),
        minus_two_by_cap(Vec<T>::fill(finite(-2 / p.softcap))),
        is_capped(p.softcap > 0) {}

  // softcap(c q k) and, where capped, u = tanh(c q k / softcap).
  TORCH_EXT_INLINE Vec<T> capped(Vec<T> product, Vec<T>* u) const {
    *u = tanh(product * scale_by_cap);
    return *u * cap;
  }
  // So that a product of 0 has a score of 0.
  static T finite(double x) {
    constexpr double kLargest = std::numeric_limits<T>::max();
    return static_cast<T>(std::fmax(-kLargest, std::fmin(kLargest, x)));
  }

  // The slope of softcap: t = 1 - u^2 = (1 - u)(1 + u).
  static TORCH_EXT_INLINE Vec<T> cap_slope(Vec<T> u) {
    return (Vec<T>::fill(1) - u) * (Vec<T>::fill(1) + u);
  }

  // softcap(c q k) + additive; exactly -inf where the additive tile hides, whatever the product is
  // (inf and NaN included).
  template <bool kAdditive, bool kCapped>
  TORCH_EXT_INLINE Vec<T> score(Vec<T> product, Vec<T> additive, Vec<T>* u) const {
    const Vec<T> hidden = Vec<T>::fill(-kInfinity<T>);
    if constexpr (kCapped) {
      const Vec<T> s = capped(product, u);
      return kAdditive ? if_equal(additive, hidden, hidden, s + additive) : s;
    } else {
      return kAdditive ? if_equal(additive, hidden, hidden, fma(product, scale, additive))
                       : product * scale;
    }
  }
};

// Calls use(Bool<is_capped>()).
template <class Use>
TORCH_EXT_INLINE void with_cap(bool is_capped, const Use& use) {
  is_capped ? use(Bool<true>()) : use(Bool<false>());
}

// out = x z, a whole tile.
template <class T>
void multiply_tile(int64_t count, const T* z, const T* x, T* out) {
  using V = Vec<T>;
  for (int64_t i = 0; i < count; i += V::kSize) (V::load(x + i) * V::load(z + i)).store(out + i);
}
template <class T>
void multiply_tile(int64_t count, const T* z, T* x) {
  multiply_tile<T>(count, z, x, x);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
