// One cell of backward_plan.h: gradients of its keys and queries, for the backward and, along a
// direction (q', k', v', b'), for the second order.
//
// Loop: query heads of the group, tiles of queries, tiles of keys. A tile (gradient_tile.h) yields
// weights w for do, the gradient ds of the scores, ds0 of c q k, and in the second order the factor
// ds0' of k' and q':
//   dv += w^T do,  dk += ds0^T q + ds0'^T q',  dq += ds0 k + ds0' k',  dbias += ds,
//   dslope -= sum(ds |distance|)
// c is multiplied into dq and dk when they are written. Reads every operand in tiles; keeps dk and
// dv of the cell and dq of the tile in scratch.
#pragma once

#include "cpu/kernels/backward_reduce.h"
#include "cpu/kernels/bias_gradient.h"
#include "cpu/kernels/gradient_tile.h"
#include "cpu/kernels/head_gradients.h"
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
        tile_(problem, plan.cut, rows, x_) {}

  // `slopes`: where the slope gradients of the cell's query heads go, one for each head.
  void run(int64_t key_head, int64_t in_wave, int64_t key_chunk, int64_t query_chunk,
           double* slopes) {
    in_wave_ = in_wave;
    key_chunk_ = key_chunk;
    key_begin_ = plan_.keys.begin(key_chunk);
    key_end_ = smaller(problem_.key_length, plan_.keys.begin(key_chunk + 1));
    const int64_t chunk = key_end_ - key_begin_;
    const int64_t key_tiles = divide_up(chunk, plan_.cut.tile_keys);
    for (int64_t i = 0; i < key_tiles; ++i) x_.is_started[i] = false;
    const int64_t first = key_head * problem_.group;
    tile_.load_keys(first, key_begin_, chunk);

    const int64_t query_begin = plan_.queries.begin(query_chunk);
    const int64_t query_end = smaller(problem_.query_length, plan_.queries.begin(query_chunk + 1));
    for (in_group_ = 0; in_group_ < problem_.group; ++in_group_) {
      const int64_t head = first + in_group_;
      start_bias_gradient(head, query_chunk, query_begin, query_end);
      slope_sum_ = 0;
      const int64_t queries = plan_.cut.tile_queries;
      for (int64_t query = query_begin; query < query_end; query += queries) {
        const int64_t count = smaller(queries, query_end - query);
        x_.width = round_up(count, Vec<T>::kSize);
        query_tile({head, query, count, x_.width, 0, 0}, in_group_ == 0 && query == query_begin,
                   in_group_ == problem_.group - 1 && query + queries >= query_end);
      }
      if (slopes) slopes[in_group_] = slope_sum_;
    }
    write_key_gradients(first, query_chunk, chunk);
  }

 private:
  // Where this cell sums its part of the bias gradient, zero unless other heads have added to it.
  void start_bias_gradient(int64_t head, int64_t query_chunk, int64_t query_begin,
                           int64_t query_end) {
    const Operand& dbias = problem_.grad_bias;
    if (plan_.bias == BiasGradient::kDirect)
      dbias_ = static_cast<T*>(dbias.data) + head_offset(problem_, dbias, head);
    if (plan_.bias != BiasGradient::kPrivate) return;
    const int64_t chunk = (plan_.bias_key_chunks > 1 ? key_chunk_ : 0) * plan_.bias_query_chunks +
                          (plan_.bias_query_chunks > 1 ? query_chunk : 0);
    dbias_ = partials_.bias(plan_, in_wave_, in_group_, chunk);
    if (in_group_ > 0 && plan_.bias_heads == 1) return;
    const int64_t row_end = dbias.row_stride ? query_end : query_begin + 1;
    const int64_t col_end = dbias.col_stride ? key_end_ : key_begin_ + 1;
    for (int64_t i = query_begin; i < row_end; ++i)
      for (int64_t j = key_begin_; j < col_end; ++j)
        dbias_[i * dbias.row_stride + j * dbias.col_stride] = 0;
  }

  // The keys of the cell that the window shows to one tile of queries, the first or the last one.
  void query_tile(TileRange t, bool is_first, bool is_last) {
    const KeyRange range = visible_keys(problem_, t.query, t.queries);
    const int64_t key_end = smaller(key_end_, range.end);
    const int64_t keys = plan_.cut.tile_keys;
    t.key = larger(key_begin_, range.begin / keys * keys);
    if (t.key < key_end) {
      ask_for_queries(t);
      tile_.load_queries(t);
    }
    if (is_last) ask_for_key_gradients(t.head);
    has_dq_ = false;
    for (; t.key < key_end; t.key += keys) {
      t.keys = smaller(keys, key_end - t.key);
      if (is_first) ask_for_keys(t);
      add_tile(t);
    }
    if (!problem_.grad_query) return;
    if (!has_dq_) fill_zero(x_.dq, t.queries * plan_.head_columns);
    if (plan_.dq_partial) {
      T* out = partials_.dq(plan_, problem_, in_wave_, in_group_, key_chunk_) +
               t.query * plan_.head_columns;
      __builtin_memcpy(out, x_.dq, static_cast<size_t>(t.queries * plan_.head_columns) * sizeof(T));
    } else {
      write_rows<T>(x_.dq, plan_.head_columns, t.queries, problem_.head_size,
                    static_cast<T>(problem_.scale), problem_.grad_query,
                    head_offset(problem_, problem_.grad_query, t.head), t.query);
    }
  }

  // Every operand before its first use, and results while there still is something to compute. What
  // is copied first is read line after line by that.
  void ask_for_queries(const TileRange& t) const {
    const P& p = problem_;
    const auto read = [&](const Operand& x, int64_t cols) {
      if (x) read_ahead<T>(x, head_offset(p, x, t.head), t.query, t.queries, cols);
    };
    const auto read_unless_copied = [&](const Operand& x, int64_t cols) {
      if (kTerms<E> > 1 || is_readable_in_place<T>(x, cols, true)) read(x, cols);
    };
    read_unless_copied(p.query, p.head_size);
    read_unless_copied(p.grad_output, p.value_head_size);
    if constexpr (!kSecondOrder) read(p.output, p.value_head_size);
    if (p.grad_query && !plan_.dq_partial)
      prefetch_results<T>(p.grad_query, head_offset(p, p.grad_query, t.head), t.query, t.queries,
                          p.head_size);
  }
  void ask_for_keys(const TileRange& t) const {
    const P& p = problem_;
    read_ahead<T>(p.key, head_offset(p, p.key, t.head, p.group), t.key, t.keys, p.head_size);
    read_ahead<T>(p.value, head_offset(p, p.value, t.head, p.group), t.key, t.keys,
                  p.value_head_size);
  }
  void ask_for_key_gradients(int64_t head) const {
    const P& p = problem_;
    const auto ask = [&](const Operand& x, int64_t cols) {
      if (x)
        prefetch_results<T>(x, head_offset(p, x, head, p.group), key_begin_, key_end_ - key_begin_,
                            cols);
    };
    if (!plan_.dk_partial) ask(p.grad_key, p.head_size);
    if (!plan_.dv_partial) ask(p.grad_value, p.value_head_size);
  }

  // What one tile adds to all gradients.
  void add_tile(const TileRange& t) {
    const P& p = problem_;
    const Visibility seen = tile_.compute(t);
    if (seen == Visibility::kNone) return;
    const int64_t width = x_.width, row = t.key - key_begin_;
    T* dk = x_.dk + row * plan_.head_columns;
    T* dv = x_.dv + row * plan_.value_columns;
    const auto down = [&](const T* weights, int64_t columns, Rows<const E> b, T* out, bool add) {
      const auto a = factor_over_queries<E>(weights, t.keys, t.queries, width, x_.weights);
      sum(add, t.keys, columns, t.queries, a, seen, {x_.additive, width, 1}, b, out);
    };
    const auto across = [&](const T* weights, int64_t columns, Rows<const E> b, bool add) {
      const auto a = factor_over_keys<E>(weights, t.keys, width, x_.weights);
      sum(add, t.queries, columns, t.keys, a, seen, {x_.additive, 1, width}, b, x_.dq);
    };
    bool& is_started = x_.is_started[row / plan_.cut.tile_keys];
    if (p.grad_value && p.grad_output) down(x_.p, plan_.value_columns, tile_.dO(), dv, is_started);
    if (p.grad_key) down(x_.ds0, plan_.head_columns, tile_.q(), dk, is_started);
    if (p.grad_query) across(x_.ds0, plan_.head_columns, tile_.k(row), has_dq_);
    if (!is_started) zero_key_gradients(row + t.keys, end_of_tile(row));
    is_started = has_dq_ = true;
    if constexpr (kSecondOrder) {
      if (p.grad_key && p.direction.query)
        down(x_.s_dot, plan_.head_columns, tile_.q_dot(), dk, true);
      if (p.grad_query && p.direction.key)
        across(x_.s_dot, plan_.head_columns, tile_.k_dot(row), true);
    }
    if (p.grad_bias)
      add_bias_gradient<T>(t, x_.ds, dbias_, p.grad_bias.row_stride, p.grad_bias.col_stride,
                           x_.spare);
    if (p.grad_slopes) slope_sum_ += slope_gradient(p, t, x_.ds);
  }

  // Rows of dk and dv that nothing was added to. Rows count from the first key of the cell.
  void zero_key_gradients(int64_t begin, int64_t end) const {
    fill_zero(x_.dk + begin * plan_.head_columns, (end - begin) * plan_.head_columns);
    fill_zero(x_.dv + begin * plan_.value_columns, (end - begin) * plan_.value_columns);
  }
  // Where the tile of keys ends that begins at `row`.
  int64_t end_of_tile(int64_t row) const {
    return smaller(row + plan_.cut.tile_keys, key_end_ - key_begin_);
  }

  // out += a b, or = where nothing was added to it yet.
  void sum(bool add, int64_t rows, int64_t columns, int64_t terms, Broadcast<E> a, Visibility seen,
           Broadcast<T> additive, Rows<const E> b, T* out) const {
    if (add)
      weighted_sum<E, true>(rows, columns, terms, a, seen, additive, b, {out, columns},
                            x_.spare_right);
    else
      weighted_sum<E, false>(rows, columns, terms, a, seen, additive, b, {out, columns},
                             x_.spare_right);
  }

  void write_key_gradients(int64_t head, int64_t query_chunk, int64_t chunk) {
    const P& p = problem_;
    for (int64_t row = 0; row < chunk; row = end_of_tile(row))
      if (!x_.is_started[row / plan_.cut.tile_keys]) zero_key_gradients(row, end_of_tile(row));
    if (!p.grad_output) fill_zero(x_.dv, chunk * plan_.value_columns);
    const auto write = [&](T* sums, int64_t columns, int64_t cols, T factor, const Operand& out,
                           T* partial) {
      if (partial)
        __builtin_memcpy(partial + key_begin_ * columns, sums,
                         static_cast<size_t>(chunk * columns) * sizeof(T));
      else
        write_rows<T>(sums, columns, chunk, cols, factor, out, head_offset(p, out, head, p.group),
                      key_begin_);
    };
    if (p.grad_key)
      write(x_.dk, plan_.head_columns, p.head_size, static_cast<T>(p.scale), p.grad_key,
            plan_.dk_partial ? partials_.dk(plan_, p, in_wave_, query_chunk) : nullptr);
    if (p.grad_value)
      write(x_.dv, plan_.value_columns, p.value_head_size, T(1), p.grad_value,
            plan_.dv_partial ? partials_.dv(plan_, p, in_wave_, query_chunk) : nullptr);
  }

  const P& problem_;
  const BackwardPlan<T>& plan_;
  BackwardPartials<T> partials_;
  GradientScratch<E, P> x_;
  GradientTile<E, P> tile_;
  int64_t in_wave_ = 0, in_group_ = 0, key_chunk_ = 0, key_begin_ = 0, key_end_ = 0;
  bool has_dq_ = false;  // whether dq of the tile of queries holds anything yet
  T* dbias_ = nullptr;
  double slope_sum_ = 0;
};

