// The cells of a task of backward_plan.h: gradients of its keys and queries, for the backward and,
// along a direction (q', k', v', b'), for the second order.
//
// Loop: cells, query heads of the cell, tiles of queries, tiles of keys. A tile (gradient_tile.h)
// yields weights w for do, the gradient ds of the scores, ds0 of c q k, and in the second order the
// factor ds0' of k' and q':
//   dv += w^T do,  dk += ds0^T q + ds0'^T q',  dq += ds0 k + ds0' k',  dbias += ds,
//   dslope -= sum(ds |distance|)
// c is multiplied into dq and dk when they are written. Reads every operand in tiles; keeps dk and
// dv (key_sums.h) and dq of the tile in scratch.
#pragma once

#include "cpu/kernels/derivatives/gradient_ahead.h"
#include "cpu/kernels/derivatives/gradient_tile.h"
#include "cpu/kernels/derivatives/key_sums.h"
#include "cpu/kernels/derivatives/option_gradients.h"
#include "cpu/parallel.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

template <class E, class P>
class GradientTask {
  using T = SumOf<E>;
  static constexpr bool kSecondOrder = __is_same(P, SecondOrderProblem);

 public:
  GradientTask(const P& problem, const BackwardPlan<T>& plan, BackwardPartials<T> partials,
               RowStatistics<T> rows, void* memory)
      : problem_(problem),
        plan_(plan),
        partials_(partials),
        x_(problem, plan, memory),
        sums_(problem, plan, partials, x_),
        ahead_(problem, plan),
        tile_(problem, plan, rows, x_, ahead_.list()) {}

  // One cell; those of a task come in their order. `next`: the cell after it. `slopes`: where its
  // slope gradients go, one for each query head of its key head, 0 for those that are not its own.
  void run(const Cell& cell, const Cell& next, double* slopes) {
    cell_ = cell;
    sums_.start(cell);
    if (cell.is_first) tile_.load_keys(cell.head, cell.key, cell.key_end - cell.key);
    const int64_t queries = plan_.cut.tile_queries;
    const int64_t tiles = divide_up(cell.query_end - cell.query, queries);  // of each head
    const auto tile = [&](int64_t i) {
      if (i == cell.heads * tiles) return TileRange{};
      const int64_t query = cell.query + i % tiles * queries;
      const int64_t count = smaller(queries, cell.query_end - query);
      return TileRange{cell.head + i / tiles, query, count, round_up(count, Vec<T>::kSize), 0, 0};
    };
    for (int64_t h = 0; slopes && h < problem_.group; ++h) slopes[h] = 0;
    for (int64_t h = 0; h < cell.heads; ++h) {
      start_head(cell.head + h);
      for (int64_t i = h * tiles; i < (h + 1) * tiles; ++i) query_tile(tile(i), tile(i + 1), next);
      if (slopes) slopes[in_group_] = slope_sum_;
    }
    sums_.finish(cell);
  }

 private:
  // Sums of one query head: the gradient of the slope, and where the cell writes its part of the
  // bias gradient, or adds it to what is there: to zeros, or to what other heads have left.
  void start_head(int64_t head) {
    in_group_ = head % problem_.group;
    slope_sum_ = 0;
    const Operand& dbias = problem_.grad_bias;
    if (plan_.bias == BiasGradient::kDirect) {
      dbias_ = static_cast<T*>(dbias.data) + head_offset(problem_, dbias, head);
      writes_dbias_ = is_first_sharing_head(problem_, dbias, head);
    }
    if (plan_.bias != BiasGradient::kPrivate) return;
    const int64_t chunk =
        (plan_.bias_key_chunks > 1 ? cell_.key_chunk : 0) * plan_.bias_query_chunks +
        (plan_.bias_query_chunks > 1 ? cell_.query_chunk : 0);
    dbias_ = partials_.bias(plan_, cell_.in_wave, in_group_, chunk);
    if (in_group_ > 0 && plan_.bias_heads == 1) return;
    zero_bias({0, cell_.query, cell_.query_end - cell_.query, 0, 0, 0}, cell_.key, cell_.key_end);
  }
  // Of the queries of `t` and keys [begin, end).
  void zero_bias(TileRange t, int64_t begin, int64_t end) const {
    t.key = begin;
    t.keys = end - begin;
    zero_bias_gradient(t, dbias_, problem_.grad_bias.row_stride, problem_.grad_bias.col_stride);
  }

