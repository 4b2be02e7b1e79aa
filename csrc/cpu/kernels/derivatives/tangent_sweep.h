// One sweep over the tiles of scores for everything that a direction (q', k', v', b') needs of
// whole rows:
//   s'  = c (q' k^T + q k'^T) + b'           (its first part times the slope of softcap)
//   mu  = rowsum(p s')                       = lse'
//   o'  = (p s') v + p v' - mu o
// and, for the second order, with dp = do v^T, dp' = do v'^T,
//   delta = rowsum(p dp) - dlse,  eps = rowsum(p dp') + rowsum(p (s' - mu) (dp - delta)).
// s' is taken from an origin of its row, which changes rounding errors alone (row_statistics.h).
// With dropout dp, dp' and the weights of v and v' carry z. The sink is one more key of every row.
//
// Task: one tile of queries of one head, over the tiles of keys that the window shows to it. Every
// operand is read once a task; nothing of size N x M exists.
#pragma once

#include "cpu/kernels/derivatives/tangent_columns.h"
#include "cpu/kernels/few_queries/few_queries.h"
#include "cpu/kernels/tile/dropout.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class T, class P>
class TangentTask {
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

 public:
  TangentTask(const P& problem, const Cut& cut, RowStatistics<T> rows, bool keeps, void* memory)
      : p_(problem),
        cut_(cut),
        rows_(rows),
        x_(problem, cut, keeps, memory),
        keeps_(keeps),
        columns_(problem, x_, keeps) {}

  void run(TileRange t) {
    x_.width = t.width = round_up(t.queries, Vec<T>::kSize);
    const Direction& direction = p_.direction;
    pack_transposed<T>(p_.query, head_offset(p_, p_.query, t.head), t.query, t.queries,
                       p_.head_size, x_.q, t.width);
    if (direction.query)
      pack_transposed<T>(direction.query, head_offset(p_, direction.query, t.head), t.query,
                         t.queries, p_.head_size, x_.q_dot, t.width);
    load_row_statistics(p_, t, x_.lse, x_.residual);
    for (int64_t i = 0; i < t.width; i += Vec<T>::kSize) x_.moments.store(i, RowMoments<T>::zero());
    fill_zero(x_.origin, t.width);
    fill_zero(x_.o_dot, t.width * x_.columns);
    if constexpr (kSecondOrder) {
      if (columns_.has_dp())
        pack_transposed<T>(p_.grad_output, head_offset(p_, p_.grad_output, t.head), t.query,
                           t.queries, p_.value_head_size, x_.dO, t.width);
    }
    const KeyRange range = visible_keys(p_, t.query, t.queries);
    const int64_t keys = cut_.tile_keys;
    for (t.key = range.begin / keys * keys; t.key < range.end; t.key += keys) {
      t.keys = smaller(keys, range.end - t.key);
      now_ = kept(t.key);
      tile(t);
    }
    finish(t);
  }

  // After `run`, where tiles are kept: those of the tile of keys that begins at `key`, unless all
  // of it is hidden, and what was subtracted from s' (width).
  TangentTiles<T> kept(int64_t key) const { return x_.kept.tile(key / cut_.tile_keys % x_.slots); }
  const T* origin() const { return x_.origin; }

 private:
  Rows<const T> rows_of(const Operand& x, const TileRange& t, int64_t cols, T* buffer) const {
    return rows_in_place_or_packed<T>(x, head_offset(p_, x, t.head, p_.group), t.key, t.keys, cols,
                                      true, buffer);
  }

  void tile(const TileRange& t) {
    const Visibility seen = additive_edge<T>(p_, t, x_.additive, x_.spare);
    if (seen == Visibility::kNone) return;
    const Direction& direction = p_.direction;
    const bool needs_values = columns_.has_dp() || p_.output_tangent;
    const int64_t d = p_.head_size, count = t.keys * t.width;
    // s^T = k q^T,  s'^T = k q'^T + k' q^T
    const auto k = rows_of(p_.key, t, d, x_.k);
    score_tile<T>(p_, cut_, t, k, x_.q, now_.p, x_.spare);
    if (direction.query) score_product<false>(t, k, x_.q_dot, d, now_.s_dot);
    if (direction.key) {
      const auto k_dot = rows_of(direction.key, t, d, x_.k_dot);
      if (direction.query)
        score_product<true>(t, k_dot, x_.q, d, now_.s_dot);
      else
        score_product<false>(t, k_dot, x_.q, d, now_.s_dot);
    }
    if (!direction.query && !direction.key) fill_zero(now_.s_dot, count);
    if (adds_to_scores(direction)) direction_tile(p_, direction, t, x_.b_dot);
    if (p_.dropout_p > 0) dropout_tile(p_, t, x_.z);

    Rows<const T> v{}, v_dot{};
    if (needs_values) v = rows_of(p_.value, t, p_.value_head_size, x_.v);
    if (direction.value && needs_values)
      v_dot = rows_of(direction.value, t, p_.value_head_size, x_.v_dot);
    if (columns_.has_dp()) {
      value_products(t, v, v_dot);
    } else if (keeps_) {
      fill_zero(now_.dp, count);
      fill_zero(now_.dp_dot, count);
    }

    with_cap(columns_.is_capped(), [&](auto capped) {
      for_each_column<T>(p_, t, seen, [&](int64_t i, int64_t plain, int64_t end) {
        columns_.template add<capped.value>(now_, i, plain, end, t.keys);
      });
    });
    if (!p_.output_tangent) return;
    // o' += (p (s' - origin)) v + p v', both weights times z. What is kept stays as it is.
    const T *of_v = now_.s_dot, *of_v_dot = now_.p;
    if (p_.dropout_p > 0) {
      multiply_tile(count, x_.z, of_v, x_.b_dot);
      multiply_tile(count, x_.z, of_v_dot, x_.z);
      of_v = x_.b_dot, of_v_dot = x_.z;
    }
    add_to_output(t, seen, of_v, v);
    if (direction.value) add_to_output(t, seen, of_v_dot, v_dot);
  }

