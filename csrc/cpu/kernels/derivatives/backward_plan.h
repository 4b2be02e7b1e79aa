// How backward and second order are cut into tasks, where partial sums live, and how these add up.
//
// A key head is a grid of key chunks x row chunks: chunks of the queries x chunks of the query
// heads that read it. Of one cell are computed, tile by tile,
//   dk, dv of its keys (kept in scratch, complete when there is one row chunk)
//   dq of its queries (complete when there is one key chunk)
// What is not complete goes to a partial buffer, one slot for each chunk, and is added in the order
// of the chunks. A task takes one cell; or, where key heads keep all threads busy, all row chunks
// of its keys one after the other, and adds up their dk and dv itself, in the same order; or the
// chunks of query heads that share a bias gradient, to which they add in turn. Heads are taken in
// waves so that all partial buffers together stay within a fixed size. Which sums are added, and in
// which order, depends on the sizes of one head alone (choices.h), never on the number of threads
// or heads.
#pragma once

#include "cpu/kernels/tile/tiles.h"
#include "cpu/parallel.h"

namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE {
namespace {

// Where the gradient of the bias is summed.
enum class BiasGradient {
  kNone,
  // A slice for each key head, or for each query head where these do not share the bias, and for
  // each chunk along dimensions that it is broadcast over. Slices are added in the order of heads
  // and chunks.
  kPrivate,
  // A large N x M slice: cells write disjoint parts of it; heads that share one take turns, and the
  // first of them writes what the others add to.
  kDirect,
};

// Keys [key, key_end) and queries [query, query_end) of some query heads that read one key head.
struct Cell {
  int64_t head = -1, heads = 0;  // the first of these query heads, and how many; -1: no cell
  int64_t in_wave = 0;
  int64_t key_chunk = 0, key = 0, key_end = 0;
  int64_t row_chunk = 0, query_chunk = 0, query = 0, query_end = 0;
  bool is_first = true, is_last = true;  // among the cells of its task
};

// Whether so many equal tasks leave at most a tenth of the threads' time unused.
TORCH_EXT_INLINE bool are_balanced(int64_t tasks, int64_t threads) {
  return 10 * tasks >= 9 * divide_up(tasks, threads) * threads;
}

// How many key heads in a row there are of which no two share a part of the bias.
TORCH_EXT_INLINE int64_t heads_apart(const BackwardProblem& p) {
  int64_t heads = 1;
  for (int d = p.leading_dims - 1; d >= 0; --d) {
    const int64_t size =
        d == p.leading_dims - 1 ? p.leading_sizes[d] / p.group : p.leading_sizes[d];
    if (size > 1 && p.grad_bias.leading_strides[d] == 0) break;
    heads *= size;
  }
  return heads;
}

template <class T>
struct BackwardPlan {
  bool keeps_rows;  // the second order: gradient_tile.h
  Cut cut;
  Chunks keys, queries;
  Chunks heads;           // of the query heads of a key head
  int64_t head_columns;   // D in whole vectors
  int64_t value_columns;  // E in whole vectors
  BiasGradient bias = BiasGradient::kNone;
  int64_t bias_slice = 0;  // elements of one head's bias gradient
  // How many slices of their own a key head needs: for query heads unless they share the bias, and
  // for chunks along dimensions that the bias is broadcast over. Other chunks write disjoint parts.
  int64_t bias_heads = 1, bias_key_chunks = 1, bias_query_chunks = 1;

  // All row chunks of its keys; one; or the chunks of heads that take turns at a bias gradient.
  int64_t task_cells = 1;
  bool joins_rows = false;  // whether a task adds up dk and dv of its cells
  // Elements of partial sums of one key head (with its `group` query heads).
  int64_t dq_partial = 0;    // (group, key chunks, N, head_columns)
  int64_t dk_partial = 0;    // (row chunks, M, head_columns)
  int64_t dv_partial = 0;    // (row chunks, M, value_columns)
  int64_t bias_partial = 0;  // (bias heads, bias chunks, slice)
  int64_t wave = 1;          // key heads at a time

  // Chunks of queries x chunks of query heads. (cut.row_chunks is of few queries: their keys.)
  TORCH_EXT_INLINE int64_t row_chunks() const { return queries.count * heads.count; }
  TORCH_EXT_INLINE int64_t cells() const { return keys.count * row_chunks(); }
  // Number `i` of the cells of a wave that begins with key head `first`; none if negative.
  TORCH_EXT_INLINE Cell cell(const Problem& p, int64_t first, int64_t i) const {
    if (i < 0) return {};
    const int64_t in_wave = i / cells(), of_head = i % cells();
    const int64_t k = of_head / row_chunks(), row = of_head % row_chunks();
    const int64_t q = row / heads.count, h = row % heads.count;
    return {(first + in_wave) * p.group + heads.begin(h),
            heads.begin(h + 1) - heads.begin(h),
            in_wave,
            k,
            keys.begin(k),
            smaller(p.key_length, keys.begin(k + 1)),
            row,
            q,
            queries.begin(q),
            smaller(p.query_length, queries.begin(q + 1)),
            i % task_cells == 0,
            (i + 1) % task_cells == 0};
  }
  TORCH_EXT_INLINE int64_t bias_chunks() const { return bias_key_chunks * bias_query_chunks; }
  TORCH_EXT_INLINE int64_t partial() const {
    return dq_partial + dk_partial + dv_partial + bias_partial;
  }

  // `threads`: how many take part.
  template <class P>
  TORCH_EXT_INLINE BackwardPlan(const P& p, int64_t threads)
      : keeps_rows(can_keep_rows<T>(p)),
        cut(cut_of<T>(p, keeps_rows)),
        keys(cut.key_chunks),
        queries(cut.query_chunks),
        heads(cut.head_chunks) {
    const int64_t n = p.query_length, m = p.key_length;
    head_columns = round_up(p.head_size, Vec<T>::kSize);
    value_columns = round_up(p.value_head_size, Vec<T>::kSize);
    if (p.grad_query && keys.count > 1) dq_partial = p.group * keys.count * n * head_columns;
    if (p.grad_bias) plan_bias(p);
    const int64_t most_heads = bias == BiasGradient::kDirect ? heads_apart(p) : p.key_heads();
    wave = heads_at_once(most_heads, bytes());
    if (row_chunks() == 1) return;
    joins_rows = are_balanced(wave, threads);  // a task for each key head: its keys are not cut
    if (joins_rows) {
      task_cells = row_chunks();
    } else {
      if (bias != BiasGradient::kNone && bias_heads < p.group) task_cells = heads.count;
      if (p.grad_key) dk_partial = row_chunks() * m * head_columns;
      if (p.grad_value) dv_partial = row_chunks() * m * value_columns;
      wave = heads_at_once(most_heads, bytes());
    }
  }

 private:
  TORCH_EXT_INLINE int64_t bytes() const { return partial() * static_cast<int64_t>(sizeof(T)); }

  TORCH_EXT_INLINE void plan_bias(const BackwardProblem& p) {
    const int64_t n = p.query_length, m = p.key_length;
    const Operand& dbias = p.grad_bias;
    const bool has_rows = dbias.row_stride != 0, has_columns = dbias.col_stride != 0;
    if ((has_rows && n == 0) || (has_columns && m == 0)) return;
    bias_slice = 1 + larger(0, n - 1) * dbias.row_stride + larger(0, m - 1) * dbias.col_stride;
    const bool is_large = has_rows && has_columns && bias_slice > choices().private_slice;
    bias = is_large ? BiasGradient::kDirect : BiasGradient::kPrivate;
    if (dbias.leading_strides[p.leading_dims - 1] != 0) bias_heads = p.group;
    if (!has_columns) bias_key_chunks = keys.count;
    if (!has_rows) bias_query_chunks = queries.count;
    if (!is_large) bias_partial = bias_heads * bias_chunks() * bias_slice;
  }
};

// The partial buffers of one wave.
template <class T>
struct BackwardPartials {
  T* start;  // wave x plan.partial() elements

  TORCH_EXT_INLINE T* dq(const BackwardPlan<T>& plan, const Problem& p, int64_t in_wave,
                         int64_t in_group, int64_t key_chunk) const {
    return start + in_wave * plan.partial() +
           (in_group * plan.keys.count + key_chunk) * p.query_length * plan.head_columns;
  }
  TORCH_EXT_INLINE T* dk(const BackwardPlan<T>& plan, const Problem& p, int64_t in_wave,
                         int64_t row_chunk) const {
    return start + in_wave * plan.partial() + plan.dq_partial +
           row_chunk * p.key_length * plan.head_columns;
  }
  TORCH_EXT_INLINE T* dv(const BackwardPlan<T>& plan, const Problem& p, int64_t in_wave,
                         int64_t row_chunk) const {
    return start + in_wave * plan.partial() + plan.dq_partial + plan.dk_partial +
           row_chunk * p.key_length * plan.value_columns;
  }
  // The slice of a query head's cell; `chunk` counts bias_chunks.
  TORCH_EXT_INLINE T* bias(const BackwardPlan<T>& plan, int64_t in_wave, int64_t in_group,
                           int64_t chunk) const {
    const int64_t head = plan.bias_heads > 1 ? in_group : 0;
    return start + in_wave * plan.partial() + plan.dq_partial + plan.dk_partial + plan.dv_partial +
           (head * plan.bias_chunks() + chunk) * plan.bias_slice;
  }
};

// ---- what the cells of a wave left: chunks added in their order, and the gradients written ----

// x(rows) = factor * (partial 0 + partial 1 + …), `step` elements apart, for one block of rows.
template <class T>
void reduce_rows(const T* partial, int64_t step, int64_t count, int64_t rows, int64_t columns,
                 int64_t cols, T factor, const Operand& x, int64_t offset, int64_t row, T* sum) {
  partial += row * columns;
  for (int64_t i = 0; i < rows * columns; ++i) sum[i] = partial[i];
  for (int64_t chunk = 1; chunk < count; ++chunk) {
    partial += step;
    for (int64_t i = 0; i < rows * columns; ++i) sum[i] += partial[i];
  }
  write_rows<T>(sum, columns, rows, cols, factor, x, offset, row);
}

template <class T>
void reduce_query_gradients(const BackwardProblem& p, const BackwardPlan<T>& plan,
                            BackwardPartials<T> partials, int64_t first, int64_t heads) {
  const int64_t block = plan.cut.tile_queries, tiles = divide_up(p.query_length, block);
  const int64_t bytes = block * plan.head_columns * static_cast<int64_t>(sizeof(T));
  const auto tile_task = [&](int64_t task, void* scratch) {
    const int64_t row = task % tiles * block, in_wave = task / tiles / p.group;
    const int64_t in_group = task / tiles % p.group;
    const int64_t offset = head_offset(p, p.grad_query, (first + in_wave) * p.group + in_group);
    reduce_rows<T>(partials.dq(plan, p, in_wave, in_group, 0), p.query_length * plan.head_columns,
                   plan.keys.count, smaller(block, p.query_length - row), plan.head_columns,
                   p.head_size, static_cast<T>(p.scale), p.grad_query, offset, row,
                   static_cast<T*>(scratch));
  };
  parallel_tasks(heads * p.group * tiles, bytes, tile_task, most_threads(p));
}

template <class T>
void reduce_key_gradients(const BackwardProblem& p, const BackwardPlan<T>& plan,
                          BackwardPartials<T> partials, int64_t first, int64_t heads) {
  const int64_t columns = larger(plan.head_columns, plan.value_columns);
  const int64_t block = plan.cut.tile_keys, tiles = divide_up(p.key_length, block);
  const int64_t bytes = block * columns * static_cast<int64_t>(sizeof(T));
  const auto tile_task = [&](int64_t task, void* scratch) {
    const int64_t row = task % tiles * block, in_wave = task / tiles;
    const int64_t head = (first + in_wave) * p.group, rows = smaller(block, p.key_length - row);
    T* sum = static_cast<T*>(scratch);
    if (plan.dk_partial)
      reduce_rows<T>(partials.dk(plan, p, in_wave, 0), p.key_length * plan.head_columns,
                     plan.row_chunks(), rows, plan.head_columns, p.head_size,
                     static_cast<T>(p.scale), p.grad_key, head_offset(p, p.grad_key, head, p.group),
                     row, sum);
    if (plan.dv_partial)
      reduce_rows<T>(partials.dv(plan, p, in_wave, 0), p.key_length * plan.value_columns,
                     plan.row_chunks(), rows, plan.value_columns, p.value_head_size, T(1),
                     p.grad_value, head_offset(p, p.grad_value, head, p.group), row, sum);
  };
  parallel_tasks(heads * tiles, bytes, tile_task, most_threads(p));
}

}  // namespace
}  // namespace torch_ext::cpu::TORCH_EXT_ISA_NAMESPACE
