// One sweep over the tiles of scores for everything that a direction (q', k', v', b') needs of
// whole rows:
//   s'  = c (q' k^T + q k'^T) + b'           (its first part times the slope of softcap)
//   mu  = rowsum(p s')                       = lse'
//   o'  = (p s') v + p v' - mu o
// and, for the second order, with dp = do v^T, dp' = do v'^T, delta = rowsum(p dp) - dlse,
//   eps = rowsum(p dp') + rowsum(p s' dp) - delta mu - mu rowsum(p dp).
// With dropout dp, dp' and the weights of v and v' carry z.
//
// Task: one tile of queries of one head, over the tiles of keys that the window shows to it. Every
// operand is read once a task; nothing of size N x M exists.
#pragma once

#include "cpu/kernels/dropout.h"
#include "cpu/kernels/row_statistics.h"
#include "cpu/kernels/weights.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T, class P>
struct TangentScratch {
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

  int64_t width;             // queries of a tile, in whole vectors
  int64_t columns;           // E in whole vectors
  T *q, *q_dot;              // (D, width), transposed
  T* dO;                     // (E, width), transposed
  T *k, *k_dot, *v, *v_dot;  // (keys, …) where they cannot be read in place
  T* p;                      // (keys, width): s, then p
  T* s_dot;                  // (keys, width): q' k^T + q k'^T, then p s'
  T *dp, *dp_dot;            // (keys, width)
  T *additive, *b_dot, *z;   // (keys, width)
  T* spare;                  // for a tile of scores or of v
  T* o_dot;                  // (width, columns)
  T *lse, *residual;         // (width)
  T *mu, *sum_dp, *epsilon;  // (width): rowsum(p s'), rowsum(p dp), rowsum(p dp' + p s' dp)
  int64_t bytes;

  TORCH_EXT_INLINE TangentScratch(const P& problem, void* memory) {
    Scratch scratch(memory);
    width = tile_width<T>(problem);
    columns = round_up(problem.value_head_size, Vec<T>::kSize);
    const int64_t keys = smaller(problem.key_length, kTileKeys), tile = keys * width;
    const int64_t head_columns = round_up(problem.head_size, Vec<T>::kSize);
    q = scratch.take<T>(problem.head_size * width);
    q_dot = scratch.take<T>(problem.head_size * width);
    k = scratch.take<T>(keys * head_columns);
    k_dot = scratch.take<T>(keys * head_columns);
    v = scratch.take<T>(keys * columns);
    v_dot = scratch.take<T>(keys * columns);
    p = scratch.take<T>(tile);
    s_dot = scratch.take<T>(tile);
    additive = scratch.take<T>(tile);
    b_dot = scratch.take<T>(tile);
    z = scratch.take<T>(problem.dropout_p > 0 ? tile : 0);
    spare = scratch.take<T>(larger(keys, 1) * larger(width, columns));
    o_dot = scratch.take<T>(width * columns);
    lse = scratch.take<T>(width);
    residual = scratch.take<T>(width);
    mu = scratch.take<T>(width);
    dO = scratch.take<T>(kSecondOrder ? problem.value_head_size * width : 0);
    dp = scratch.take<T>(kSecondOrder ? tile : 0);
    dp_dot = scratch.take<T>(kSecondOrder ? tile : 0);
    sum_dp = scratch.take<T>(kSecondOrder ? width : 0);
    epsilon = scratch.take<T>(kSecondOrder ? width : 0);
    bytes = scratch.used();
  }
};

template <class T, class P>
class TangentTask {
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

 public:
  TangentTask(const P& problem, RowStatistics<T> rows, void* memory)
      : p_(problem), rows_(rows), rule_(problem), x_(problem, memory) {
    if constexpr (kSecondOrder)
      has_dp_ =
          problem.grad_output && (problem.grad_query || problem.grad_key || problem.grad_bias ||
                                  problem.grad_slopes || problem.grad_sink);
  }

  void run(TileRange t) {
    const Direction& direction = p_.direction;
    pack_transposed<T>(p_.query, head_offset(p_, p_.query, t.head), t.query, t.queries,
                       p_.head_size, x_.q, t.width);
    if (direction.query)
      pack_transposed<T>(direction.query, head_offset(p_, direction.query, t.head), t.query,
                         t.queries, p_.head_size, x_.q_dot, t.width);
    load_row_statistics(p_, t, x_.lse, x_.residual);
    fill_zero(x_.mu, t.width);
    fill_zero(x_.o_dot, t.width * x_.columns);
    if constexpr (kSecondOrder) {
      if (has_dp_)
        pack_transposed<T>(p_.grad_output, head_offset(p_, p_.grad_output, t.head), t.query,
                           t.queries, p_.value_head_size, x_.dO, t.width);
      fill_zero(x_.sum_dp, t.width);
      fill_zero(x_.epsilon, t.width);
    }
    const KeyRange range = visible_keys(p_, t.query, t.queries);
    for (t.key = range.begin / kTileKeys * kTileKeys; t.key < range.end; t.key += kTileKeys) {
      t.keys = smaller(kTileKeys, range.end - t.key);
      tile(t);
    }
    finish(t);
  }