  template <bool kAccumulate>
  void score_product(const TileRange& t, Rows<const T> a, const T* b, int64_t depth, T* out) {
    product_of_seen<T, kAccumulate>(p_, t, depth, {a.data, a.stride, 1}, b, out, nullptr);
  }

  // dp^T = v do^T,  dp'^T = v' do^T
  void value_products(const TileRange& t, Rows<const T> v, Rows<const T> v_dot) {
    const int64_t count = t.keys * t.width;
    score_product<false>(t, v, x_.dO, p_.value_head_size, now_.dp);
    if (v_dot.data)
      score_product<false>(t, v_dot, x_.dO, p_.value_head_size, now_.dp_dot);
    else
      fill_zero(now_.dp_dot, count);
    if (p_.dropout_p == 0) return;
    multiply_tile(count, x_.z, now_.dp);
    multiply_tile(count, x_.z, now_.dp_dot);
  }

  void add_to_output(const TileRange& t, Visibility seen, const T* weights, Rows<const T> v) {
    sum_over_keys<T, true>(p_, t, {weights, 1, t.width}, {seen, x_.additive}, v,
                           {x_.o_dot, x_.columns}, x_.spare, nullptr);
  }

  // The sink is one more key of every row: weight exp(a - lse), s' = a', dp = 0. Then all moments
  // become means: weights sum to 1 but for rounding, which o' - mu o would magnify where s' is
  // large.
  void finish_moments(const TileRange& t) {
    using V = Vec<T>;
    const T sink = p_.sink ? head_value<T>(p_, p_.sink, t.head) : -kInfinity<T>;
    const bool has_sink = sink != -kInfinity<T>;
    const T a_dot = has_sink ? head_value<T>(p_, p_.direction.sink, t.head) : T(0);
    for (int64_t i = 0; i < t.width; i += V::kSize) {
      RowMoments<T> row = x_.moments.load(i);
      if (has_sink) {
        RowMoments<T> key = RowMoments<T>::zero();
        key.weight = sink_weight(sink, x_.lse + i, x_.residual + i);
        key.center = V::fill(a_dot);
        row.add(key);
      }
      row.take_means();
      x_.moments.store(i, row);
    }
  }

  // o' - (mean s' - origin) o, lse' = mean s', and what is kept of the row.
  void finish(const TileRange& t) {
    finish_moments(t);
    const T *center = x_.moments.center, *mu = x_.moments.s_dot;
    if (p_.output_tangent) {
      T* o = x_.spare;  // a row of it at a time
      const int64_t offset = head_offset(p_, p_.output, t.head);
      for (int64_t i = 0; i < t.queries; ++i) {
        pack_rows<T>(p_.output, offset, t.query + i, 1, p_.value_head_size, o, x_.columns);
        const T inverse = 1 / x_.moments.weight[i], apart = (center[i] - x_.origin[i]) + mu[i];
        T* row = x_.o_dot + i * x_.columns;
        for (int64_t e = 0; e < x_.columns; ++e) row[e] = row[e] * inverse - apart * o[e];
      }
      write_rows<T>(x_.o_dot, x_.columns, t.queries, p_.value_head_size, T(1), p_.output_tangent,
                    head_offset(p_, p_.output_tangent, t.head), t.query);
    }
    if (p_.logsumexp_tangent) {
      const int64_t offset = head_offset(p_, p_.logsumexp_tangent, t.head);
      for (int64_t i = 0; i < t.queries; ++i)
        row_value<T>(p_.logsumexp_tangent, offset, t.query + i) = center[i] + mu[i];
    }
    if constexpr (kSecondOrder) keep_statistics(t);
  }

  void keep_statistics(const TileRange& t) {
    const int64_t dlse_offset = head_offset(p_, p_.grad_logsumexp, t.head);
    for (int64_t i = 0; i < t.queries; ++i) {
      const int64_t row = t.query + i;
      const T dlse = p_.grad_logsumexp ? row_value<T>(p_.grad_logsumexp, dlse_offset, row) : T(0);
      rows_.delta(t.head)[row] = x_.moments.dp[i] - dlse;
      rows_.center(t.head)[row] = x_.moments.center[i];
      rows_.mu(t.head)[row] = x_.moments.s_dot[i];
      rows_.epsilon(t.head)[row] = x_.moments.dp_dot[i] + x_.moments.covariance[i];
    }
  }

  const P& p_;
  const Cut& cut_;
  RowStatistics<T> rows_;
  TangentScratch<T, P> x_;
  TangentTiles<T> now_{};  // of the keys at hand
  bool keeps_;             // the tiles of all keys
  TangentColumns<T, P> columns_;
};

// Sweeps over all heads. `rows` receives the row statistics of the second order.
template <class T, class P>
void tangent_sweep(const P& p, RowStatistics<T> rows) {
  const Cut cut = cut_of<T>(p);
  const TangentScratch<T, P> size(p, cut, false, nullptr);
  for_each_query_block(p, cut, 1, size.bytes, [&](const TileRange& t, void* scratch) {
    TangentTask<T, P>(p, cut, rows, false, scratch).run(t);
  });
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