  // A tile of queries with the keys of the cell that the window shows to it. `after` is the tile
  // that follows, of no queries if this is the last one; `next` the cell that follows then.
  void query_tile(TileRange t, const TileRange& after, const Cell& next) {
    tile_.sweep(t);
    const auto [key_begin, key_end] = keys_of(problem_, plan_, cell_, t);
    const int64_t keys = plan_.cut.tile_keys;
    const bool is_first = cell_.is_first && t.head == cell_.head && t.query == cell_.query;
    x_.width = t.width;
    t.key = key_begin;
    if (writes_dbias_) {
      zero_bias(t, cell_.key, smaller(t.key, cell_.key_end));
      zero_bias(t, larger(t.key, key_end), cell_.key_end);
    }
    if (t.key < key_end) {
      ahead_.read_queries(t);
      tile_.load_queries(t);
    }
    has_dq_ = false;
    for (; t.key < key_end; t.key += keys) {
      // Whole elements: the other half of a pair may be a key of the cell that is hidden.
      t.keys = smaller(smaller(keys, cell_.key_end - t.key), round_up(key_end - t.key, kTerms<E>));
      if (is_first) ahead_.read_keys(t);
      look_ahead(t, key_end, is_first, after, next);
      add_tile(t);
    }
    if (!problem_.grad_query) return;
    if (!has_dq_) fill_zero(x_.dq, t.queries * plan_.head_columns);
    if (plan_.dq_partial) {
      T* out = partials_.dq(plan_, problem_, cell_.in_wave, in_group_, cell_.key_chunk) +
               t.query * plan_.head_columns;
      __builtin_memcpy(out, x_.dq, static_cast<size_t>(t.queries * plan_.head_columns) * sizeof(T));
    } else {
      write_rows<T>(x_.dq, plan_.head_columns, t.queries, problem_.head_size,
                    static_cast<T>(problem_.scale), problem_.grad_query,
                    head_offset(problem_, problem_.grad_query, t.head), t.query);
    }
  }

  // `after`: the tile that follows, of no queries if `t` is of the last ones; `next`: the cell that
  // follows then.
  void look_ahead(const TileRange& t, int64_t key_end, bool is_first, const TileRange& after,
                  const Cell& next) {
    if (ahead_.follow_with_keys(t, key_end, is_first)) return;
    ahead_.follow_with_queries(t, cell_, after);
    if (after.queries == 0) ahead_.follow_with_cell(cell_, next);
  }