 private:
  Rows<const T> rows_of(const Operand& x, const TileRange& t, int64_t cols, T* buffer) const {
    return rows_in_place_or_packed<T>(x, head_offset(p_, x, t.head, p_.group), t.key, t.keys, cols,
                                      true, buffer);
  }

  void tile(const TileRange& t) {
    const Visibility seen = additive_tile<T>(p_, t, x_.additive, x_.spare);
    if (seen == Visibility::kNone) return;
    const Direction& direction = p_.direction;
    const bool needs_values = has_dp_ || p_.output_tangent;
    const int64_t d = p_.head_size, count = t.keys * t.width;
    // s^T = k q^T,  s'^T = k q'^T + k' q^T
    const auto k = rows_of(p_.key, t, d, x_.k);
    score_product<false>(t, k, x_.q, d, x_.p);
    if (direction.query) score_product<false>(t, k, x_.q_dot, d, x_.s_dot);
    if (direction.key) {
      const auto k_dot = rows_of(direction.key, t, d, x_.k_dot);
      if (direction.query)
        score_product<true>(t, k_dot, x_.q, d, x_.s_dot);
      else
        score_product<false>(t, k_dot, x_.q, d, x_.s_dot);
    }
    if (!direction.query && !direction.key) fill_zero(x_.s_dot, count);
    direction_tile(p_, direction, t, x_.b_dot);
    if (p_.dropout_p > 0) dropout_tile(p_, t, x_.z);

    Rows<const T> v{}, v_dot{};
    if (needs_values) v = rows_of(p_.value, t, p_.value_head_size, x_.v);
    if (direction.value && needs_values)
      v_dot = rows_of(direction.value, t, p_.value_head_size, x_.v_dot);
    if (has_dp_) value_products(t, v, v_dot);

    with_score_kind(seen, rule_.is_capped, [&](auto additive, auto capped) {
      for (int64_t i = 0; i < t.width; i += Vec<T>::kSize)
        weigh_column<additive.value, capped.value>(i, t.keys);
    });
    if (!p_.output_tangent) return;
    if (p_.dropout_p > 0) {
      multiply_tile(count, x_.z, x_.p);
      multiply_tile(count, x_.z, x_.s_dot);
    }
    // o' += (p s') v + p v'
    add_to_output(t, seen, x_.s_dot, v);
    if (direction.value) add_to_output(t, seen, x_.p, v_dot);
  }

  template <bool kAccumulate>
  void score_product(const TileRange& t, Rows<const T> a, const T* b, int64_t depth, T* out) {
    tile_product<T, kAccumulate>(t.keys, t.width, depth, {a.data, a.stride, 1}, {b, t.width},
                                 {out, t.width});
  }

  // dp^T = v do^T,  dp'^T = v' do^T
  void value_products(const TileRange& t, Rows<const T> v, Rows<const T> v_dot) {
    const int64_t count = t.keys * t.width;
    score_product<false>(t, v, x_.dO, p_.value_head_size, x_.dp);
    if (v_dot.data)
      score_product<false>(t, v_dot, x_.dO, p_.value_head_size, x_.dp_dot);
    else
      fill_zero(x_.dp_dot, count);
    if (p_.dropout_p == 0) return;
    multiply_tile(count, x_.z, x_.dp);
    multiply_tile(count, x_.z, x_.dp_dot);
  }

  void add_to_output(const TileRange& t, Visibility seen, const T* weights, Rows<const T> v) {
    weighted_sum<T>(t.queries, x_.columns, t.keys, {weights, 1, t.width}, seen, x_.additive, v,
                    {x_.o_dot, x_.columns}, x_.spare);
  }

