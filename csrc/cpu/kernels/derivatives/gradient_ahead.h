// Which memory a cell of gradient_task.h works on, and when it is asked for: what a tile needs at
// once, what follows it while its products are calculated.
#pragma once

#include "cpu/kernels/derivatives/backward_plan.h"
#include "cpu/kernels/tile/scores.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// The keys of a cell that the window shows to a tile of queries, from the start of a tile of keys.
template <class T>
TORCH_EXT_INLINE KeyRange keys_of(const Problem& p, const BackwardPlan<T>& plan, const Cell& cell,
                                  const TileRange& t) {
  const KeyRange range = visible_keys(p, t.query, t.queries);
  const int64_t keys = plan.cut.tile_keys;
  return {larger(cell.key, range.begin / keys * keys), smaller(cell.key_end, range.end)};
}

template <class T, class P>
class GradientAhead {
 public:
  GradientAhead(const P& problem, const BackwardPlan<T>& plan) : p_(problem), plan_(plan) {}

  // For the products of a tile.
  Ahead& list() { return list_; }

  // The operands of a tile's queries, of its keys, now.
  void read_queries(const TileRange& t) const { for_each_query_operand(t, read_now()); }
  void read_keys(const TileRange& t) const { for_each_key_operand(t, read_now()); }

  // While `t` is calculated: where its bias gradient goes, then more keys up to `key_end`, whose
  // operands are new if this is the `is_first` tile of queries.
  // True where there are such keys.
  bool follow_with_keys(const TileRange& t, int64_t key_end, bool is_first) {
    list_.clear();
    if (plan_.bias == BiasGradient::kDirect)
      list_.will_write(p_.grad_bias,
                       head_offset(p_, p_.grad_bias, t.head) + t.key * p_.grad_bias.col_stride,
                       t.query, t.queries, t.keys);
    TileRange keys = t;
    keys.key += t.keys;
    keys.keys = smaller(plan_.cut.tile_keys, key_end - keys.key);
    if (keys.keys <= 0) return false;
    will_read_additive(p_, keys, list_);
    if (is_first) for_each_key_operand(keys, read_later());
    return true;
  }
  // While the last keys of `t` are: its dq, then the next tile of queries of the cell, if any.
  void follow_with_queries(const TileRange& t, const Cell& cell, const TileRange& next) {
    if (!plan_.dq_partial) will_write(p_.grad_query, t.head, 1, t.query, t.queries, p_.head_size);
    if (next.queries > 0) will_read_first(cell, next);
  }
  // While the last tile of `cell` is: its dk and dv, if they are complete then, and the first tile
  // of the next cell, if any.
  void follow_with_cell(const Cell& cell, const Cell& next) {
    const int64_t keys = cell.key_end - cell.key;
    if (!plan_.dk_partial && cell.is_last)
      will_write(p_.grad_key, cell.head, p_.group, cell.key, keys, p_.head_size);
    if (!plan_.dv_partial && cell.is_last)
      will_write(p_.grad_value, cell.head, p_.group, cell.key, keys, p_.value_head_size);
    if (next.head < 0) return;
    const int64_t queries = smaller(plan_.cut.tile_queries, next.query_end - next.query);
    const int64_t count = smaller(plan_.cut.tile_keys, next.key_end - next.key);
    const TileRange first{next.head, next.query, queries, 0, next.key, count};
    will_read_first(next, first);
    if (next.is_first) for_each_key_operand(first, read_later());
  }

 private:
  void will_write(const Operand& x, int64_t head, int64_t group, int64_t row, int64_t rows,
                  int64_t cols) {
    if (x) list_.will_write(x, head_offset(p_, x, head, group), row, rows, cols);
  }
  // The queries of `t` and what is added to its first scores.
  void will_read_first(const Cell& cell, TileRange t) {
    for_each_query_operand(t, read_later());
    const KeyRange keys = keys_of(p_, plan_, cell, t);
    t.key = keys.begin;
    t.keys = smaller(plan_.cut.tile_keys, keys.end - keys.begin);
    if (t.keys > 0) will_read_additive(p_, t, list_);
  }
  auto read_later() {
    return [this](const auto&... rows) { list_.will_read(rows...); };
  }
  static auto read_now() {
    return [](const auto&... rows) { read_ahead(rows...); };
  }

  // use(operand, offset of the head, row, rows, cols) for what is read of a tile's queries, of its
  // keys.
  template <class Use>
  void for_each_query_operand(const TileRange& t, const Use& use) const {
    const auto rows = [&](const Operand& x, int64_t cols) {
      use(x, head_offset(p_, x, t.head), t.query, t.queries, cols);
    };
    rows(p_.query, p_.head_size);
    rows(p_.grad_output, p_.value_head_size);
    if constexpr (__is_same(P, BackwardProblem)) rows(p_.output, p_.value_head_size);
  }
  template <class Use>
  void for_each_key_operand(const TileRange& t, const Use& use) const {
    const auto rows = [&](const Operand& x, int64_t cols) {
      use(x, head_offset(p_, x, t.head, p_.group), t.key, t.keys, cols);
    };
    rows(p_.key, p_.head_size);
    rows(p_.value, p_.value_head_size);
  }

  const P& p_;
  const BackwardPlan<T>& plan_;
  Ahead list_;
};

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