  // What one tile adds to all gradients.
  void add_tile(const TileRange& t) {
    const P& p = problem_;
    const Visibility seen = tile_.compute(t);
    if (seen == Visibility::kNone) {
      if (writes_dbias_) zero_bias(t, t.key, t.key + t.keys);
      return;
    }
    const int64_t width = x_.width, row = t.key - cell_.key;
    T *const dk = sums_.dk(row), *const dv = sums_.dv(row);
    const Hidden<T> hidden{seen, x_.additive};
    const auto down = [&](const T* weights, int64_t columns, Rows<const E> b, T* out, bool add) {
      const auto a = factor_over_queries<E>(weights, t.keys, t.queries, width, x_.weights);
      const auto sum = add ? sum_over_queries<E, true> : sum_over_queries<E, false>;
      sum(p, t, a, hidden, b, {out, columns}, x_.spare_right, &ahead_.list());
    };
    const auto across = [&](const T* weights, int64_t columns, Rows<const E> b, bool add) {
      const auto a = factor_over_keys<E>(weights, t.keys, width, x_.weights);
      const auto sum = add ? sum_over_keys<E, true> : sum_over_keys<E, false>;
      sum(p, t, a, hidden, b, {x_.dq, columns}, x_.spare_right, &ahead_.list());
    };
    const bool is_started = sums_.is_started(row);
    if (p.grad_value && p.grad_output) down(x_.p, plan_.value_columns, tile_.dO(), dv, is_started);
    if (p.grad_key) down(x_.ds0, plan_.head_columns, tile_.q(), dk, is_started);
    if (p.grad_query) across(x_.ds0, plan_.head_columns, tile_.k(row), has_dq_);
    sums_.set_started(row, t.keys);
    has_dq_ = true;
    if constexpr (kSecondOrder) {
      if (p.grad_key && p.direction.query)
        down(x_.s_dot, plan_.head_columns, tile_.q_dot(), dk, true);
      if (p.grad_query && p.direction.key)
        across(x_.s_dot, plan_.head_columns, tile_.k_dot(row), true);
    }
    const Operand& dbias = p.grad_bias;
    if (writes_dbias_)
      write_bias_gradient<T>(t, x_.ds, dbias_, dbias.row_stride, dbias.col_stride, x_.spare);
    else if (dbias)
      add_bias_gradient<T>(t, x_.ds, dbias_, dbias.row_stride, dbias.col_stride, x_.spare);
    if (p.grad_slopes) slope_sum_ += slope_gradient(p, t, x_.ds);
  }

  const P& problem_;
  const BackwardPlan<T>& plan_;
  BackwardPartials<T> partials_;
  GradientScratch<E, P> x_;
  KeySums<E, P> sums_;
  GradientAhead<T, P> ahead_;
  GradientTile<E, P> tile_;
  Cell cell_;
  int64_t in_group_ = 0;  // the query head at hand
  bool has_dq_ = false;   // whether dq of the tile of queries holds anything yet
  T* dbias_ = nullptr;
  bool writes_dbias_ = false;  // or adds to it
  double slope_sum_ = 0;
};

// All cells of all heads. `rows`: what the second order needs of each row.
template <class E, class P>
void run_gradients(const P& p, RowStatistics<SumOf<E>> rows) {
  using T = SumOf<E>;
  const BackwardPlan<T> plan(p, threads_for_tasks(most_threads(p)));
  const GradientScratch<E, P> size(p, plan, nullptr);
  const int64_t heads = p.key_heads(), cells = plan.cells();
  const Buffer buffer(plan.wave * plan.partial() * static_cast<int64_t>(sizeof(T)));
  const BackwardPartials<T> partials{static_cast<T*>(buffer.data())};
  const SlopeSums slopes(p, cells);

  for (int64_t first = 0; first < heads; first += plan.wave) {
    const int64_t wave = smaller(plan.wave, heads - first);
    const auto cell_task = [&](int64_t task, int64_t next_task, void* scratch) {
      GradientTask<E, P> gradients(p, plan, partials, rows, scratch);
      const int64_t end = (task + 1) * plan.task_cells;
      for (int64_t i = task * plan.task_cells; i < end; ++i) {
        const int64_t next = i + 1 < end ? i + 1 : next_task * plan.task_cells;
        gradients.run(plan.cell(p, first, i), plan.cell(p, first, next),
                      slopes.of(first + i / cells, i % cells));
      }
    };
    parallel_tasks(wave * cells / plan.task_cells, size.bytes, cell_task, most_threads(p));
    if (plan.dq_partial) reduce_query_gradients(p, plan, partials, first, wave);
    if (plan.dk_partial || plan.dv_partial) reduce_key_gradients(p, plan, partials, first, wave);
    if (plan.bias_partial) reduce_bias_gradient(p, plan, partials, first, wave);
  }
  slopes.template write<T>(p);
  if (p.grad_sink) sink_gradient<E>(p, rows);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