// All cells of all heads. `rows`: what the second order needs of each row.
template <class E, class P>
void run_gradients(const P& p, RowStatistics<SumOf<E>> rows) {
  using T = SumOf<E>;
  const BackwardPlan<T> plan(p);
  const GradientScratch<E, P> size(p, plan, nullptr);
  const int64_t heads = p.key_heads(), cells = plan.cells();
  const Buffer buffer(plan.wave * plan.partial() * static_cast<int64_t>(sizeof(T)));
  const BackwardPartials<T> partials{static_cast<T*>(buffer.data())};
  const SlopeSums slopes(p, cells);

  for (int64_t first = 0; first < heads; first += plan.wave) {
    const int64_t wave = smaller(plan.wave, heads - first);
    parallel_tasks(wave * cells, size.bytes, [&](int64_t task, void* scratch) {
      const int64_t in_wave = task / cells, cell = task % cells, head = first + in_wave;
      GradientTask<E, P>(p, plan, partials, rows, scratch)
          .run(head, in_wave, cell / plan.queries.count, cell % plan.queries.count,
               slopes.of(head, cell));
    });
    if (plan.dq_partial) reduce_query_gradients(p, plan, partials, first, wave);
    if (plan.dk_partial || plan.dv_partial) reduce_key_gradients(p, plan, partials, first, wave);
    if (plan.bias_partial) reduce_bias_gradient(p, plan, partials, first, wave);
  }
  slopes.template write<T>(p);
  if (p.grad_sink) sink_gradient<E>(p, rows);
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