  // s -> p and q' k^T + q k'^T -> p s' for a vector of queries, and their sums over the tile.
  template <bool kAdditive, bool kCapped>
  void weigh_column(int64_t column, int64_t keys) {
    using V = Vec<T>;
    const V hidden = V::fill(-kInfinity<T>), zero = V::fill(0);
    const V lse = V::load(x_.lse + column), residual = V::load(x_.residual + column);
    V mu = zero, sum_dp = zero, epsilon = zero, u = zero;
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t entry = j * x_.width + column;
      const V additive = kAdditive ? V::load(x_.additive + entry) : zero;
      const V p =
          weight<kAdditive, kCapped>(rule_, V::load(x_.p + entry), additive, lse, residual, &u);
      V s_dot = V::load(x_.s_dot + entry) * rule_.scale;
      if constexpr (kCapped) s_dot = s_dot * rule_.cap_slope(u);
      s_dot = s_dot + V::load(x_.b_dot + entry);
      V weighted = p * s_dot;
      if constexpr (kAdditive) weighted = if_equal(additive, hidden, zero, weighted);
      p.store(x_.p + entry);
      weighted.store(x_.s_dot + entry);
      mu = mu + weighted;
      if constexpr (kSecondOrder) {
        if (!has_dp_) continue;
        const V dp = V::load(x_.dp + entry);
        V first = p * dp, second = fma(weighted, dp, p * V::load(x_.dp_dot + entry));
        if constexpr (kAdditive) {
          first = if_equal(additive, hidden, zero, first);
          second = if_equal(additive, hidden, zero, second);
        }
        sum_dp = sum_dp + first;
        epsilon = epsilon + second;
      }
    }
    add(mu, x_.mu + column);
    if constexpr (kSecondOrder) {
      add(sum_dp, x_.sum_dp + column);
      add(epsilon, x_.epsilon + column);
    }
  }

  static TORCH_EXT_INLINE void add(Vec<T> x, T* sum) { (Vec<T>::load(sum) + x).store(sum); }

  // The sink's share of mu, then o' - mu o and what is left of the row sums.
  void finish(const TileRange& t) {
    if (p_.direction.sink && p_.sink) {
      const T sink = head_value<T>(p_, p_.sink, t.head);
      const T a_dot = head_value<T>(p_, p_.direction.sink, t.head);
      for (int64_t i = 0; i < t.queries; ++i)
        x_.mu[i] += sink_weight(sink, x_.lse[i], x_.residual[i]) * a_dot;
    }
    if (p_.output_tangent) {
      T* o = x_.spare;  // a row of it at a time
      const int64_t offset = head_offset(p_, p_.output, t.head);
      for (int64_t i = 0; i < t.queries; ++i) {
        pack_rows<T>(p_.output, offset, t.query + i, 1, p_.value_head_size, o, x_.columns);
        for (int64_t e = 0; e < x_.columns; ++e) x_.o_dot[i * x_.columns + e] -= x_.mu[i] * o[e];
      }
      write_rows<T>(x_.o_dot, x_.columns, t.queries, p_.value_head_size, T(1), p_.output_tangent,
                    head_offset(p_, p_.output_tangent, t.head), t.query);
    }
    if (p_.logsumexp_tangent) {
      const int64_t offset = head_offset(p_, p_.logsumexp_tangent, t.head);
      for (int64_t i = 0; i < t.queries; ++i)
        row_value<T>(p_.logsumexp_tangent, offset, t.query + i) = x_.mu[i];
    }
    if constexpr (kSecondOrder) keep_statistics(t);
  }

  void keep_statistics(const TileRange& t) {
    const int64_t dlse_offset = head_offset(p_, p_.grad_logsumexp, t.head);
    for (int64_t i = 0; i < t.queries; ++i) {
      const int64_t row = t.query + i;
      const T dlse = p_.grad_logsumexp ? row_value<T>(p_.grad_logsumexp, dlse_offset, row) : T(0);
      const T delta = x_.sum_dp[i] - dlse, mu = x_.mu[i];
      rows_.delta(t.head)[row] = delta;
      rows_.mu(t.head)[row] = mu;
      rows_.epsilon(t.head)[row] = x_.epsilon[i] - mu * (delta + x_.sum_dp[i]);
    }
  }

  const P& p_;
  RowStatistics<T> rows_;
  ScoreRule<T> rule_;
  TangentScratch<T, P> x_;
  bool has_dp_ = false;  // whether dp and dp' are wanted
};

// Sweeps over all heads. `rows` receives the row statistics of the second order.
template <class T, class P>
void tangent_sweep(const P& p, RowStatistics<T> rows) {
  const TangentScratch<T, P> size(p, nullptr);
  for_each_query_tile<T>(p, size.bytes, [&](const TileRange& t, void* scratch) {
    TangentTask<T, P>(p, rows, scratch).run(t);
  });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
