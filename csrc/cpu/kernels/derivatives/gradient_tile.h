// One tile of the backward and of the second order: from operands to what multiplies them.
//
// Backward:      s^T = k q^T,  p = exp((s - lse) - residual),  dp^T = z (v do^T)
//                w = z p,  ds = p (dp - delta),  ds0 = t ds
// Second order:  s'^T = k q'^T + k' q^T,  dp'^T = z (v' do^T),  s'_b = c t s' + b'
//                w = z p (s'_b - mu),  ds = p (dp' + (s'_b - mu) (dp - delta) - eps)
//                ds0 = t ds + t' c s' p (dp - delta),  ds0' = t p (dp - delta)
// with mu = center + mean(s'_b - center), the slope of softcap t = 1 - u^2, t' = -2 u t / softcap
// (1 and 0 without it) and the keep mask z of dropout (1 without it).
//
// Where rows are kept, the sweep for mu, delta and eps (tangent_sweep.h) goes over the keys of a
// tile of queries just before, and leaves p, p (s'_b - origin), dp and dp' of all of them. Whoever
// takes them saves five products and exp.
#pragma once

#include "cpu/kernels/derivatives/gradient_columns.h"
#include "cpu/kernels/derivatives/tangent_sweep.h"
#include "cpu/kernels/tile/dropout.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class E, class P>
class GradientTile {
  using T = SumOf<E>;
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

 public:
  GradientTile(const P& problem, const BackwardPlan<T>& plan, RowStatistics<T> rows,
               const GradientScratch<E, P>& scratch, Ahead& ahead)
      : p_(problem), plan_(plan), rows_(rows), rule_(problem), x_(scratch), ahead_(ahead) {}

  // Keys and values of a chunk; `head` is a query head that reads them.
  void load_keys(int64_t head, int64_t begin, int64_t keys) {
    key_begin_ = begin;
    k_right_ = right(p_.key, head, p_.group, begin, keys, p_.head_size, x_.k_right);
    if constexpr (kTerms<E> == 1)
      k_ = {k_right_.data, k_right_.stride, 1};
    else
      k_ = left(p_.key, head, begin, keys, p_.head_size, x_.k);
    if (has_few_keys()) {
      const auto v = right(p_.value, head, p_.group, begin, keys, p_.value_head_size, x_.v);
      v_ = {v.data, v.stride, 1};
    } else {
      v_ = left(p_.value, head, begin, keys, p_.value_head_size, x_.v);
    }
    if constexpr (kSecondOrder) {
      k_dot_ = right(p_.direction.key, head, p_.group, begin, keys, p_.head_size, x_.k_dot);
      v_dot_ = left(p_.direction.value, head, begin, keys, p_.value_head_size, x_.v_dot);
    }
  }

  // The sweep over the rows of a tile of queries, where they are kept.
  void sweep(const TileRange& t) {
    if constexpr (kSecondOrder) {
      if (!plan_.keeps_rows) return;
      TangentTask<T, P> task(p_, plan_.cut, rows_, true, x_.sweep);
      task.run(t);
      kept_ = task.kept(0);
      origin_ = task.origin();
    }
  }

  // q, do and the row statistics of a tile of queries.
  void load_queries(const TileRange& t) {
    q_ = right(p_.query, t.head, 1, t.query, t.queries, p_.head_size, x_.q);
    if (needs_transposed()) transpose(p_.query, t, p_.head_size, x_.q_transposed);
    dO_ = right(p_.grad_output, t.head, 1, t.query, t.queries, p_.value_head_size, x_.dO);
    if (needs_transposed()) transpose(p_.grad_output, t, p_.value_head_size, x_.dO_transposed);
    load_row_statistics(p_, t, x_.lse, x_.residual);
    if constexpr (kSecondOrder) {
      q_dot_ = right(p_.direction.query, t.head, 1, t.query, t.queries, p_.head_size, x_.q_dot);
      if (!plan_.keeps_rows) transpose(p_.direction.query, t, p_.head_size, x_.q_dot_transposed);
      copy_rows(t, rows_.delta(t.head), x_.delta);
      copy_rows(t, rows_.center(t.head), x_.center);
      copy_rows(t, rows_.mu(t.head), x_.mu);
      copy_rows(t, rows_.epsilon(t.head), x_.epsilon);
    } else {
      if (has_few_keys())
        few_key_deltas(t);
      else
        row_deltas<E>(p_, t, p_.grad_output ? x_.dO_transposed : nullptr, x_.spare_right, x_.delta);
    }
  }

  // Right factors of a tile of queries, and of the keys from `row` of the chunk.
  Rows<const E> q() const { return q_; }
  Rows<const E> q_dot() const { return q_dot_; }
  Rows<const E> dO() const { return dO_; }
  Rows<const E> k(int64_t row) const { return from_row(k_right_, row); }
  Rows<const E> k_dot(int64_t row) const { return from_row(k_dot_, row); }

  // Fills the scratch tiles: w in p, ds, ds0, and ds0' in s_dot.
  Visibility compute(const TileRange& t) {
    const Visibility seen = additive_edge<T>(p_, t, x_.additive, x_.spare);
    if (seen == Visibility::kNone) return seen;
    const int64_t row = t.key - key_begin_, count = t.keys * t.width;
    const bool needs_ds = p_.grad_query || p_.grad_key || p_.grad_bias || p_.grad_slopes;
    const bool has_dropout = p_.dropout_p > 0;
    if (has_dropout) dropout_tile(p_, t, x_.z);
    if (plan_.keeps_rows) {
      take_kept(t, seen);
      if (has_dropout) multiply_tile(count, x_.z, x_.p);
      return seen;
    }

    if (has_few_keys())
      product_of_rows(t, k_, p_.query, p_.head_size, x_.p);
    else if constexpr (kTerms<E> == 1)
      score_tile<T>(p_, plan_.cut, t, k(row), x_.q_transposed, x_.p, x_.spare, &ahead_);
    else
      product<false>(t, k_, row, x_.q_transposed, p_.head_size, x_.p);
    if (needs_ds && p_.grad_output) {
      if (has_few_keys())
        product_of_rows(t, v_, p_.grad_output, p_.value_head_size, x_.ds);
      else
        product<false>(t, v_, row, x_.dO_transposed, p_.value_head_size, x_.ds);
      if (has_dropout) multiply_tile(count, x_.z, x_.ds);
    } else {
      fill_zero(x_.ds, count);
    }
    if constexpr (kSecondOrder) direction_products(t, row, needs_ds && p_.grad_output);
    for_each_part(t, seen, [&](auto additive, auto capped, auto... part) {
      if constexpr (kSecondOrder)
        second_order_column<additive.value, capped.value>(x_, rule_, adds_to_scores(p_.direction),
                                                          part...);
      else
        backward_column<additive.value, capped.value>(x_, rule_, part...);
    });
    if (has_dropout) multiply_tile(count, x_.z, x_.p);
    return seen;
  }

 private:
  using V = Vec<T>;

  Rows<const E> right(const Operand& x, int64_t head, int64_t group, int64_t row, int64_t rows,
                      int64_t cols, E* buffer) const {
    if (!x) return {};
    return pack_right<E>(x, head_offset(p_, x, head, group), row, rows, cols, buffer);
  }
  Broadcast<E> left(const Operand& x, int64_t head, int64_t row, int64_t rows, int64_t cols,
                    E* buffer) const {
    if (!x) return {};
    return pack_left<E>(x, head_offset(p_, x, head, p_.group), row, rows, cols, buffer);
  }
  // Chunks and tiles of keys start at whole elements.
  static Rows<const E> from_row(Rows<const E> x, int64_t row) {
    return {x.data + row / kTerms<E> * x.stride, x.stride};
  }
  void transpose(const Operand& x, const TileRange& t, int64_t cols, E* out) const {
    if (x)
      pack_transposed<E>(x, head_offset(p_, x, t.head), t.query, t.queries, cols, out, t.width);
  }
  static void copy_rows(const TileRange& t, const T* from, T* to) {
    for (int64_t i = 0; i < t.width; ++i) to[i] = i < t.queries ? from[t.query + i] : T(0);
  }

  // The rows of `a` from `row` on, times b (depth terms, width).
  template <bool kAccumulate>
  void product(const TileRange& t, Broadcast<E> a, int64_t row, const E* b, int64_t depth,
               T* out) const {
    product_of_seen<E, kAccumulate>(p_, t, elements<E>(depth),
                                    {a.data + row * a.row, a.row, a.depth}, b, out, &ahead_);
  }

  // use(Bool<kAdditive>(), Bool<kCapped>(), column, begin, end): keys that a step of queries sees,
  // first those with nothing added to their scores; in all, every key of the tile where the
  // gradients of bias and slopes are wanted, beside which there are no edges.
  template <class Use>
  void for_each_part(const TileRange& t, Visibility seen, const Use& use) const {
    const bool takes_all = p_.grad_bias || p_.grad_slopes;
    with_cap(rule_.is_capped, [&](auto capped) {
      for_each_column<T>(p_, t, seen, [&](int64_t i, int64_t plain, int64_t end) {
        use(Bool<false>(), capped, i, 0, plain);
        use(Bool<true>(), capped, i, plain, takes_all ? t.keys : end);
      });
    });
  }

  // Whether queries are read as they lie. The second order has more products, which transposition
  // pays for.
  bool has_few_keys() const { return kTerms<E> == 1 && !kSecondOrder && plan_.cut.few_keys; }
  bool needs_transposed() const { return !has_few_keys() && !plan_.keeps_rows; }

  // a b^T, `b` being rows of the queries; all keys are in one tile.
  void product_of_rows(const TileRange& t, Broadcast<E> a, const Operand& b, int64_t depth,
                       T* out) const {
    if constexpr (kTerms<E> == 1) {
      const StoredRows rows{b, head_offset(p_, b, t.head), t.query, t.queries, depth};
      row_products<T>(t.keys, {a.data, a.row}, rows, {out, t.width}, x_.spare_right);
    }
  }

  // delta = rowsum(do o) - dlse, as products of rows like dp.
  void few_key_deltas(const TileRange& t) const {
    if constexpr (kTerms<E> == 1 && !kSecondOrder) {
      const StoredRows o{p_.output, head_offset(p_, p_.output, t.head), t.query, t.queries,
                         p_.value_head_size};
      fill_zero(x_.delta, t.width);
      if (p_.grad_output) products_of_pairs<T>(dO_, o, x_.delta, x_.spare_right);
      subtract_logsumexp_gradient(p_, t, x_.delta);
    }
  }

  // s'^T = k q'^T + k' q^T,  dp'^T = z (v' do^T),  b'
  void direction_products(const TileRange& t, int64_t row, bool needs_dp) {
    const Direction& direction = p_.direction;
    const int64_t count = t.keys * t.width;
    fill_zero(x_.s_dot, count);
    if (direction.query) product<true>(t, k_, row, x_.q_dot_transposed, p_.head_size, x_.s_dot);
    if (direction.key)
      product<true>(t, {k_dot_.data, k_dot_.stride, 1}, row, x_.q_transposed, p_.head_size,
                    x_.s_dot);
    if (direction.value && needs_dp) {
      product<false>(t, v_dot_, row, x_.dO_transposed, p_.value_head_size, x_.dp_dot);
      if (p_.dropout_p > 0) multiply_tile(count, x_.z, x_.dp_dot);
    } else {
      fill_zero(x_.dp_dot, count);
    }
    if (adds_to_scores(direction)) direction_tile(p_, direction, t, x_.b_dot);
  }

  void take_kept(const TileRange& t, Visibility seen) const {
    const TangentTiles<T> kept = kept_.tile(t.key / plan_.cut.tile_keys);
    for_each_part(t, seen, [&](auto additive, auto capped, auto... part) {
      kept_column<additive.value, capped.value>(x_, rule_, origin_, kept, part...);
    });
  }

  const P& p_;
  const BackwardPlan<T>& plan_;
  RowStatistics<T> rows_;
  ScoreRule<T> rule_;
  const GradientScratch<E, P>& x_;
  Ahead& ahead_;  // what the task will need
  int64_t key_begin_ = 0;
  TangentTiles<T> kept_{};  // of the first keys
  const T* origin_ = nullptr;
  Broadcast<E> k_{}, v_{}, v_dot_{};
  Rows<const E> q_{}, q_dot_{}, dO_{}, k_right_{}, k_dot_{};
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
